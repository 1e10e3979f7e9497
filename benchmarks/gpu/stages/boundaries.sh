# train.document_boundaries: the tests (PART=tests), and the speed of the 1.2 B model with and without isolation (PART=speed), on
# documents of at most 1,500 tokens: cross as the recipe has it, cross without CUDA graphs, and isolate, alternated.
if [ "${PART:-tests}" = tests ]; then
  export NANO3_GPU_RUNS=$K/tests
  mkdir -p "$NANO3_GPU_RUNS/logs"
  timeout -k 10 "${TESTS_LIMIT:-560}" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_boundaries.py --basetemp="$K/tmp_boundaries" -n "${WORKERS:-5}" --dist worksteal -vv -rA > "$OUT/boundaries_tests.txt" 2>&1
  echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  |^NEIGHBORS" "$OUT/boundaries_tests.txt" | cut -c1-300
  grep -h "^NEIGHBORS" "$NANO3_GPU_RUNS"/logs/*.txt | tee "$OUT/boundaries_neighbors.txt"
  for run in isolate_megatron isolate_transformers isolate_mask_megatron isolate_mask_transformers mask_megatron mask_transformers isolate_1 isolate_8 isolated; do
    cp "$NANO3_GPU_RUNS/output/nano3/runs/$run/metrics.jsonl" "$OUT/boundaries_$run.jsonl" 2>/dev/null; done
  tar -czf "$OUT/boundaries_logs.tar.gz" -C "$NANO3_GPU_RUNS" logs
else
  source "$ROOT/benchmarks/gpu/stages/speed.sh"
  SHORT=$K/data1500
  [ -d "$SHORT" ] || python3 -m nano3.data_prep data_blend=sample data_blend.name=short output_dir="$SHORT" valid_fraction=0.05 max_doc_tokens=1500 > "$OUT/boundaries_data.txt" 2>&1 || cat "$OUT/boundaries_data.txt"
  DATA=$SHORT
  grep -hE "train |tokens" "$OUT/boundaries_data.txt" | tail -4 | cut -c1-200
  declare -A KIND=([cross]="" [isolate]="train.document_boundaries=isolate" [cross_no_graphs]="megatron.model.cuda_graph_impl=none megatron.model.cuda_graph_modules=[]")
  for round in ${ROUNDS:-1 2}; do
    [ $((round % 2)) = 1 ] && order="cross isolate cross_no_graphs" || order="cross_no_graphs isolate cross"
    for size in ${SIZES:-16 1}; do
      [ "$size" = 1 ] && batch=8 || batch=32
      for kind in $order; do
        queue tune "boundaries_${kind}_mbs${size}_$round" ${KIND[$kind]} train.micro_batch_size=$size train.global_batch_size=$batch; done; done; done
  drain
fi
say "end of boundaries"
