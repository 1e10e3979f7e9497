#!/usr/bin/env bash
# Everything that is measured on one GPU, in one command. Needs Megatron-Bridge's stack on PYTHONPATH (or .gpu/site.tar.zst) and
# data prepared from the bundled corpus (or .gpu/data.tar.zst). Results are text files under $OUT.
#   bash benchmarks/gpu/run_all.sh STAGE...
set -uo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd); G=$ROOT/.gpu; K=${K:-/tmp/nano3-gpu}; OUT=${OUT:-$ROOT/benchmarks/results/gpu}
cd "$ROOT"; mkdir -p "$K" "$OUT"; START=$(date +%s)
say() { echo "### $(($(date +%s) - START))s $*"; }
unpack() { python3 -c "
import sys, tarfile, pyarrow as pa
tarfile.open(fileobj=pa.input_stream(sys.argv[1], compression='zstd'), mode='r|').extractall(sys.argv[2], filter='fully_trusted')" "$1" "$2"; }
[ -d "$K/site" ] || [ ! -f "$G/site.tar.zst" ] || unpack "$G/site.tar.zst" "$K/site"
[ -d "$K/data" ] || unpack "$G/data.tar.zst" "$K"
export PYTHONPATH=$K/site:$ROOT PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 NANO3_CACHE=$K/cache
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
MICRO="conf/model/nemotron_3_nano_micro.yaml train.seq_length=1024 train.micro_batch_size=8 train.global_batch_size=32 optimizer.lr=2e-3 optimizer.min_lr=2e-4 scheduler.lr_warmup_iters=5"
LIMIT=${LIMIT:-200}

run() { # NAME ARGUMENTS...: one process; its log is $OUT/NAME.log
  local name=$1; shift
  say "$name"
  timeout -s ABRT -k 10 "$LIMIT" python3 -X faulthandler "$ROOT/benchmarks/gpu/train.py" "$K/$name" "$DATA" "$@" > "$OUT/$name.log" 2>&1
  echo "rc=$?"
  show "$name"
}
show() { grep -E "^(fresh|resuming|finished|adapted|iteration|validation|OUTCOME|UserError|Failure|REFUSED|removing|warning)|Error" "$OUT/$1.log" | cut -c1-220 | (head -${2:-12}; echo ...; tail -${2:-12}) | awk '!seen[$0]++'; }
DATA=$K/data
for stage in "$@"; do source "$ROOT/benchmarks/gpu/stages/$stage.sh"; done
say done
