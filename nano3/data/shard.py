"""The work itself: a unit (part of a dataset) to parts of shards, and parts to a shard. Each leaves a receipt when it is whole.

    units/00012.train.00003.bin, .len    tokens, and tokens per document, of unit 12's documents in train shard 3
    units/00012.json                     receipt: counts, and the parts
    train/data_00003.bin, .idx           the parts in the order of their units
    shards/train.00003.json              receipt: counts, checksums, source range

Receipts are written last; what has no valid receipt is done again. A shard's files are on disk (fsync) before its receipt. A unit's
parts are not forced to disk, which would take longer than making them: after a power cut their checksums tell what to redo.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec
import numpy as np

from nano3.config import PrepOptions
from nano3.data import sources
from nano3.data.folder import disk_error
from nano3.data.indexed import write_index
from nano3.data.plan import SPLITS, DatasetPlan, Plan
from nano3.data.readers import Batch, FilePart, read_part
from nano3.data.splits import document_hash, file_seed, refuse, split_of
from nano3.data.tokenize import Encoded, Encoder, SpecialCounter, first_difference
from nano3.files import temp_name

COPY = 4 << 20


class Part(msgspec.Struct):
    """One unit's documents in one shard. `first` and `last` are (file number, key) of documents."""

    split: int
    shard: int
    name: str
    documents: int
    sequences: int
    tokens: int
    bytes: int
    sha256: str
    len_sha256: str
    first: tuple[int, int]
    last: tuple[int, int]


class UnitReceipt(msgspec.Struct):
    """What became of a unit. `skipped` counts rows by reason; `special` counts special tokens that stood in the text."""

    unit: int
    engine: str
    documents: int
    empty: int
    skipped: dict[str, int]
    special: int
    checked: int
    truncated: int
    text_bytes: int
    parts: list[Part]


class ShardReceipt(msgspec.Struct):
    """What is in a shard's files. `name` is None when it has no sequence, and then there are no files."""

    split: int
    dataset: int
    shard: int
    name: str | None
    documents: int
    sequences: int
    tokens: int
    bin_bytes: int
    bin_sha256: str
    idx_sha256: str
    engine: str
    first: tuple[int, int] | None
    last: tuple[int, int] | None


class EngineMismatch(Exception):
    """The fast engine gave other ids than the reference."""


class Output:
    """A file being written under a temporary name; `commit` gives it its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._temp = temp_name(path)
        self._hash = hashlib.sha256()
        try:
            self._file: IO[bytes] = self._temp.open("wb", buffering=1 << 18)
        except OSError as error:
            raise disk_error(error, str(path)) from error

    def write(self, data: Any) -> None:
        """Append bytes."""
        view = memoryview(data)
        if not view.nbytes:
            return
        view = view.cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            raise disk_error(error, str(self.path)) from error
        self._hash.update(view)
        self.size += view.nbytes

    def commit(self, sync: bool) -> str:
        """Flush, fsync if `sync`, rename. Gives the SHA-256."""
        try:
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
            self._file.close()
            self._temp.replace(self.path)
        except OSError as error:
            raise disk_error(error, str(self.path)) from error
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Remove what was written."""
        try:
            self._file.close()
        except OSError:
            pass  # a full disk; the file goes anyway
        self._temp.unlink(missing_ok=True)


@dataclass
class PartWriter:
    """Collects one part."""

    split: int
    shard: int
    name: str
    bin: Output
    len: Output
    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)

    def add(self, tokens: np.ndarray, lengths: np.ndarray, file: int, first: int, last: int) -> None:
        """Append documents: their tokens back to back and their lengths (int32, 0 for an empty one)."""
        if not self.documents:
            self.first = (file, first)
        self.last = (file, last)
        self.documents += len(lengths)
        self.sequences += int(np.count_nonzero(lengths))
        self.tokens += len(tokens)
        self.bin.write(tokens.data)
        self.len.write(lengths.data)

    def commit(self) -> Part:
        """Give both files their names."""
        return Part(
            self.split, self.shard, self.name, self.documents, self.sequences, self.tokens, self.bin.size,
            self.bin.commit(sync=False), self.len.commit(sync=False), self.first, self.last,
        )  # fmt: skip


@dataclass
class Worker:
    """What one process needs to do any piece of a plan. `fast` is None when the reference is to be used."""

    plan: Plan
    build: Path
    reference: Encoder
    fast: Encoder | None
    tick: Callable[[int], None] = lambda text_bytes: None
    count_special: SpecialCounter = field(init=False)

    def __post_init__(self) -> None:
        self.count_special = SpecialCounter(self.plan.tokenizer.special_ids)

    @property
    def engine(self) -> str:
        """Name of the engine in use."""
        return "fastokens" if self.fast else "tokenizers"

    def encode_unit(self, number: int) -> UnitReceipt:
        """Tokenize a unit and write its parts and receipt.

        Raises `EngineMismatch` when a re-check fails, `Failure` or `UserError` naming file and row for bad input or a full disk.
        """
        return UnitEncoder(self, number).run()


class UnitEncoder:
    """One unit on its way through: read, filter, route, encode, write."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.number = number
        self.options: PrepOptions = worker.plan.options
        self.dataset_number, self.unit = worker.plan.unit(number)
        self.dataset: DatasetPlan = worker.plan.datasets[self.dataset_number]
        self.encode = worker.fast or worker.reference
        self.dtype = np.dtype(worker.plan.dtype)
        self.open_parts: dict[int, PartWriter] = {}
        self.parts: list[Part] = []
        self.skipped: Counter[str] = Counter()
        self.documents = self.empty = self.special = self.checked = self.truncated = self.text_bytes = 0

    def run(self) -> UnitReceipt:
        """The whole unit; leaves nothing behind when it fails."""
        try:
            for file, part in self.dataset.parts(self.unit):
                seed = file_seed(self.dataset.name, part.name)
                for batch in read_part(part):
                    self.add(batch, file, part, seed)
            for split in list(self.open_parts):
                self.parts.append(self.open_parts[split].commit())
                del self.open_parts[split]
        finally:
            for writer in self.open_parts.values():
                writer.bin.discard()
                writer.len.discard()
        receipt = UnitReceipt(
            self.number, self.worker.engine, self.documents, self.empty, dict(self.skipped), self.special,
            self.checked, self.truncated, self.text_bytes, self.parts,
        )  # fmt: skip
        write_receipt(unit_receipt(self.worker.build, self.number), receipt)
        return receipt

    def add(self, batch: Batch, file: int, part: FilePart, seed: int) -> None:
        """Take in one batch of a file."""
        refuse(batch.bad, part, self.options, self.dataset.name)
        self.skipped.update(kind for _, kind, _ in batch.bad)
        texts, keys, places = batch.texts, batch.keys, batch.places + int(self.dataset.bases[file])
        if self.options.min_doc_chars:
            long = [i for i, text in enumerate(texts) if len(text) >= self.options.min_doc_chars]
            if len(long) < len(texts):
                self.skipped["short"] += len(texts) - len(long)
                texts, keys, places = [texts[i] for i in long], keys[long], places[long]
        if not texts:
            return
        hashes = document_hash(seed, keys)
        ids, lengths = self.encode(texts)
        self.check(texts, keys, hashes, part)
        self.special += self.worker.count_special(ids)
        size = sum(map(len, texts))
        self.text_bytes += size
        self.documents += len(texts)
        tokens, lengths = self.frame(ids, lengths)
        self.empty += len(lengths) - int(np.count_nonzero(lengths))
        self.write(tokens, lengths, file, keys, places, split_of(hashes, self.dataset.bounds))
        self.worker.tick(size)

    def check(self, texts: list[str], keys: np.ndarray, hashes: np.ndarray, part: FilePart) -> None:
        """Compare one document in `check_every` with the reference."""
        every = self.options.check_every
        if not self.worker.fast or not every:
            return
        chosen = np.flatnonzero(hashes % np.uint64(every) == 0).tolist()
        self.checked += len(chosen)
        sample = [texts[i] for i in chosen]
        wrong = first_difference(self.worker.fast, self.worker.reference, sample)
        if wrong is not None:
            raise EngineMismatch(f"{part.path}, document with key {int(keys[chosen[wrong]])}")

    def frame(self, ids: np.ndarray, lengths: np.ndarray) -> Encoded:
        """Cut long documents, put BOS and EOS around each that has tokens, convert to the dtype on disk."""
        limit, info = self.options.max_doc_tokens, self.worker.plan.tokenizer
        if limit is not None and len(lengths) and int(lengths.max()) > limit:
            ids, lengths, cut = truncate(ids, lengths, limit)
            self.truncated += cut
        bos = info.bos_id if self.options.add_bos else None
        eos = info.eod_id if self.options.add_eos else None
        return frame(ids, lengths, bos, eos, self.dtype)

    def write(
        self, tokens: np.ndarray, lengths: np.ndarray, file: int, keys: np.ndarray, places: np.ndarray, splits: np.ndarray
    ) -> None:
        """Send runs of documents that go to the same shard to it, in order."""
        shards = np.empty(len(lengths), np.int64)
        for split in range(len(SPLITS)):
            mine = splits == split
            shards[mine] = np.searchsorted(self.dataset.shard_bounds[split], places[mine], "right") - 1
        route = shards * len(SPLITS) + splits
        starts = [0, *(np.flatnonzero(np.diff(route)) + 1).tolist(), len(route)]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for a, b in zip(starts[:-1], starts[1:], strict=True):
            writer = self.writer(int(splits[a]), int(shards[a]))
            run = tokens[offsets[a] : offsets[b]]
            writer.add(run, lengths[a:b].astype(np.int32), file, int(keys[a]), int(keys[b - 1]))

    def writer(self, split: int, shard: int) -> PartWriter:
        """The part being written for a split; places only grow, so an earlier shard's part is complete and is closed."""
        writer = self.open_parts.get(split)
        if writer and writer.shard == shard:
            return writer
        if writer:
            self.parts.append(writer.commit())
        name = f"{self.number:06d}.{SPLITS[split]}.{shard:05d}"
        path = self.worker.build / "units" / name
        writer = PartWriter(split, shard, name, Output(add_suffix(path, ".bin")), Output(add_suffix(path, ".len")))
        self.open_parts[split] = writer
        return writer


def truncate(ids: np.ndarray, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Keep the first `limit` ids of each document; also gives the number of documents that were cut."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    return ids[position < limit], np.minimum(lengths, limit), int(np.count_nonzero(lengths > limit))


def frame(ids: np.ndarray, lengths: np.ndarray, bos: int | None, eos: int | None, dtype: np.dtype) -> Encoded:
    """Put `bos` before and `eos` after every document that has ids; the new lengths count them."""
    full = lengths > 0
    extra = (bos is not None) + (eos is not None)
    lengths = lengths + extra * full
    out = np.empty(int(lengths.sum()), dtype)
    if not extra:
        out[:] = ids
        return out, lengths
    ends = np.cumsum(lengths)[full]
    text = np.ones(len(out), bool)
    if eos is not None:
        text[ends - 1] = False
    if bos is not None:
        text[ends - lengths[full]] = False
    out[text] = ids
    if eos is not None:
        out[ends - 1] = eos
    if bos is not None:
        out[ends - lengths[full]] = bos
    return out, lengths


# Joining


def join_shard(plan: Plan, build: Path, split: int, dataset: int, shard: int) -> ShardReceipt:
    """Make .bin and .idx of the parts, then the receipt. A single part is moved, several are copied in order."""
    receipts = shard_units(plan, build, split, dataset, shard)
    parts = [p for r in receipts for p in r.parts if (p.split, p.shard) == (split, shard)]
    name = plan.shard_name(split, dataset, shard)
    sequences, tokens = sum(p.sequences for p in parts), sum(p.tokens for p in parts)
    bin_sha = idx_sha = ""
    if sequences:
        filled = [p for p in parts if p.sequences]
        bin_path = build / f"{name}.bin"
        bin_sha = move_part(build, filled[0], bin_path) if len(filled) == 1 else copy_parts(build, filled, bin_path)
        index = Output(build / f"{name}.idx")
        try:
            documents = sum(p.documents for p in parts)
            write_index(index.write, lambda: lengths_of(build, parts), sequences, documents, plan.dtype)
            idx_sha = index.commit(sync=True)
        except BaseException:
            index.discard()
            raise
    engines = {r.engine for r in receipts}
    receipt = ShardReceipt(
        split=split, dataset=dataset, shard=shard, name=name if sequences else None,
        documents=sum(p.documents for p in parts), sequences=sequences, tokens=tokens,
        bin_bytes=sum(p.bytes for p in parts), bin_sha256=bin_sha, idx_sha256=idx_sha,
        engine="fastokens" if "fastokens" in engines else "tokenizers",
        first=parts[0].first if parts else None, last=parts[-1].last if parts else None,
    )  # fmt: skip
    write_receipt(shard_receipt(build, plan, split, dataset, shard), receipt)
    for part in parts:
        for suffix in (".bin", ".len"):
            add_suffix(build / "units" / part.name, suffix).unlink(missing_ok=True)
    return receipt


def shard_units(plan: Plan, build: Path, split: int, dataset: int, shard: int) -> list[UnitReceipt]:
    """Receipts of the units that a shard can have parts of, in order."""
    first, last = plan.datasets[dataset].units_of(split, shard)
    base = plan.first_units[dataset]
    return [read_unit(build, base + u) for u in range(first, last + 1) if plan.datasets[dataset].parts(u)]


def move_part(build: Path, part: Part, target: Path) -> str:
    """Give a part its shard's name; done already if a run was killed after it. Gives the SHA-256."""
    source = add_suffix(build / "units" / part.name, ".bin")
    if source.exists() or not target.exists():
        source.replace(target)
    with target.open("rb") as f:
        os.fsync(f.fileno())
    return part.sha256


def copy_parts(build: Path, parts: list[Part], target: Path) -> str:
    """Write parts one after another; gives the SHA-256."""
    out = Output(target)
    buffer = memoryview(bytearray(COPY))
    try:
        for part in parts:
            with add_suffix(build / "units" / part.name, ".bin").open("rb", buffering=0) as f:
                while n := f.readinto(buffer):
                    out.write(buffer[:n])
        return out.commit(sync=True)
    except BaseException:
        out.discard()
        raise


def lengths_of(build: Path, parts: list[Part]) -> Iterator[np.ndarray]:
    """int32 tokens per document of the parts, piece by piece."""
    for part in parts:
        with add_suffix(build / "units" / part.name, ".len").open("rb") as f:
            while data := f.read(COPY):
                yield np.frombuffer(data, np.int32)


# Receipts


def add_suffix(path: Path, suffix: str) -> Path:
    """`path` with a further suffix."""
    return path.with_name(path.name + suffix)


def unit_receipt(build: Path, number: int) -> Path:
    """Where a unit's receipt is."""
    return build / "units" / f"{number:06d}.json"


def shard_receipt(build: Path, plan: Plan, split: int, dataset: int, shard: int) -> Path:
    """Where a shard's receipt is."""
    return build / "shards" / f"{SPLITS[split]}.{plan.first_shard(split, dataset) + shard:05d}.json"


def write_receipt(path: Path, receipt: msgspec.Struct) -> None:
    """Write a receipt under a temporary name and rename it. One that a power cut spoils cannot be read and counts as none."""
    temp = temp_name(path)
    try:
        temp.write_bytes(msgspec.json.encode(receipt))
        temp.replace(path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise disk_error(error, str(path)) from error


def read_unit(build: Path, number: int) -> UnitReceipt:
    """Read a unit's receipt."""
    return msgspec.json.decode(unit_receipt(build, number).read_bytes(), type=UnitReceipt)


def read_receipt[R: msgspec.Struct](path: Path, kind: type[R]) -> R | None:
    """A receipt, or None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
