"""Merge the fragments of a shard into one .bin and one .idx, and write the shard's receipt."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import (
    Fragment,
    ShardReceipt,
    add_suffix,
    shard_receipt_path,
    write_receipt,
)
from nano3.data.dataset.indexed import write_index
from nano3.data.planning.plan import Plan

COPY_BYTES = 4 << 20


def merge_shard(
    plan: Plan, build: Path, key: tuple[int, int, int], fragments: list[Fragment], engine: str
) -> ShardReceipt:
    """Write .bin and .idx of a shard, then its receipt, and delete its fragments.

    A single fragment becomes the .bin by renaming; several are copied in the order of their units.

    Args:
        plan: The plan; all units of the shard must be finished.
        build: Folder of the build.
        key: (split, dataset, number of the shard in them).
        fragments: The shard's fragments in the order of their units.
        engine: Tokenizer engine of the fragments.

    Raises:
        Failure: If a file cannot be written.
    """
    split, dataset, shard = key
    name = plan.shard_name(split, dataset, shard)
    sequences = sum(f.sequences for f in fragments)
    bin_checksum = idx_checksum = ""
    if sequences:
        bin_checksum = write_bin(build, [f for f in fragments if f.sequences], build / f"{name}.bin")
        idx_checksum = write_idx(build, fragments, build / f"{name}.idx", plan.dtype)
    receipt = ShardReceipt(
        split=split,
        dataset=dataset,
        shard=shard,
        name=name if sequences else None,
        documents=sum(f.documents for f in fragments),
        sequences=sequences,
        tokens=sum(f.tokens for f in fragments),
        bin_bytes=sum(f.bytes for f in fragments),
        bin_xxh128=bin_checksum,
        idx_xxh128=idx_checksum,
        engine=engine,
        first=fragments[0].first if fragments else None,
        last=fragments[-1].last if fragments else None,
    )
    write_receipt(shard_receipt_path(build, plan, split, dataset, shard), receipt)
    for fragment in fragments:
        for suffix in (".bin", ".len"):
            fragment_path(build, fragment, suffix).unlink(missing_ok=True)
    return receipt


def fragment_path(build: Path, fragment: Fragment, suffix: str) -> Path:
    """Return the path of a fragment's ".bin" or ".len" file."""
    return add_suffix(build / "units" / fragment.name, suffix)


def write_bin(build: Path, fragments: list[Fragment], target: Path) -> str:
    """Write the tokens of fragments to a shard's .bin and return its checksum."""
    if len(fragments) == 1:
        return move_fragment(build, fragments[0], target)
    return concatenate_fragments(build, fragments, target)


def write_idx(build: Path, fragments: list[Fragment], target: Path, dtype: str) -> str:
    """Write the .idx of a shard and return its checksum."""
    index = DirectWriter(target)
    try:
        sequences, documents = sum(f.sequences for f in fragments), sum(f.documents for f in fragments)
        write_index(index.write, lambda: read_lengths(build, fragments), sequences, documents, dtype)
        return index.commit(sync=True)
    except BaseException:
        index.discard()
        raise


def move_fragment(build: Path, fragment: Fragment, target: Path) -> str:
    """Rename a shard's only fragment to the shard's .bin, unless a killed run already did, and return its checksum."""
    source = fragment_path(build, fragment, ".bin")
    if source.exists() or not target.exists():
        source.replace(target)
    with target.open("rb") as f:
        os.fsync(f.fileno())
    return fragment.bin_xxh128


def concatenate_fragments(build: Path, fragments: list[Fragment], target: Path) -> str:
    """Write fragments one after another to a shard's .bin and return its checksum."""
    out = DirectWriter(target)
    buffer = memoryview(bytearray(COPY_BYTES))
    try:
        for fragment in fragments:
            source = fragment_path(build, fragment, ".bin")
            # A killed run may have renamed this fragment to the shard's .bin when it was the only one; then a file
            # changed and another unit has documents for the shard too.
            with (source if source.exists() else target).open("rb", buffering=0) as f:
                while n := f.readinto(buffer):
                    out.write(buffer[:n])
        return out.commit(sync=True)
    except BaseException:
        out.discard()
        raise


def read_lengths(build: Path, fragments: list[Fragment]) -> Iterator[np.ndarray]:
    """Yield the tokens per document (int32) of fragments, a few megabytes at a time."""
    for fragment in fragments:
        with fragment_path(build, fragment, ".len").open("rb") as f:
            while data := f.read(COPY_BYTES):
                yield np.frombuffer(data, np.int32)
