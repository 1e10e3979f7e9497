# tests/gpu: the undisturbed run first and alone (it compiles and tunes the kernels), unless compiled kernels were brought along,
# then everything else side by side, over all GPUs.
export NANO3_GPU_RUNS=$K/tests
mkdir -p "$NANO3_GPU_RUNS/logs"
tests() { # SECONDS NAME PYTEST_ARGUMENTS...
  timeout -k 10 "$1" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu --basetemp="$K/tmp_$2" -vv -rA "${@:3}" > "$OUT/tests_$2.txt" 2>&1
  echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  " "$OUT/tests_$2.txt" | cut -c1-220 | tail -${LINES_SHOWN:-60}; }
warm=$(find "$NANO3_CACHE/kernels" -name "*.cubin" 2>/dev/null | head -1)
if [ -n "$warm" ]; then
  export TORCHINDUCTOR_COMPILE_THREADS=1  # else each of the runs side by side forks 16 processes that have nothing to compile
elif [ ! -f "$NANO3_GPU_RUNS/undisturbed.made" ]; then
  say "tests: the first run, cold"
  LINES_SHOWN=15 tests 330 first -k it_learns
  grep -h "first step done" "$NANO3_GPU_RUNS"/logs/*.txt
fi
if [ -n "$warm" ] || [ -f "$NANO3_GPU_RUNS/undisturbed.made" ]; then
  say "tests: the rest"
  mkdir -p "$NANO3_GPU_RUNS/output/nano3/runs"
  find "$NANO3_GPU_RUNS/output/nano3/runs" -mindepth 1 -maxdepth 1 ! -name undisturbed -exec rm -rf {} +
  rm -f "$NANO3_GPU_RUNS"/{first_weights,followed}.made
  tests "${TESTS_LIMIT:-360}" rest -n "$((7 * $(nvidia-smi -L | wc -l)))" --dist worksteal ${TESTS:+-k "$TESTS"}
fi
for name in undisturbed disturbed follow_megatron follow_transformers; do
  cp "$NANO3_GPU_RUNS/output/nano3/runs/$name/metrics.jsonl" "$OUT/$name.jsonl" 2>/dev/null; done
tar -czf "$OUT/logs.tar.gz" -C "$NANO3_GPU_RUNS" logs $(cd "$NANO3_GPU_RUNS" && ls -d output/nano3/runs/*/logs)
say "end of tests"
