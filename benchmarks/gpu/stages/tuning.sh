# Speed of a 1.24 B hybrid MoE under one change at a time; the line that counts is the last one (iterations 11 to 15). While one
# variant trains, the next one imports and waits. Two ranks with experts over both, then resumed on one, stand in the queue too.
W="conf/model/nemotron_3_nano_1b.yaml train.seq_length=4096 train.global_batch_size=32 train.train_iters=15 train.eval_interval=0 logger.log_interval=5 checkpoint.save_interval=0 scheduler.lr_wsd_decay_iters=5 scheduler.lr_warmup_iters=2 optimizer.lr=1e-4"
NONE="megatron.model.recompute_granularity=null megatron.model.recompute_modules=null"
tune() { # NAME ARGUMENTS...
  local name=$1; shift
  TURN=$K/turn_0 CUDA_VISIBLE_DEVICES=0 timeout -s ABRT -k 5 330 python3 -X faulthandler benchmarks/gpu/train.py "$K/tune_$name" "$DATA" $W "$@" > "$OUT/tune_$name.log" 2>&1; local rc=$?
  cp "$K/tune_$name/metrics.jsonl" "$OUT/tune_$name.jsonl" 2>/dev/null
  tail -1 "$K/tune_$name/metrics.jsonl" 2>/dev/null | python3 -c "
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    print('TUNE', '$name', 'rc=$rc', m['iteration'], f\"{m['seconds_per_iteration'] * 1e3:.0f} ms {m['tokens_per_s']:,.0f} tokens/s {m['tflops_per_gpu']:.0f} TFLOP/s MFU {m['mfu']:.1%} {m['memory_gb']:.1f} GB loss {m['loss']:.3f}\")"
  grep -hE "OutOfMemory|Error:|^Failure|REFUSED" "$OUT/tune_$name.log" | tail -1 | cut -c1-240; }
two() { # the same folder: first two ranks, then one
  local A="$MICRO train.train_iters=40 train.eval_interval=20 train.eval_iters=4 logger.log_interval=5 checkpoint.save_interval=100 scheduler.lr_wsd_decay_iters=10"
  if [ "$1" = 2 ]; then
    TURN=$K/turn_0 timeout -s ABRT -k 5 200 python3 -m torch.distributed.run --nproc-per-node=2 --master-port=29588 benchmarks/gpu/train.py "$K/two" "$DATA" $A model.expert_model_parallel_size=2 train.exit_iteration=20 > "$OUT/two_ranks.log" 2>&1; echo "two ranks rc=$?"; show two_ranks 14
  else
    TURN=$K/turn_0 CUDA_VISIBLE_DEVICES=0 timeout -s ABRT -k 5 200 python3 benchmarks/gpu/train.py "$K/two" "$DATA" $A > "$OUT/two_then_one.log" 2>&1; echo "then one rc=$?"; show two_then_one 20; cp "$K/two/metrics.jsonl" "$OUT/two_then_one.jsonl"
  fi; }
previous=
queue() { "$@" & local now=$!; [ -n "$previous" ] && wait "$previous"; previous=$now; say "queued $*" | cut -c1-90; }
queue tune mbs4_recipe train.micro_batch_size=4
queue tune mbs8_no_recompute train.micro_batch_size=8 $NONE
queue tune mbs16_no_recompute train.micro_batch_size=16 $NONE
if [ "${GPUS:-1}" = 2 ]; then queue two 2; wait "$previous"; previous=; queue two 1; fi
queue tune mbs16_fp8 train.micro_batch_size=16 $NONE megatron.mixed_precision=bf16_with_fp8_current_scaling_mixed megatron.model.moe_router_padding_for_quantization=true
queue tune mbs16_more_graphs train.micro_batch_size=16 $NONE "megatron.model.cuda_graph_modules=[attn,mamba,moe_router,moe_preprocess]"
queue tune mbs16_no_graphs train.micro_batch_size=16 $NONE megatron.model.cuda_graph_impl=none "megatron.model.cuda_graph_modules=[]"
wait "$previous"
