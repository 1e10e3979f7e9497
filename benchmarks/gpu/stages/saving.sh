# How long training stands still for a save of the 1.2 B model (15 GB), in the background and in the foreground, by nano3's own
# clock (seconds/save in metrics.jsonl), and the largest resident memory of the writer process. In the background a save must be
# complete before the next one begins, so that there are 42 steps in between. While the first run trains, the second one imports.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
saving() { # BACKGROUND INTERVAL
  local name=saving_$1 begin; begin=$(date +%s)
  turn train "$K/$name" "$DATA" $W train.train_iters=$((2 * $2)) checkpoint.save_interval=$2 checkpoint.keep_last=2 \
    logger.log_interval=1 megatron.checkpoint.async_save=$1 > "$OUT/$name.log" 2>&1; local rc=$?
  { echo "SAVING async_save=$1 rc=$rc wall $(($(date +%s) - begin)) s"
    python3 benchmarks/gpu/saving_table.py "$K/$name" "$2"; } | tee -a "$OUT/saving.txt"
  cp "$K/$name/metrics.jsonl" "$OUT/$name.jsonl"; rm -rf "$K/$name/checkpoints"; }
(while sleep 0.5; do ps -eo rss,args | awk '/spawn_main/ && !/awk/ {if ($1 > m) m = $1} END {print m + 0}'; done > "$K/writer_rss") & sampler=$!
LIMIT=${SAVING_LIMIT:-520}
for background in ${SAVING-true false}; do queue saving "$background" "$([ "$background" = true ] && echo 42 || echo 8)"; done
drain
kill $sampler; wait $sampler 2>/dev/null
echo "SAVING writer process at most $(sort -n "$K/writer_rss" | tail -1) kB" | tee -a "$OUT/saving.txt"
