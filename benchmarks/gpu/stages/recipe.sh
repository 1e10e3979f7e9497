# The production recipe on all GPUs of the machine: `+experiment=nano3` with its widths, its 128 experts spread over the GPUs, and
# 131,072 ids, as many layers as fit. Predicted and measured memory, the same through plain Megatron-Bridge, and with several GPUs
# a checkpoint and a resume. TEKKEN is a tokenizer folder; without it one is made from .gpu/tekken.tar.xz (mistral-common's file).
GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
case $GPUS in 1|2) deep=MEM*E;; 4) deep=MEMEM*EMEMEM*E;; *) deep=$(awk '/^hybrid_layer_pattern/{print $2}' conf/model/nemotron_3_nano.yaml);; esac
ITERS=${ITERS:-24}; LENGTH=${LENGTH:-$([ "$GPUS" = 1 ] && echo 4096 || echo 8192)}; SAVE=0; [ "$GPUS" = 1 ] || SAVE=$((ITERS - 4))
SAME=("model.hybrid_layer_pattern=${PATTERN:-$deep}" "model.expert_model_parallel_size=$GPUS" train.train_iters=$ITERS train.seq_length=$LENGTH
  train.micro_batch_size=${MICRO_BATCH:-1} train.global_batch_size=${BATCH:-$((8 * GPUS))} train.eval_interval=0 optimizer.lr=3e-4 optimizer.min_lr=3e-5
  scheduler.lr_warmup_iters=4 scheduler.lr_wsd_decay_iters=4 logger.log_interval=4 ${EXTRA:-})
OURS=(-m nano3.pretrain +experiment=nano3 data_blend=sample run.data="$K/data131k" run.output_dir="$K/recipe" cluster.nproc_per_node=$GPUS
  train.exit_iteration=null checkpoint.save_interval=$SAVE "${SAME[@]}")
limited() { timeout -s ABRT -k 5 "${RECIPE_LIMIT:-300}" python3 -X faulthandler "$@"; echo "rc=$?"; }
if [ -z "${TEKKEN:-}" ]; then
  TEKKEN=$K/tekken; mkdir -p "$K/mistral"; python3 -m tarfile -e "$G/tekken.tar.xz" "$K/mistral"
  PYTHONPATH=$K/mistral:benchmarks/data:$PYTHONPATH python3 -c "import sys, pathlib, tokenizer; tokenizer.build(pathlib.Path(sys.argv[1]))" "$TEKKEN"
fi
[ -d "$K/data131k" ] || python3 -m nano3.data_prep data_blend=sample tokenizer_model="$TEKKEN" output_dir="$K/data131k" num_shards=4 valid_fraction=0.05 > "$OUT/recipe_data.txt" 2>&1 || cat "$OUT/recipe_data.txt"
say "recipe: $GPUS GPU(s), ${SAME[*]}"
limited "${OURS[@]}" dry_run=true > "$OUT/recipe_preflight.txt" 2>&1; grep -E "memory|parameters|error|rc=" "$OUT/recipe_preflight.txt"
rm -rf "$K/recipe"
[ "$SAVE" = 0 ] || limited "${OURS[@]}" train.exit_iteration=$SAVE > "$OUT/recipe_begun.txt" 2>&1
limited "${OURS[@]}" > "$OUT/recipe.txt" 2>&1
grep -hE "^(fresh|resuming|first step|iteration|error|rc=)|OutOfMemory" "$OUT"/recipe_begun.txt "$OUT/recipe.txt" 2>/dev/null | cut -c1-200
cp "$K/recipe/metrics.jsonl" "$OUT/recipe.jsonl"
say "recipe: plain Megatron-Bridge"
limited -m torch.distributed.run --nproc-per-node "$GPUS" benchmarks/gpu/plain.py "$K/recipe_plain" "$K/data131k" conf/model/nemotron_3_nano.yaml "${SAME[@]}" checkpoint.save_interval=0 train.train_iters=12 > "$OUT/recipe_plain.txt" 2>&1
tail -1 "$OUT/recipe_plain.txt"; echo "plain ms: $(grep -oE "elapsed time per iteration \(ms\): [0-9.]+" "$OUT/recipe_plain.txt" | awk '{print $NF}' | tr '\n' ' ')"
python3 -c "
import json, sys
rows = [m for m in map(json.loads, open(sys.argv[1])) if 'loss' in m]
print('nano3: no iteration was logged') if not rows else print('nano3 ms:', *[round(m['seconds_per_iteration'] * 1e3) for m in rows], '| GB', rows[-1].get('memory_gb'), '| MFU', rows[-1].get('mfu'))" "$OUT/recipe.jsonl"
