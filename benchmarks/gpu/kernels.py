"""Take the compiled kernels of a machine along, so that the first run on the next one does not compile them:

    python benchmarks/gpu/kernels.py pack NANO3_CACHE FILE.tar.zst [LARGEST_MIB]
    python benchmarks/gpu/kernels.py unpack FILE.tar.zst NANO3_CACHE

Only what a start reads is kept: Triton's binaries, their metadata and the results of autotuning, and what Inductor
keeps. The sources of the intermediate stages, nine tenths of the cache, are left out. Triton's metadata holds absolute
paths, so both machines must use the same NANO3_CACHE. The folder of another GPU or another version of torch or triton
does no harm: its name differs (nano3/training/megatron/compile_cache.py).
"""

import io
import sys
import tarfile
from pathlib import Path

import pyarrow as pa

# Stages of Triton's compiler between source and binary, locks, and unfinished files. A warm start reads none of them.
LEFT_OUT = (".source", ".ttir", ".ttgir", ".llir", ".ptx", ".lock")
LARGEST_MIB = 16.0
LEVEL = 15


def kept_files(cache: Path) -> list[Path]:
    """Return the files of NANO3_CACHE/kernels that a warm start reads; similar ones are neighbors."""
    found = [p for p in (cache / "kernels").rglob("*") if p.is_file() and not p.is_symlink()]
    kept = [p for p in found if p.suffix not in LEFT_OUT and not any(s.startswith("tmp.") for s in p.parts)]
    return sorted(kept, key=lambda p: (p.suffix, p.name, str(p)))


def pack(cache: Path, target: Path, largest_mib: float = LARGEST_MIB) -> str:
    """Write the kept files to `target` unless that is too large, and return a line that says what was done.

    Args:
        cache: The folder NANO3_CACHE.
        target: The file to write.
        largest_mib: The most that it may have.
    """
    files = kept_files(cache)
    if not files:
        return "KERNELS none are cached"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for path in files:
            archive.add(path, arcname=str(path.relative_to(cache)), recursive=False)
    packed = pa.Codec("zstd", LEVEL).compress(tar.getvalue(), asbytes=True)
    size = f"{len(files)} files, {tar.tell() / 2**20:.1f} MiB, packed {len(packed) / 2**20:.2f} MiB"
    if len(packed) > largest_mib * 2**20:
        return f"KERNELS not kept: {size}, more than {largest_mib:g} MiB"
    target.write_bytes(packed)
    return f"KERNELS kept in {target.name}: {size}"


def unpack(source: Path, cache: Path) -> str:
    """Add the files of a packed cache to `cache`, and return a line that says so.

    A file that is cut off or not such an archive is left alone: kernels are then compiled.

    Args:
        source: A file that `pack` has written.
        cache: The folder NANO3_CACHE.
    """
    try:
        with (
            pa.input_stream(source, compression="zstd") as stream,
            tarfile.open(fileobj=io.BytesIO(stream.read())) as archive,
        ):
            archive.extractall(cache, filter="data")
            return f"KERNELS unpacked: {len(archive.getmembers())} files"
    except (OSError, tarfile.TarError) as error:
        return f"KERNELS not unpacked: {source}: {error}"


def main() -> None:
    what, source, target, *largest = sys.argv[1:]
    if what == "pack":
        print(pack(Path(source), Path(target), *(float(one) for one in largest)))
    else:
        print(unpack(Path(source), Path(target)))


if __name__ == "__main__":
    main()
