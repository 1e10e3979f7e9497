# Seconds until the first step of the 1.2 B model: a first start, a second one (docs/look-into-a-run.md says what belongs to each stage and
# what it may take), and one with one compile thread. Nothing else may run. IMPORTS=1 also lists the packages whose import takes longest.
start() { # NAME VARIABLE=VALUE...
  local name=$1 began=$(date +%s.%N); shift; rm -rf "$K/start_$name"
  env "$@" timeout -s ABRT -k 5 "${START_LIMIT:-120}" python3 -X faulthandler -m nano3.pretrain model=nemotron_3_nano_1b train=one_hopper data_blend=sample run.data="$DATA" run.output_dir="$K/start_$name" train.train_iters=3 train.eval_interval=0 checkpoint.save_interval=0 scheduler.lr_warmup_iters=1 scheduler.lr_wsd_decay_iters=1 logger.log_interval=1 > "$OUT/start_$name.log" 2>&1
  echo "START $name rc=$? $* whole command $(python3 -c "import sys, time; print(f'{time.time() - float(sys.argv[1]):.1f}')" "$began") s; $(grep -hoE 'first step done.*' "$OUT/start_$name.log" "$K/start_$name"/*.log 2>/dev/null | head -1)" | tee -a "$OUT/starts.txt"; }
say starts
for name in ${STARTS:-first second threads third}; do
  if [ "$name" = threads ]; then start "$name" TORCHINDUCTOR_COMPILE_THREADS=1; else start "$name"; fi; done
[ -z "${IMPORTS:-}" ] || { python3 -X importtime -c "import megatron.bridge.training.pretrain" 2> "$OUT/importtime.txt"; python3 - "$OUT/importtime.txt" <<'P' | tee -a "$OUT/starts.txt"
import collections, re, sys
own, modules = collections.Counter(), collections.Counter()
for line in open(sys.argv[1]):
    if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", line):
        package = found[2].split(".")[0]
        own[package] += int(found[1]) / 1e6
        modules[package] += 1
print(f"IMPORTS {sum(own.values()):.1f} s, {sum(modules.values())} modules:", ", ".join(f"{name} {seconds:.1f} s ({modules[name]})" for name, seconds in own.most_common(16)))
P
}
