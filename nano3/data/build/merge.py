"""From the parts that units left to a shard: one .bin, one .idx, one receipt."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import (
    Fragment,
    ShardReceipt,
    UnitReceipt,
    add_suffix,
    read_unit,
    shard_receipt,
    write_receipt,
)
from nano3.data.dataset.indexed import write_index
from nano3.data.planning.plan import Plan
from nano3.data.tokenization.engines import FAST, REFERENCE

COPY_BYTES = 4 << 20


def merge_shard(plan: Plan, build: Path, split: int, dataset: int, shard: int) -> ShardReceipt:
    """Make .bin and .idx of the parts, then the receipt. A single part is moved, several are copied in order."""
    receipts = read_shard_units(plan, build, split, dataset, shard)
    parts = [p for r in receipts for p in r.parts if (p.split, p.shard) == (split, shard)]
    name = plan.shard_name(split, dataset, shard)
    sequences, tokens = sum(p.sequences for p in parts), sum(p.tokens for p in parts)
    bin_sum = idx_sum = ""
    if sequences:
        filled = [p for p in parts if p.sequences]
        bin_path = build / f"{name}.bin"
        bin_sum = (
            move_fragment(build, filled[0], bin_path)
            if len(filled) == 1
            else concatenate_fragments(build, filled, bin_path)
        )
        index = DirectWriter(build / f"{name}.idx")
        try:
            documents = sum(p.documents for p in parts)
            write_index(index.write, lambda: read_lengths(build, parts), sequences, documents, plan.dtype)
            idx_sum = index.commit(sync=True)
        except BaseException:
            index.discard()
            raise
    engines = {r.engine for r in receipts}
    receipt = ShardReceipt(
        split=split, dataset=dataset, shard=shard, name=name if sequences else None,
        documents=sum(p.documents for p in parts), sequences=sequences, tokens=tokens,
        bin_bytes=sum(p.bytes for p in parts), bin_xxh128=bin_sum, idx_xxh128=idx_sum,
        engine=FAST if FAST in engines else REFERENCE,
        first=parts[0].first if parts else None, last=parts[-1].last if parts else None,
    )  # fmt: skip
    write_receipt(shard_receipt(build, plan, split, dataset, shard), receipt)
    for part in parts:
        for suffix in (".bin", ".len"):
            add_suffix(build / "units" / part.name, suffix).unlink(missing_ok=True)
    return receipt


def read_shard_units(plan: Plan, build: Path, split: int, dataset: int, shard: int) -> list[UnitReceipt]:
    """Receipts of the units that a shard can have parts of, in order."""
    first, last = plan.datasets[dataset].units_of_shard(split, shard)
    base = plan.first_units[dataset]
    return [read_unit(build, base + u) for u in range(first, last + 1) if plan.datasets[dataset].file_ranges(u)]


def move_fragment(build: Path, part: Fragment, target: Path) -> str:
    """Give a part its shard's name; done already if a run was killed after it. Gives its checksum."""
    source = add_suffix(build / "units" / part.name, ".bin")
    if source.exists() or not target.exists():
        source.replace(target)
    with target.open("rb") as f:
        os.fsync(f.fileno())
    return part.bin_xxh128


def concatenate_fragments(build: Path, parts: list[Fragment], target: Path) -> str:
    """Write parts one after another; gives the checksum."""
    out = DirectWriter(target)
    buffer = memoryview(bytearray(COPY_BYTES))
    try:
        for part in parts:
            source = add_suffix(build / "units" / part.name, ".bin")
            # A run that was killed may have given a part its shard's name as its only one, before a file changed that
            # now has documents for the shard too.
            with (source if source.exists() else target).open("rb", buffering=0) as f:
                while n := f.readinto(buffer):
                    out.write(buffer[:n])
        return out.commit(sync=True)
    except BaseException:
        out.discard()
        raise


def read_lengths(build: Path, parts: list[Fragment]) -> Iterator[np.ndarray]:
    """int32 tokens per document of the parts, piece by piece."""
    for part in parts:
        with add_suffix(build / "units" / part.name, ".len").open("rb") as f:
            while data := f.read(COPY_BYTES):
                yield np.frombuffer(data, np.int32)
