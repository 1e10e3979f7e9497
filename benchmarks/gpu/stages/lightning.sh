# Multi-token prediction: the micro sibling of Nemotron 3.5 Lightning with Lightning's recipe, and every recorded recipe against
# the installed one (tests/gpu/test_gpu_lightning.py).
export NANO3_GPU_RUNS=$K/tests
mkdir -p "$NANO3_GPU_RUNS/logs"
timeout -k 10 "${LIGHTNING_LIMIT:-420}" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_lightning.py --basetemp="$K/tmp_lightning" -n 4 -vv -rA > "$OUT/lightning.txt" 2>&1
echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  |^(loss|mtp_|FLOPs)" "$OUT/lightning.txt" | cut -c1-220
cp "$NANO3_GPU_RUNS/output/nano3/runs/lightning/metrics.jsonl" "$OUT/lightning.jsonl" 2>/dev/null
tar -czf "$OUT/lightning_logs.tar.gz" -C "$NANO3_GPU_RUNS" logs
say "end of lightning"
