# nano3's own order in both backends: the same token ids over stages, a resume with another mixture, an audit
# (tests/gpu/test_gpu_order.py). ORDER_TESTS chooses tests, as pytest's -k.
export NANO3_GPU_RUNS=$K/tests
mkdir -p "$NANO3_GPU_RUNS/logs"
timeout -k 10 "${ORDER_LIMIT:-480}" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_order.py --basetemp="$K/tmp_order" -n "${ORDER_WORKERS:-3}" ${ORDER_TESTS:+-k "$ORDER_TESTS"} -vv -rA > "$OUT/order.txt" 2>&1
echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  |tokens/s$" "$OUT/order.txt" | cut -c1-220
for name in order_megatron order_transformers; do
  for file in metrics.jsonl order.json; do
    cp "$NANO3_GPU_RUNS/output/nano3/runs/$name/$file" "$OUT/${name}.$file" 2>/dev/null; done; done
tar -czf "$OUT/order_logs.tar.gz" -C "$NANO3_GPU_RUNS" logs
say "end of order"
