# Fresh start, kill -9 in the middle, resume, SIGTERM, resume to the end; and the same run undisturbed.
A="$MICRO train.train_iters=60 train.eval_interval=20 train.eval_iters=4 logger.log_interval=5 checkpoint.save_interval=15 scheduler.lr_wsd_decay_iters=15"
say "disturbed: start, kill -9 after iteration 25"
timeout -s ABRT -k 10 $LIMIT python3 -X faulthandler benchmarks/gpu/train.py "$K/disturbed" "$DATA" $A > "$OUT/disturbed_1.log" 2>&1 & P=$!
for _ in $(seq 600); do grep -q "^iteration 25" "$OUT/disturbed_1.log" 2>/dev/null && break; kill -0 $P 2>/dev/null || break; sleep 0.3; done
pkill -KILL -P $P python3; kill -KILL $P 2>/dev/null; wait $P 2>/dev/null; echo "rc=$?"; show disturbed_1; ls "$K/disturbed/checkpoints"
mkdir -p "$K/disturbed/checkpoints/iter_0000030"; echo half > "$K/disturbed/checkpoints/iter_0000030/__0_0.distcp"
say "disturbed: resume, SIGUSR2 after iteration 45"
timeout -s ABRT -k 10 $LIMIT python3 -X faulthandler benchmarks/gpu/train.py "$K/disturbed" "$DATA" $A > "$OUT/disturbed_2.log" 2>&1 & P=$!
for _ in $(seq 600); do grep -q "^iteration 40" "$OUT/disturbed_2.log" 2>/dev/null && break; kill -0 $P 2>/dev/null || break; sleep 0.3; done
pkill -USR2 -P $P python3; wait $P; echo "rc=$?"; show disturbed_2; ls "$K/disturbed/checkpoints"
run disturbed $A; cp "$K/disturbed/metrics.jsonl" "$OUT/disturbed.jsonl"; ls "$K/disturbed/checkpoints"
run disturbed $A   # a finished run does nothing
run undisturbed $A; cp "$K/undisturbed/metrics.jsonl" "$OUT/undisturbed.jsonl"
