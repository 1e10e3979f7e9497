# The 1.2 B model of one_hopper on all GPUs of the machine by nano3's own command, each GPU with the batch that one has alone:
# data parallel, experts over all, and plain Megatron-Bridge, data parallel. What one GPU does alone the stage `tuning` tells.
GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
SAME=(train.train_iters=15 train.seq_length=4096 train.micro_batch_size=16 "train.global_batch_size=$((32 * GPUS))" train.eval_interval=0 logger.log_interval=5
  checkpoint.save_interval=0 scheduler.lr_wsd_decay_iters=5 scheduler.lr_warmup_iters=2 optimizer.lr=1e-4)
ranks() { # NAME WORDS...
  say "ranks: $1"
  timeout -s ABRT -k 5 "${LIMIT:-180}" python3 -X faulthandler -m nano3.pretrain data_blend=sample model=nemotron_3_nano_1b train=one_hopper run.data="$DATA" \
    run.output_dir="$K/ranks_$1" cluster.nproc_per_node="$GPUS" "${SAME[@]}" "${@:2}" > "$OUT/ranks_$1.log" 2>&1
  echo "rc=$?"; cp "$K/ranks_$1/metrics.jsonl" "$OUT/ranks_$1.jsonl" 2>/dev/null
  grep -hE "^(fresh|adapted|first step|iteration|error|memory per)|Error:" "$OUT/ranks_$1.log" | cut -c1-200; }
ranks data_parallel
ranks experts_over_all "model.expert_model_parallel_size=$GPUS"
say "ranks: plain Megatron-Bridge, data parallel"
timeout -s ABRT -k 5 "${LIMIT:-180}" python3 -m torch.distributed.run --nproc-per-node "$GPUS" benchmarks/gpu/plain.py "$K/ranks_plain" "$DATA" conf/model/nemotron_3_nano_1b.yaml \
  "${SAME[@]}" megatron.model.recompute_granularity=null megatron.model.recompute_modules=null > "$OUT/ranks_plain.log" 2>&1
echo "rc=$? plain ms: $(grep -oE "elapsed time per iteration \(ms\): [0-9.]+" "$OUT/ranks_plain.log" | awk '{print $NF}' | tr '\n' ' ')"
