# The guard on a poisoned document: rollback, the same by hand, and a step that is left out (tests/gpu/test_gpu_guard.py).
export NANO3_GPU_RUNS=$K/tests
mkdir -p "$NANO3_GPU_RUNS/logs"
timeout -k 10 "${GUARD_LIMIT:-420}" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_guard.py --basetemp="$K/tmp_guard" -n 3 -vv -rA > "$OUT/guard.txt" 2>&1
echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  " "$OUT/guard.txt" | cut -c1-220
for name in guarded by_hand dropped; do
  for file in metrics.jsonl guard.jsonl skipped.json; do
    cp "$NANO3_GPU_RUNS/output/nano3/runs/$name/$file" "$OUT/guard_$name.$file" 2>/dev/null; done; done
tar -czf "$OUT/guard_logs.tar.gz" -C "$NANO3_GPU_RUNS" logs
say "end of guard"
