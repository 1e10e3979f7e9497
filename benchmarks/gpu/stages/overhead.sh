# nano3 against plain Megatron-Bridge with the same container, alternated; both report Megatron-Bridge's own step time.
A="$MICRO scheduler.lr_wsd_decay_iters=10 train.train_iters=60 train.eval_interval=0 checkpoint.save_interval=0 logger.log_interval=10"
measure() { # SCRIPT ROUND
  TURN=$K/turn_1 timeout -s ABRT -k 5 150 python3 benchmarks/gpu/$1.py "$K/overhead_$1_$2" "$DATA" $A > "$OUT/overhead_$1_$2.log" 2>&1; local rc=$?
  echo "OVERHEAD $1 $2 rc=$rc ms: $(grep -oE "elapsed time per iteration \(ms\): [0-9.]+" "$OUT/overhead_$1_$2.log" | awk '{print $NF}' | tail -5 | tr '\n' ' ')"; }
previous=
queue() { "$@" & local now=$!; [ -n "$previous" ] && wait "$previous"; previous=$now; }
for round in 1 2; do queue measure train $round; queue measure plain $round; done
wait "$previous"
