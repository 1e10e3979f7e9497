"""Whether prepared data is what its manifest says: checksums, structure, token range, end-of-document tokens,
counts.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import Manifest, load_manifest
from nano3.utils.checksum import NAME, checksum
from nano3.utils.errors import Failure, Nano3Error
from nano3.utils.files import read_json

CHUNK = 4 << 20  # tokens looked at a time


def verify(folder: Path, threads: int = 2) -> Iterator[tuple[str, list[str]]]:
    """(what was looked at, what is wrong with it) for each shard and for the folder's own files."""
    manifest = load_manifest(folder)
    yield "tokenizer", check_tokenizer(folder, manifest)
    yield "blend.json", check_blend(folder, manifest)
    yield "manifest.json", check_sums(manifest)
    with ThreadPoolExecutor(threads) as pool:
        for shard, problems in zip(
            manifest.shards, pool.map(lambda s: check_shard(folder, manifest, s), manifest.shards), strict=True
        ):
            yield shard["prefix"], problems


def check_shard(folder: Path, manifest: Manifest, shard: dict[str, Any]) -> list[str]:
    """Problems of one shard; each names its file."""
    prefix = folder / shard["prefix"]
    try:
        problems = [
            f"{prefix}{suffix}: {NAME} differs from the manifest's: the file was changed or damaged"
            for suffix, key in ((".bin", "bin_xxh128"), (".idx", "idx_xxh128"))
            if read(checksum, prefix.with_name(prefix.name + suffix)) != shard[key]
        ]
        data = IndexedFile(prefix)
    except Nano3Error as error:
        return error.problems
    problems += check_index(data)
    if not problems:
        problems = check_tokens(data, manifest)
    found = {"documents": len(data), "sequences": len(data.lengths), "tokens": len(data.tokens)}
    problems += [
        f"{prefix}.idx: {number:,} {name}, but the manifest says {shard[name]:,}"
        for name, number in found.items()
        if number != shard[name]
    ]
    if data.dtype.name != manifest.dtype:
        problems.append(f"{prefix}.idx: dtype {data.dtype.name}, but the manifest says {manifest.dtype}")
    return problems


def read[T](look: Callable[[Path], T], path: Path) -> T:
    """What `look` says of a file; `Failure` when it cannot be read."""
    try:
        return look(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error


def check_index(data: IndexedFile) -> list[str]:
    """Whether lengths, offsets and bounds of an index agree."""
    size = data.dtype.itemsize
    if (data.lengths <= 0).any():
        return [f"{data.idx_path}: sequence {int(np.argmax(data.lengths <= 0))} has no tokens"]
    ends = np.cumsum(data.lengths, dtype=np.int64) * size
    if len(ends) and (data.offsets[0] != 0 or not np.array_equal(data.offsets[1:], ends[:-1])):
        return [f"{data.idx_path}: sequence offsets do not follow from the lengths"]
    steps = np.diff(data.bounds)
    if data.bounds[0] != 0 or data.bounds[-1] != len(data.lengths) or (steps < 0).any() or (steps > 1).any():
        return [f"{data.idx_path}: document bounds are not one sequence for each document"]
    return []


def check_tokens(data: IndexedFile, manifest: Manifest) -> list[str]:
    """Whether every id is in the vocabulary and every document ends as it should."""
    vocab, eod = manifest.tokenizer["vocab_size"], manifest.tokenizer["eod_id"]
    for start in range(0, len(data.tokens), CHUNK):
        piece = data.tokens[start : start + CHUNK]
        if int(piece.max()) >= vocab or int(piece.min()) < 0:
            wrong = (piece >= vocab) | (piece < 0)
            at = start + int(np.argmax(wrong))
            return [f"{data.bin_path}: token {at:,} is {int(data.tokens[at])}, outside the vocabulary of {vocab:,} ids"]
    if manifest.options["add_eos"] and len(data.lengths):
        last = data.tokens[np.cumsum(data.lengths, dtype=np.int64) - 1]
        if (last != eod).any():
            at = int(np.argmax(last != eod))
            return [
                f"{data.bin_path}: sequence {at:,} ends with {int(last[at])}, not with the end-of-document token {eod}"
            ]
    return []


def check_tokenizer(folder: Path, manifest: Manifest) -> list[str]:
    """Whether the copy of the tokenizer is the one the ids were made with."""
    path = folder / manifest.tokenizer["path"] / "tokenizer.json"
    try:
        same = hashlib.sha256(read(Path.read_bytes, path)).hexdigest() == manifest.tokenizer["sha256"]
    except Failure as error:
        return error.problems
    return [] if same else [f"{path}: not the tokenizer that the data was made with (SHA-256 differs)"]


def check_blend(folder: Path, manifest: Manifest) -> list[str]:
    """Whether blend.json lists exactly the manifest's shards, here, with positive weights."""
    path = folder / "blend.json"
    try:
        blend = read_json(path)
    except (OSError, ValueError) as error:
        return [f"{path}: cannot be read: {error}"]
    if not isinstance(blend, dict):
        return [f"{path}: expected {{split: [weight, prefix, ...]}}. Prepare again: it rewrites only this."]
    problems = []
    for split in manifest.splits:
        entries = blend.get(split, [])
        wanted = [os.path.realpath(folder / s["prefix"]) for s in manifest.shards if s["split"] == split]
        if not isinstance(entries, list) or [os.path.realpath(str(e)) for e in entries[1::2]] != wanted:
            problems.append(
                f"{path}: {split} does not list the {len(wanted)} shards here. Was the folder moved? Prepare "
                f"again: it rewrites only this."
            )
        elif wrong := [weight for weight in entries[::2] if not is_weight(weight)]:
            problems.append(f"{path}: {split} has a weight that is not positive: {wrong[0]!r}")
    return problems


def is_weight(value: Any) -> bool:
    """Whether Megatron can take a value, mostly text, for a weight."""
    try:
        return 0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def check_sums(manifest: Manifest) -> list[str]:
    """Whether the manifest's own numbers add up."""
    problems = []
    for split, counts in manifest.splits.items():
        for name in ("sequences", "tokens"):
            total = sum(s[name] for s in manifest.shards if s["split"] == split)
            if total != counts[name]:
                problems.append(f"manifest.json: {split} has {counts[name]:,} {name}, its shards {total:,}")
    for dataset in manifest.datasets:
        skipped = sum(dataset["skipped"].values())
        if dataset.get("rows", dataset["documents"] + skipped) != dataset["documents"] + skipped:
            problems.append(
                f"manifest.json: dataset {dataset['name']} has {dataset['rows']:,} rows, but {dataset['documents']:,} "
                f"documents and {skipped:,} skipped"
            )
        total = sum(s["documents"] for s in dataset["splits"].values())
        if total != dataset["documents"]:
            problems.append(
                f"manifest.json: dataset {dataset['name']} has {dataset['documents']:,} documents, its splits {total:,}"
            )
    return problems
