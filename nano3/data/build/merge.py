"""Merge the fragments of a shard into one .bin and one .idx, and write the shard's receipt."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
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
from nano3.data.dataset.dropped import DroppedDocuments
from nano3.data.dataset.indexed import write_index
from nano3.data.planning.plan import Plan

COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """What a fragment contributes to its shard: all of it, or with dedup=exact its documents that are not dropped.

    Attributes:
        fragment: The fragment.
        documents: Number of documents.
        sequences: Number of documents that have tokens.
        tokens: Number of tokens.
        kept: Whether each document of the fragment is kept; None if all are.
    """

    fragment: Fragment
    documents: int
    sequences: int
    tokens: int
    kept: np.ndarray | None = None


def merge_shard(
    plan: Plan, build: Path, key: tuple[int, int, int], fragments: list[Fragment], engine: str
) -> ShardReceipt:
    """Write .bin and .idx of a shard, then its receipt, and delete its fragments.

    A single fragment becomes the .bin by renaming; several are copied in the order of their units. With dedup=exact,
    `count_duplicates` has found the documents that are left out.

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
    parts = select_parts(plan, build, fragments, key)
    name = plan.shard_name(split, dataset, shard)
    tokens = sum(part.tokens for part in parts)
    sequences = sum(part.sequences for part in parts)
    bin_checksum = idx_checksum = ""
    if sequences:
        bin_checksum = write_bin(build, [part for part in parts if part.sequences], build / f"{name}.bin", plan.dtype)
        idx_checksum = write_idx(build, parts, build / f"{name}.idx", plan.dtype)
    receipt = ShardReceipt(
        split=split,
        dataset=dataset,
        shard=shard,
        name=name if sequences else None,
        documents=sum(part.documents for part in parts),
        sequences=sequences,
        tokens=tokens,
        bin_bytes=tokens * np.dtype(plan.dtype).itemsize,
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


def select_parts(plan: Plan, build: Path, fragments: list[Fragment], shard: tuple[int, int, int]) -> list[Part]:
    """Return what fragments contribute to their shard.

    Args:
        plan: The plan.
        build: Folder of the build.
        fragments: The fragments of the shard, in order.
        shard: (split, dataset, number of the shard in them).
    """
    if not plan.drops_documents:
        return [Part(f, f.documents, f.sequences, f.tokens) for f in fragments]
    dropped = DroppedDocuments(build, plan.shards()).of_shard(shard)
    parts = []
    start = 0
    for f in fragments:
        kept = ~dropped[start : start + f.documents]
        start += f.documents
        if kept.all():
            parts.append(Part(f, f.documents, f.sequences, f.tokens))
        else:
            lengths = np.fromfile(fragment_path(build, f, ".len"), np.int32)[kept]
            parts.append(Part(f, len(lengths), int(np.count_nonzero(lengths)), int(lengths.sum(dtype=np.int64)), kept))
    return parts


def fragment_path(build: Path, fragment: Fragment, suffix: str) -> Path:
    """Return the path of a fragment's ".bin" or ".len" file."""
    return add_suffix(build / "units" / fragment.name, suffix)


def write_bin(build: Path, parts: list[Part], target: Path, dtype: str) -> str:
    """Write the tokens of a shard's parts to its .bin and return its checksum."""
    if len(parts) == 1 and parts[0].kept is None:
        return move_fragment(build, parts[0].fragment, target)
    return concatenate_parts(build, parts, target, dtype)


def write_idx(build: Path, parts: list[Part], target: Path, dtype: str) -> str:
    """Write the .idx of a shard and return its checksum."""
    index = DirectWriter(target)
    try:
        sequences, documents = sum(p.sequences for p in parts), sum(p.documents for p in parts)
        write_index(index.write, lambda: read_lengths(build, parts), sequences, documents, dtype)
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


def concatenate_parts(build: Path, parts: list[Part], target: Path, dtype: str) -> str:
    """Write parts one after another to a shard's .bin and return its checksum."""
    out = DirectWriter(target)
    buffer = memoryview(bytearray(COPY_BYTES))
    try:
        for part in parts:
            source = fragment_path(build, part.fragment, ".bin")
            # A killed run may have renamed this fragment to the shard's .bin when it was the only one; then a file
            # changed and another unit has documents for the shard too.
            source = source if source.exists() else target
            if part.kept is not None:
                tokens = np.memmap(source, dtype, "r")
                for start, stop in kept_ranges(build, part):
                    out.write(tokens[start:stop].data)
                continue
            with source.open("rb", buffering=0) as f:
                while n := f.readinto(buffer):
                    out.write(buffer[:n])
        return out.commit(sync=True)
    except BaseException:
        out.discard()
        raise


def kept_ranges(build: Path, part: Part) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a fragment's tokens that are kept."""
    lengths = np.fromfile(fragment_path(build, part.fragment, ".len"), np.int32)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], part.kept, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        if ends[first] < ends[last]:
            yield int(ends[first]), int(ends[last])


def read_lengths(build: Path, parts: list[Part]) -> Iterator[np.ndarray]:
    """Yield the tokens per document (int32) of parts, a few megabytes at a time."""
    for part in parts:
        start = 0
        with fragment_path(build, part.fragment, ".len").open("rb") as f:
            while data := f.read(COPY_BYTES):
                lengths = np.frombuffer(data, np.int32)
                yield lengths if part.kept is None else lengths[part.kept[start : start + len(lengths)]]
                start += len(lengths)
