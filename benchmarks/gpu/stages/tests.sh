# tests/gpu: the undisturbed run first and alone (it compiles and tunes the kernels), then everything else side by side,
# and beside that the kernels of the 1.2 B model are compiled (not tuned: the GPU is busy).
export NANO3_GPU_RUNS=$K/tests
mkdir -p "$NANO3_GPU_RUNS/logs"
tests() { # SECONDS NAME PYTEST_ARGUMENTS...
  timeout -k 10 "$1" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu --basetemp="$K/tmp_$2" -vv -rA "${@:3}" > "$OUT/tests_$2.txt" 2>&1
  echo "rc=$?"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  " "$OUT/tests_$2.txt" | cut -c1-220 | tail -${LINES_SHOWN:-60}; }
if [ ! -f "$NANO3_GPU_RUNS/undisturbed.made" ]; then
  say "tests: the first run, cold"
  LINES_SHOWN=15 tests 330 first -k it_learns
  grep -h "first step done" "$NANO3_GPU_RUNS"/logs/*.txt
fi
if [ -f "$NANO3_GPU_RUNS/undisturbed.made" ]; then
  say "tests: the rest"
  find "$NANO3_GPU_RUNS/output/nano3/runs" -mindepth 1 -maxdepth 1 ! -name undisturbed -exec rm -rf {} +
  [ -d "$K/compile_1b" ] || ( TRITON_CACHE_AUTOTUNING=0 LIMIT=330 run compile_1b conf/model/nemotron_3_nano_1b.yaml train.seq_length=4096 train.global_batch_size=16 \
      train.micro_batch_size=8 train.train_iters=3 train.eval_interval=0 checkpoint.save_interval=0 scheduler.lr_wsd_decay_iters=1 scheduler.lr_warmup_iters=1 > "$K/compile.out" 2>&1; tail -3 "$K/compile.out" ) &
  tests "${TESTS_LIMIT:-360}" rest -n 7 --dist worksteal ${TESTS:+-k "$TESTS"}
fi
for name in undisturbed disturbed follow_megatron follow_transformers; do
  cp "$NANO3_GPU_RUNS/output/nano3/runs/$name/metrics.jsonl" "$OUT/$name.jsonl" 2>/dev/null; done
tar -czf "$OUT/logs.tar.gz" -C "$NANO3_GPU_RUNS" logs
say "end of tests"
