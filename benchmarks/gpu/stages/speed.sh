# Speed of the 1.2 B hybrid. While one process trains, the next one imports and waits for its turn.
#   OVERHEAD: nano3 and plain Megatron-Bridge with the same container, alternated; Megatron-Bridge's own milliseconds a step.
#   TUNE: one change at a time to train=one_hopper; the line that counts is the last one (iterations 11 to 15).
# GPU=1 takes another GPU than the first; two such commands may run side by side, each with files named after its GPU.
GPU=${GPU:-0}; AT=$([ "$GPU" = 0 ] || echo "_gpu$GPU")
W="conf/model/nemotron_3_nano_1b.yaml train.seq_length=4096 train.global_batch_size=32 train.micro_batch_size=16 train.train_iters=15 train.eval_interval=0 logger.log_interval=5 checkpoint.save_interval=0 scheduler.lr_wsd_decay_iters=5 scheduler.lr_warmup_iters=2 optimizer.lr=1e-4 megatron.model.recompute_granularity=null megatron.model.recompute_modules=null megatron.model.moe_router_fusion=true megatron.ddp.check_for_nan_in_grad=false megatron.ddp.check_for_large_grads=false megatron.rerun_state_machine.check_for_nan_in_loss=false megatron.train.check_optimizer_step_success=false megatron.train.skip_sync_grad_norm_across_mp=true"  # as conf/train/one_hopper.yaml
# The micro model, bound by the host.
M="conf/model/nemotron_3_nano_micro.yaml train.seq_length=1024 train.micro_batch_size=8 train.global_batch_size=32 train.train_iters=${STEPS:-150} train.eval_interval=0 checkpoint.save_interval=0 logger.log_interval=10 optimizer.lr=2e-3 scheduler.lr_warmup_iters=5 scheduler.lr_wsd_decay_iters=10"
turn() { TURN=$K/turn$AT CUDA_VISIBLE_DEVICES=$GPU timeout -s ABRT -k 5 "${LIMIT:-400}" python3 -X faulthandler "benchmarks/gpu/$1.py" "${@:2}"; }
tune() { # NAME ARGUMENTS...
  local name=$1$AT; shift
  turn train "$K/tune_$name" "$DATA" $W "$@" > "$OUT/tune_$name.log" 2>&1; local rc=$?
  cp "$K/tune_$name/metrics.jsonl" "$OUT/tune_$name.jsonl" 2>/dev/null
  tail -1 "$K/tune_$name/metrics.jsonl" 2>/dev/null | python3 -c "
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    print('TUNE', '$name', 'rc=$rc', m['iteration'], f\"{m['seconds_per_iteration'] * 1e3:.0f} ms {m['tokens_per_s']:,.0f} tokens/s {m['tflops_per_gpu']:.0f} TFLOP/s MFU {m['mfu']:.1%} {m['memory_gb']:.1f} GB loss {m['loss']:.3f}\")"
  grep -hE "OutOfMemory|Error:|^Failure|REFUSED" "$OUT/tune_$name.log" | tail -1 | cut -c1-240; }
overhead() { # SCRIPT ROUND ARGUMENTS...
  local name="overhead_$1_$2$AT"
  turn "$1" "$K/$name" "$DATA" "${@:3}" > "$OUT/$name.log" 2>&1; local rc=$?
  echo "OVERHEAD $1 $2$AT rc=$rc ms: $(grep -oE "elapsed time per iteration \(ms\): [0-9.]+" "$OUT/$name.log" | awk '{print $NF}' | tr '\n' ' ')" | tee -a "$OUT/overhead$AT.txt"; }
previous=
queue() { "$@" & local now=$!; [ -n "$previous" ] && wait "$previous"; previous=$now; say "queued $*" | cut -c1-90; }
drain() { wait "$previous"; previous=; }
