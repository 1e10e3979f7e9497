# A real GPU under a real Slurm (tests/gpu/test_gpu_slurm.py), against the same run without Slurm. The Slurm is that of
# tests/slurm/devcluster.sh; where nothing can be downloaded, its packages come from .gpu/slurm (apt-get download munge libmunge2
# libhwloc15 libnuma1 libjson-c5 libyaml-0-2 slurm-client slurm-wlm-basic-plugins slurmctld slurmd; or one package of what is needed
# of them). Needs root.
#   NANO3_GPU_BACKEND=transformers   rehearse it without a GPU: a small model on the CPU in place of Megatron, otherwise the same
#   FIRST_LIMIT, REST_LIMIT          seconds for the two parts, the second one also for all tests in one
export NANO3_GPU_RUNS=$K/slurm
SLURM_DIR=${SLURM_DIR:-/tmp/nano3-slurm}; TRANSCRIPT=$OUT/slurm.txt
slurm_packages() { # into /, without replacing what is there
  command -v slurmctld > /dev/null || ! ls "$G"/slurm/*.deb > /dev/null 2>&1 || {
    mkdir -p "$K/debs"; local deb name
    for deb in "$G"/slurm/*.deb; do dpkg -x "$deb" "$K/debs" || return; done
    tar -C "$K/debs" -c . | tar -C / -x --keep-directory-symlink --skip-old-files || return
    for name in slurmctld slurmd slurmstepd; do ln -sfn "$name-wlm" "/usr/sbin/$name"; done # Debian does this when it installs
    ldconfig; }; }
slurm_tests() { # SECONDS PART TESTS AT_ONCE
  say "slurm: $2"
  timeout -k 10 "$1" python3 -m pytest -p no:cacheprovider -m gpu tests/gpu/test_gpu_slurm.py --basetemp="$K/tmp_slurm" -k "$3" -n "$4" -vv -rA > "$OUT/slurm_$2.txt" 2>&1
  local rc=$?
  echo "rc=$rc"; grep -E "^(PASSED|FAILED|ERROR|SKIPPED|=====)|^E  " "$OUT/slurm_$2.txt" | cut -c1-220
  return $rc; }
slurm_stage() {
  slurm_packages || { say "slurm: its packages cannot be unpacked"; return 1; }
  # Every node has the same one GPU, so jobs of several tests share it: six nodes are six runs at the same time.
  tests/slurm/devcluster.sh up "$SLURM_DIR" --no-accounting --nodes 6 --gpus 1 --cpus 16 --mem 24000 || return
  source "$SLURM_DIR/env.sh"
  mkdir -p "$NANO3_GPU_RUNS/logs"
  # Without compiled kernels, the first two runs compile them, side by side, and everything else finds them.
  if [ -d "$NANO3_CACHE/kernels" ]; then slurm_tests "${REST_LIMIT:-290}" all "${TESTS:-test}" 7
  else slurm_tests "${FIRST_LIMIT:-235}" first "without_slurm or attached" 2 && slurm_tests "${REST_LIMIT:-215}" rest "not without_slurm and not attached" 5; fi
  local rc=$?
  { sinfo --version; sinfo -N -p batch -o "%N %G %c %m"; squeue -a -t all -S i -o "%.10i %.24j %.12T %.8M %.20S %.20e %.6N %r" | sed 's/ *$//'
    python3 benchmarks/gpu/transcript.py "$NANO3_GPU_RUNS/logs" $(ls "$OUT"/slurm_{first,rest,all}.txt 2> /dev/null); } > "$TRANSCRIPT" 2>&1
  tar -czf "$OUT/slurm_logs.tar.gz" -C "$NANO3_GPU_RUNS" logs $(cd "$NANO3_GPU_RUNS" && ls -d output/nano3/runs/*/logs) -C "$SLURM_DIR" log
  tests/slurm/devcluster.sh down "$SLURM_DIR" --purge
  return $rc; }
slurm_stage; say "slurm: end, rc=$?"
