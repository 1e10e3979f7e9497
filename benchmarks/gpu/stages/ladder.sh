# Two sizes of the ladder (docs/which-size.md), side by side on one GPU to share the time of their starts: their settings are those of the
# rule, but for the length and the validation. STEPS iterations each. The speed is that of two processes on one GPU.
STEPS=${STEPS:-50}
ladder() { # SIZE
  timeout -s ABRT -k 5 "${LADDER_LIMIT:-140}" python3 -X faulthandler -m nano3.pretrain model=ladder train=ladder "ladder.size=$1" run.name="ladder_$1" \
    data_blend=sample run.data="$DATA" run.output_dir="$K/ladder/$1" train.seq_length=4096 train.train_iters="$STEPS" ladder.eval_samples=48 \
    train.eval_interval="$STEPS" checkpoint.save_interval=0 logger.log_interval=10 > "$OUT/ladder_$1.log" 2>&1
  echo "LADDER $1 rc=$?"; cp "$K/ladder/$1/metrics.jsonl" "$OUT/ladder_$1.jsonl" 2>/dev/null
  python3 - "$OUT/ladder_$1.jsonl" <<'END'
import json, sys
for line in map(json.loads, open(sys.argv[1])):
    if "loss" in line and line["iteration"] % 10 == 0:
        print(f"  iteration {line['iteration']} loss {line['loss']:.3f} {line['seconds_per_iteration'] * 1e3:.0f} ms {line['tokens_per_s']:,.0f} tokens/s MFU {line['mfu']:.1%} {line['memory_gb']:.1f} GB imbalance {line.get('expert_imbalance', 0):.2f}")
    if "valid_loss" in line:
        print(f"  validation at {line['iteration']}: {line['valid_loss']:.4f}")
END
}
say "ladder: 100m and 350m"
ladder 100m > "$OUT/ladder_100m.txt" & LADDER_ONE=$!
ladder 350m > "$OUT/ladder_350m.txt"; wait "$LADDER_ONE"
cat "$OUT/ladder_100m.txt" "$OUT/ladder_350m.txt"
grep -hE "^error|OutOfMemory|Error:|^Failure|REFUSED" "$OUT"/ladder_*.log | tail -4 | cut -c1-240
say "end of ladder"
