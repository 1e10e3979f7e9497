# How long training stands still for a save of 13 GB in the background (SAVING="true false": in the foreground too), by nano3's own
# clock (seconds/save in metrics.jsonl), and the largest resident memory of the writer process. The model is the micro one with 128
# experts ten times as wide (1.0 B parameters): its kernels are those of the tests, and its steps are short. The first save begins
# after 150 steps; the run may be cut off when that is complete.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
saving() { # BACKGROUND INTERVAL
  local name=saving_$1 begin; begin=$(date +%s)
  turn train "$K/$name" "$DATA" $M train.global_batch_size=8 train.train_iters=$((2 * $2)) checkpoint.save_interval=$2 checkpoint.keep_last=2 \
    model.num_moe_experts=128 model.moe_ffn_hidden_size=2560 logger.log_interval=1 megatron.checkpoint.async_save=$1 > "$OUT/$name.log" 2>&1; local rc=$?
  { echo "SAVING async_save=$1 rc=$rc (124, 134: cut off) wall $(($(date +%s) - begin)) s"
    python3 benchmarks/gpu/saving_table.py "$K/$name" "$2"; } | tee -a "$OUT/saving.txt"
  cp "$K/$name/metrics.jsonl" "$OUT/$name.jsonl"; tail -c 20000 "$OUT/$name.log" > "$OUT/$name.log.end"; mv "$OUT/$name.log.end" "$OUT/$name.log"
  rm -rf "$K/$name/checkpoints"; }
(while sleep 0.5; do ps -eo rss,args | awk '/spawn_main/ && !/awk/ {if ($1 > m) m = $1} END {print m + 0}'; done > "$K/writer_rss") & sampler=$!
LIMIT=${SAVING_LIMIT:-150}
for background in ${SAVING-true}; do saving "$background" "$([ "$background" = true ] && echo 150 || echo 8)"; done
kill $sampler; wait $sampler 2>/dev/null
echo "SAVING writer process at most $(sort -n "$K/writer_rss" | tail -1) kB" | tee -a "$OUT/saving.txt"
