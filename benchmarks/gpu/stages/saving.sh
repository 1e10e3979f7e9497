# How long training stands still for a save of 7 GB in the background, the first one and the next one, and in which parts: SAVING names
# the runs. `plain` leaves the memory of the process that writes to the first save, `reserved` (nano3's default) allocates it ahead while
# the first steps run. The model is the micro one with 128 experts five times as wide (0.5 B parameters, 3,072 tensors of experts): its
# kernels are those of the tests, and its steps are short. The run `reserved` imports while `plain` trains. WIDTH changes the size.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
S=$K/saving; mkdir -p "$S"  # logs, packed as $OUT/saving.tar.gz
interval_of() { [ "$1" = reserved ] && echo 80 || echo 40; }  # the reservation takes as long as the first save would wait
saving() { # RUN
  local name=saving_$1 begin; begin=$(date +%s)
  SAVE_LOG=$K/$name.debug RESERVE=$([ "$1" = reserved ] && echo 1 || echo 0) turn train "$K/$name" "$DATA" $M train.global_batch_size=8 \
    train.train_iters=$((2 * $(interval_of "$1"))) checkpoint.save_interval="$(interval_of "$1")" checkpoint.keep_last=2 logger.log_interval=1 \
    model.num_moe_experts=128 model.moe_ffn_hidden_size="${WIDTH:-1280}" > "$S/$name.log" 2>&1; local rc=$?
  { echo "SAVING $1 rc=$rc (124, 134: cut off) wall $(($(date +%s) - begin)) s"
    python3 benchmarks/gpu/saving_table.py "$K/$name" "$(interval_of "$1")" "$K/$name.debug"; } | tee -a "$OUT/saving.txt"
  cp "$K/$name/metrics.jsonl" "$S/$name.jsonl"; cp "$K/$name.debug" "$S/$name.debug.txt"
  tail -c 20000 "$S/$name.log" > "$S/$name.log.end"; mv "$S/$name.log.end" "$S/$name.log"
  rm -rf "$K/$name/checkpoints"; }
(while sleep 0.5; do ps -eo pid,rss,args | awk '/spawn_main/ && !/awk/ {print $1, $2}'; done > "$K/writer_rss") & sampler=$!
LIMIT=${SAVING_LIMIT:-200}
timeout 90 python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_saving.py --basetemp="$K/tmp_saving" -vv -rA -k reserved \
  > "$S/tests_reserved.txt" 2>&1 & runs=$!  # while the first run imports
for run in ${SAVING-plain reserved}; do saving "$run" & runs="$runs $!"; sleep 2; done  # the first one takes the first turn
wait $runs
kill $sampler; wait $sampler 2>/dev/null
awk '$2 > m[$1] {m[$1] = $2} END {for (p in m) if (m[p] > 2e6) print "SAVING writer process " p " at most " m[p] " kB"}' "$K/writer_rss" | tee -a "$OUT/saving.txt"
grep -E "^(PASSED|FAILED|ERROR)|^E  |^=====" "$S/tests_reserved.txt" | cut -c1-200 | tee -a "$OUT/saving.txt"
tar -czf "$OUT/saving.tar.gz" -C "$K" saving
