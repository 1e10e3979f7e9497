# How long training stands still for a save of the 1.2 B model (15 GB), in the foreground and in the background: Megatron's own
# timer "save-checkpoint" in ms, the wall time of the whole command, and the largest resident memory of the writer process in kB.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
for background in ${SAVING-false true}; do
  say "saving with async_save=$background"
  (while sleep 0.5; do ps -eo rss,args | awk '/spawn_main|spawn main/ && !/awk/ {if ($1 > m) m = $1} END {print m + 0}'; done > "$K/writer_rss") & sampler=$!
  begin=$(date +%s)
  LIMIT=200 turn train "$K/saving_$background" "$DATA" $W train.train_iters=24 checkpoint.save_interval=6 checkpoint.keep_last=1 \
    logger.log_interval=1 megatron.checkpoint.async_save=$background > "$OUT/saving_$background.log" 2>&1; rc=$?
  kill $sampler; wait $sampler 2>/dev/null
  {
    echo "SAVING async_save=$background rc=$rc wall $(($(date +%s) - begin)) s, writer $(sort -n "$K/writer_rss" | tail -1) kB"
    grep -A3 "save-checkpoint" "$OUT/saving_$background.log" | grep -oE "save-checkpoint[ .:]+\([0-9., ]+\)" 
    python3 -c "
import json
rows = [json.loads(line) for line in open('$K/saving_$background/metrics.jsonl')]
steps = [r['seconds_per_iteration'] for r in rows if 'loss' in r]
print('seconds per iteration:', [round(s, 3) for s in steps])"
  } | tee -a "$OUT/saving.txt"
  rm -rf "$K/saving_$background/checkpoints"
done
