"""Check prepared data against its manifest: checksums, structure, token range, end-of-document tokens, counts."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nano3.data.dataset.checksum import NAME, checksum
from nano3.data.dataset.indexed import IndexedFile, read_header
from nano3.data.dataset.manifest import Manifest, ShardEntry, load_manifest, make_blend
from nano3.data.tokenization.tokenizer import FILES as TOKENIZER_FILES
from nano3.utils.errors import Failure, Nano3Error
from nano3.utils.files import read_json

CHUNK = 4 << 20  # tokens checked at a time


def verify(folder: Path, threads: int = 2) -> Iterator[tuple[str, list[str]]]:
    """Check the folder's own files and every shard.

    Args:
        folder: Data folder.
        threads: Number of shards checked at a time.

    Yields:
        (what was checked, its problems).

    Raises:
        UserError: There is no manifest.
        Failure: The manifest cannot be read.
    """
    manifest = load_manifest(folder)
    yield "tokenizer", check_tokenizer(folder, manifest)
    yield "blend.json", check_blend(folder, manifest)
    yield "manifest.json", check_sums(manifest)
    with ThreadPoolExecutor(threads) as pool:
        for shard, problems in zip(
            manifest.shards, pool.map(lambda s: check_shard(folder, manifest, s), manifest.shards), strict=True
        ):
            yield shard.prefix, problems


def check_shard_files(folder: Path, manifest: Manifest, shard: ShardEntry) -> list[str]:
    """Check a shard by the sizes of its files and the header of its index, without reading its content.

    Preparation, `nano3 verify` and training all use this check.

    Args:
        folder: Data folder.
        manifest: Its manifest.
        shard: The shard's entry in it.

    Returns:
        The problems. Each names its file.
    """
    prefix = folder / shard.prefix
    bin_path, idx_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
    problems: list[str] = []
    try:
        if missing := [path for path in (bin_path, idx_path) if not path.exists()]:
            return [f"{path}: missing, but the manifest lists this shard of {shard.dataset}" for path in missing]
        if (size := bin_path.stat().st_size) != shard.bin_bytes:
            problems.append(
                f"{bin_path}: {size:,} bytes, but the manifest says {shard.bin_bytes:,}: possibly an interrupted copy"
            )
        header = read_header(idx_path)
    except PermissionError:
        raise
    except OSError as error:
        return [f"{bin_path}: {error.strerror}"]
    except Failure as error:
        return [*problems, *error.problems]
    problems += [
        f"{idx_path}: {number:,} {name}, but the manifest says {wanted:,}"
        for name, number, wanted in (
            ("documents", header.documents, shard.documents),
            ("sequences", header.sequences, shard.sequences),
        )
        if number != wanted
    ]
    if header.dtype.name != manifest.dtype:
        problems.append(f"{idx_path}: dtype {header.dtype.name}, but the manifest says {manifest.dtype}")
    return problems


def check_shard(folder: Path, manifest: Manifest, shard: ShardEntry) -> list[str]:
    """Check the files of a shard and everything in them.

    Args:
        folder: Data folder.
        manifest: Its manifest.
        shard: The shard's entry in it.

    Returns:
        The problems. Each names its file.
    """
    problems = check_shard_files(folder, manifest, shard)
    prefix = folder / shard.prefix
    try:
        data = IndexedFile(prefix)
        for path, expected in ((data.bin_path, shard.bin_xxh128), (data.idx_path, shard.idx_xxh128)):
            if read_file(checksum, path) != expected:
                problems.append(f"{path}: {NAME} differs from the manifest's: the file was changed or damaged")
    except Nano3Error as error:
        return problems or error.problems
    problems += check_index(data)
    if not problems:
        problems = check_tokens(data, manifest)
    if len(data.tokens) != shard.tokens:
        problems.append(f"{data.idx_path}: {len(data.tokens):,} tokens, but the manifest says {shard.tokens:,}")
    return problems


def read_file[T](read: Callable[[Path], T], path: Path) -> T:
    """Return `read(path)`; raise Failure if the file cannot be read."""
    try:
        return read(path)
    except PermissionError:
        raise
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error


def check_index(data: IndexedFile) -> list[str]:
    """Check that the lengths, offsets and bounds of an index agree."""
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
    """Check that every id is in the vocabulary and that documents end with the end-of-document token."""
    vocab, eod = manifest.tokenizer.vocab_size, manifest.tokenizer.eod_id
    for start in range(0, len(data.tokens), CHUNK):
        chunk = data.tokens[start : start + CHUNK]
        if int(chunk.max()) >= vocab or int(chunk.min()) < 0:
            wrong = (chunk >= vocab) | (chunk < 0)
            at = start + int(np.argmax(wrong))
            return [f"{data.bin_path}: token {at:,} is {int(data.tokens[at])}, outside the vocabulary of {vocab:,} ids"]
    if manifest.options.get("add_eos") and len(data.lengths):
        last = data.tokens[np.cumsum(data.lengths, dtype=np.int64) - 1]
        if (last != eod).any():
            at = int(np.argmax(last != eod))
            return [
                f"{data.bin_path}: sequence {at:,} ends with {int(last[at])}, not with the end-of-document token {eod}"
            ]
    return []


def check_tokenizer(folder: Path, manifest: Manifest) -> list[str]:
    """Check that the copy of the tokenizer is the one that made the data, file by file."""
    copy = folder / manifest.tokenizer.path
    path = copy / "tokenizer.json"
    problems = []
    try:
        if hashlib.sha256(read_file(Path.read_bytes, path)).hexdigest() != manifest.tokenizer.sha256:
            problems.append(f"{path}: not the tokenizer that made the data (SHA-256 differs)")
        for name, expected in manifest.tokenizer.files.items():
            if name != path.name and read_file(checksum, copy / name) != expected:
                problems.append(f"{copy / name}: {NAME} differs from the manifest's: the file was changed or damaged")
    except Failure as error:
        problems += error.problems
    return problems


def tokenizer_checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of each of the tokenizer's files in the folder of a copy, by name."""
    return {name: checksum(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def check_blend(folder: Path, manifest: Manifest) -> list[str]:
    """Check that blend.json is what the manifest and this folder make it."""
    path, again = folder / "blend.json", "Prepare again: this file alone is rewritten."
    try:
        blend = read_json(path)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        return [f"{path}: cannot be read: {error}"]
    if not isinstance(blend, dict):
        return [f"{path}: expected {{split: [weight, prefix, ...]}}. {again}"]
    problems = [
        f"{path}: {split!r} is no split of the data. {again}" for split in blend if split not in manifest.splits
    ]
    for split, expected in make_blend(manifest, folder).items():
        entries, wanted = blend.get(split, []), [os.path.realpath(prefix) for prefix in expected[1::2]]
        if not isinstance(entries, list) or [os.path.realpath(str(e)) for e in entries[1::2]] != wanted:
            problems.append(
                f"{path}: {split} does not list the {len(wanted)} shards here. Was the folder moved? {again}"
            )
        elif wrong := [weight for weight in entries[::2] if not is_weight(weight)]:
            problems.append(f"{path}: {split} has a weight that is not positive: {wrong[0]!r}. {again}")
        elif pairs := [pair for pair in zip(map(str, entries[::2]), expected[::2], strict=True) if pair[0] != pair[1]]:
            given, right = pairs[0]
            problems.append(f"{path}: {split} has the weight {given}, the manifest makes it {right}. {again}")
    return problems


def is_weight(value: object) -> bool:
    """Return whether Megatron can use a value, usually text, as a weight."""
    try:
        return 0 < float(value) < float("inf")  # type: ignore[arg-type]  # TypeError is caught
    except (TypeError, ValueError):
        return False


def check_sums(manifest: Manifest) -> list[str]:
    """Check that the totals in the manifest are the sums of its entries."""
    problems = []
    for split, counts in manifest.splits.items():
        shards = [s for s in manifest.shards if s.split == split]
        for name, wanted, total in (
            ("sequences", counts.sequences, sum(s.sequences for s in shards)),
            ("tokens", counts.tokens, sum(s.tokens for s in shards)),
        ):
            if total != wanted:
                problems.append(f"manifest.json: {split} has {wanted:,} {name}, its shards {total:,}")
    for dataset in manifest.datasets:
        skipped = sum(dataset.skipped.values())
        if dataset.rows not in (None, dataset.documents + skipped):
            problems.append(
                f"manifest.json: dataset {dataset.name} has {dataset.rows:,} rows, but {dataset.documents:,} "
                f"documents and {skipped:,} skipped"
            )
        total = sum(s.documents for s in dataset.splits.values())
        if total != dataset.documents:
            problems.append(
                f"manifest.json: dataset {dataset.name} has {dataset.documents:,} documents, its splits {total:,}"
            )
    return problems
