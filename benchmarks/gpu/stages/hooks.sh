# What nano3's callback costs inside the loop, in one process (benchmarks/gpu/hooks.py): attention and experts alone, whose kernels compile fast.
say hooks
timeout "${LIMIT:-400}" python3 benchmarks/gpu/hooks.py "$K/hooks" "$DATA" conf/model/nemotron_3_nano_micro.yaml 'model.hybrid_layer_pattern=E*E*E*E*' train.seq_length=1024 train.micro_batch_size=8 train.global_batch_size=32 train.train_iters="${STEPS:-320}" train.eval_interval=0 checkpoint.save_interval=0 logger.log_interval=10 optimizer.lr=2e-3 scheduler.lr_warmup_iters=5 scheduler.lr_wsd_decay_iters=10 > "$OUT/hooks.log" 2>&1; echo "rc=$?"
grep -E "^(BLOCK|RESULT)" "$OUT/hooks.log" | tee "$OUT/hooks.txt"
