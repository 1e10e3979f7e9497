# nano3 against plain Megatron-Bridge: the 1.2 B model (bound by the GPU), then the micro model (bound by the host: the worst case).
source "$ROOT/benchmarks/gpu/stages/speed.sh"
# In every other round plain Megatron-Bridge goes first.
both() { [ $(($1 % 2)) = 1 ] && echo train plain || echo plain train; }
for round in ${ROUNDS_1B-1 2}; do for script in $(both "$round"); do queue overhead $script "1b_$round" $W train.train_iters=25; done; done
for round in ${ROUNDS_MICRO-1 2}; do for script in $(both "$round"); do queue overhead $script "micro_$round" $M; done; done
drain
