# Two GPUs: what must be right on the second one while the first one is measured.
export GPUS=2
( export CUDA_VISIBLE_DEVICES=1; source "$ROOT/benchmarks/gpu/stages/weights.sh"; source "$ROOT/benchmarks/gpu/stages/overhead.sh"
  unset HF_HUB_OFFLINE; source "$ROOT/benchmarks/gpu/stages/qwen.sh" ) > "$OUT/second.out" 2>&1 & second=$!
source "$ROOT/benchmarks/gpu/stages/tuning.sh" 2>&1
wait "$second"
