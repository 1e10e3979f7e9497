# A run that diverges says so; torchrun works; a time limit stops with a checkpoint.
run diverges $MICRO scheduler.lr_wsd_decay_iters=10 train.train_iters=40 train.eval_interval=0 logger.log_interval=1 checkpoint.save_interval=0 optimizer.lr=1e30 optimizer.clip_grad=0
say torchrun
timeout -s ABRT -k 10 "$LIMIT" python3 -m torch.distributed.run --nproc-per-node=1 --master-port=29588 benchmarks/gpu/train.py "$K/torchrun" "$DATA" $MICRO scheduler.lr_wsd_decay_iters=10 train.train_iters=400 train.eval_interval=0 train.exit_duration_in_mins=0.5 logger.log_interval=5 > "$OUT/torchrun.log" 2>&1; echo "rc=$?"; show torchrun
