#!/usr/bin/env bash
# What is tested and measured on a machine with GPUs, in one command: bash benchmarks/gpu/run_all.sh STAGE...
# Stages are the files of benchmarks/gpu/stages. Megatron-Bridge's stack must be on PYTHONPATH, or packed in .gpu/site.tar.zst;
# what else is missing is installed from .gpu/wheels, and compiled kernels come from .gpu/kernels.tar.zst, if it is there (a copy of
# what an earlier call wrote to $OUT). Results are files under $OUT, working files lie under $K.
set -uo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd); G=$ROOT/.gpu; K=${K:-/tmp/nano3-gpu}; OUT=${OUT:-$ROOT/benchmarks/results/gpu}
cd "$ROOT"; mkdir -p "$K" "$OUT"; START=$(date +%s)
say() { echo "### $(($(date +%s) - START))s $*"; }
unpack() { python3 -c "
import sys, tarfile, pyarrow as pa
tarfile.open(fileobj=pa.input_stream(sys.argv[1], compression='zstd'), mode='r|').extractall(sys.argv[2], filter='fully_trusted')" "$1" "$2"; }
[ -d "$K/site" ] || [ ! -f "$G/site.tar.zst" ] || unpack "$G/site.tar.zst" "$K/site"
[ -d "$K/wheels" ] || [ ! -d "$G/wheels" ] || python3 -m pip install -q --no-index --no-deps --no-cache-dir --target "$K/wheels" "$G"/wheels/*.whl
unset PYTHONDONTWRITEBYTECODE  # else every start compiles the stack's modules again, which takes about three times as long as loading them
export PATH=$K/wheels/bin:$PATH PYTHONPATH=$K/site:$K/wheels:$ROOT PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 NANO3_CACHE=$K/cache NANO3_HOME=$K/home
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
[ -d "$NANO3_CACHE/kernels" ] || [ ! -f "$G/kernels.tar.zst" ] || python3 "$ROOT/benchmarks/gpu/kernels.py" unpack "$G/kernels.tar.zst" "$NANO3_CACHE"
DATA=$K/data; ENGINE=$(python3 -c "import fastokens" 2>/dev/null && echo auto || echo tokenizers)
[ -d "$DATA" ] || python3 -m nano3.data_prep data_blend=sample engine="$ENGINE" output_dir="$DATA" valid_fraction=0.05 > "$OUT/data_prep.txt" 2>&1 || cat "$OUT/data_prep.txt"
for stage in "$@"; do source "$ROOT/benchmarks/gpu/stages/$stage.sh"; done
[ "${KERNELS_MIB:-16}" = 0 ] || python3 "$ROOT/benchmarks/gpu/kernels.py" pack "$NANO3_CACHE" "$OUT/kernels.tar.zst" "${KERNELS_MIB:-16}"  # for .gpu of the next machine
say done
