# What nano3's callback costs inside the loop, in one process (benchmarks/gpu/hooks.py): the micro model's attention and experts alone,
# whose kernels compile fast.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
say hooks
turn hooks "$K/hooks" "$DATA" $M 'model.hybrid_layer_pattern=E*E*E*E*' train.train_iters="${STEPS:-320}" > "$OUT/hooks.log" 2>&1; echo "rc=$?"
grep -E "^(BLOCK|RESULT)" "$OUT/hooks.log" | tee "$OUT/hooks.txt"
