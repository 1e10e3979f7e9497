# nano3 against plain Megatron-Bridge: the 1.2 B model (bound by the GPU), then the micro model (bound by the host: the worst case).
source "$ROOT/benchmarks/gpu/stages/speed.sh"
M="conf/model/nemotron_3_nano_micro.yaml train.seq_length=1024 train.micro_batch_size=8 train.global_batch_size=32 train.train_iters=${STEPS:-150} train.eval_interval=0 checkpoint.save_interval=0 logger.log_interval=10 optimizer.lr=2e-3 scheduler.lr_warmup_iters=5 scheduler.lr_wsd_decay_iters=10"
for round in ${ROUNDS_1B-1 2}; do queue overhead train "1b_$round" $W train.train_iters=25; queue overhead plain "1b_$round" $W train.train_iters=25; done
for round in ${ROUNDS_MICRO-1 2}; do queue overhead train "micro_$round" $M; queue overhead plain "micro_$round" $M; done
drain
