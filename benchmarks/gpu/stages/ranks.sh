# The 1.2 B model of one_hopper on all GPUs of the machine, each GPU with the batch that one has alone, in the order of RUNS:
# `nano3` (its own command, data parallel), `plain` Megatron-Bridge under torchrun with the same container, and with nano3 what else
# the GPUs can share out: `experts`, `tensor`, `pipeline` and `context`. The stage `tuning` measures one GPU alone. PROFILED names runs of which two late steps are profiled, on every rank.
GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
SAME=(train.train_iters=20 train.seq_length=4096 train.micro_batch_size=16 "train.global_batch_size=$((32 * GPUS))" train.eval_interval=0 logger.log_interval=5
  checkpoint.save_interval=0 scheduler.lr_wsd_decay_iters=5 scheduler.lr_warmup_iters=2 optimizer.lr=1e-4)
PROFILE=(use_pytorch_profiler=true profile_step_start=16 profile_step_end=18 "profile_ranks=[$(seq -s, 0 $((GPUS - 1)))]")
number=0
for run in ${RUNS:-nano3 plain nano3 plain experts}; do
  number=$((number + 1)); name=${number}_$run; words=("${SAME[@]}")
  [[ " ${PROFILED:-} " == *" $name "* ]] && words+=("${PROFILE[@]/#/megatron.profiling.}")
  command=(-m nano3.pretrain data_blend=sample model=nemotron_3_nano_1b train=one_hopper run.data="$DATA" run.output_dir="$K/ranks_$name" cluster.nproc_per_node="$GPUS")
  case $run in
    experts) words+=("model.expert_model_parallel_size=$GPUS");;
    tensor) words+=("model.tensor_model_parallel_size=$GPUS" model.sequence_parallel=true);;
    pipeline) words+=("model.pipeline_model_parallel_size=$GPUS");;
    context) words+=("model.context_parallel_size=$GPUS");;
    plain)
      command=(-m torch.distributed.run --nproc-per-node "$GPUS" benchmarks/gpu/plain.py "$K/ranks_$name" "$DATA" conf/model/nemotron_3_nano_1b.yaml)
      words+=(megatron.model.recompute_granularity=null megatron.model.recompute_modules=null);;
  esac
  [ "$run" = plain ] || words=("${words[@]/#megatron.profiling/+megatron.profiling}")
  say "ranks: $name"
  timeout -s ABRT -k 5 "${LIMIT:-190}" python3 -X faulthandler "${command[@]}" "${words[@]}" > "$OUT/ranks_$name.log" 2>&1
  echo "rc=$? ms: $(grep -oE "Step Time : [0-9.]+" "$OUT/ranks_$name.log" | awk '{printf "%d ", $NF * 1000}')"
  cp "$K/ranks_$name/metrics.jsonl" "$OUT/ranks_$name.jsonl" 2>/dev/null
  grep -hE "^(first step|iteration|error)|Error:" "$OUT/ranks_$name.log" | cut -c1-200
  for trace in "$K/ranks_$name"/tensorboard/torch_profile/rank-*.json.gz; do
    [ -f "$trace" ] || continue
    python3 benchmarks/gpu/profile_table.py "$trace" > "$OUT/ranks_${name}_$(basename "$trace" .json.gz).txt" 2>&1 &
  done
done
wait
