"""One unit of work: read a part of a dataset, tokenize it, write its documents as parts of shards."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from nano3.config import PrepOptions
from nano3.data.engines import FAST, REFERENCE
from nano3.data.plan import SPLITS, DatasetPlan, Plan
from nano3.data.readers import Batch, FilePart, read_part
from nano3.data.receipts import Output, Part, UnitReceipt, add_suffix, unit_receipt, write_receipt
from nano3.data.splits import document_hash, file_seed, refuse, split_of
from nano3.data.tokenize import Encoded, Encoder, SpecialCounter, first_difference

ENOUGH = 1 << 20  # characters that are worth a call of the engine


class EngineMismatch(Exception):
    """The fast engine gave other ids than the reference."""


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

    def add(self, tokens: np.ndarray, lengths: np.ndarray, first: tuple[int, int], last: tuple[int, int]) -> None:
        """Append documents: their tokens back to back and their lengths (int32, 0 for an empty one)."""
        if not self.documents:
            self.first = first
        self.last = last
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
        return FAST if self.fast else REFERENCE

    def encode_unit(self, number: int) -> UnitReceipt:
        """Tokenize a unit and write its parts and receipt.

        Raises `EngineMismatch` when a re-check fails, `Failure` or `UserError` naming file and row for bad input or
        a full disk.
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
        # Texts, and for each its file number, key, place in the dataset and hash.
        self.waiting: list[tuple[list[str], tuple[np.ndarray, ...]]] = []
        self.waiting_chars = 0
        self.documents = self.empty = self.special = self.checked = self.truncated = self.text_bytes = 0

    def run(self) -> UnitReceipt:
        """The whole unit; leaves nothing behind when it fails."""
        try:
            for file, part in self.dataset.parts(self.unit):
                seed = file_seed(self.dataset.name, part.name)
                for batch in read_part(part):
                    self.add(batch, file, part, seed)
            self.flush()
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
        """Take in one batch of a file. Documents wait until there are enough: small files would be slow one by one."""
        refuse(batch.bad, part, self.options, self.dataset.name)
        self.skipped.update(kind for _, kind, _ in batch.bad)
        texts, keys, places = batch.texts, batch.keys, batch.places
        if self.options.min_doc_chars:
            long = [i for i, text in enumerate(texts) if len(text) >= self.options.min_doc_chars]
            if len(long) < len(texts):
                self.skipped["short"] += len(texts) - len(long)
                texts, keys, places = [texts[i] for i in long], keys[long], places[long]
        if not texts:
            return
        columns = (np.full(len(keys), file), keys, places + int(self.dataset.bases[file]), document_hash(seed, keys))
        self.waiting.append((texts, columns))
        self.waiting_chars += sum(map(len, texts))
        if self.waiting_chars >= ENOUGH:
            self.flush()

    def flush(self) -> None:
        """Encode and write the documents that wait."""
        if not self.waiting:
            return
        texts = [text for batch, _ in self.waiting for text in batch]
        files, keys, places, hashes = (np.concatenate(c) for c in zip(*(w[1] for w in self.waiting), strict=True))
        self.waiting, self.waiting_chars = [], 0
        ids, lengths = self.encode(texts)
        self.check(texts, hashes, files, keys)
        self.special += self.worker.count_special(ids)
        size = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
        self.text_bytes += size
        self.documents += len(texts)
        del texts
        tokens, lengths = self.frame(ids, lengths)
        self.empty += len(lengths) - int(np.count_nonzero(lengths))
        self.write(tokens, lengths, files, keys, places, split_of(hashes, self.dataset.bounds))
        self.worker.tick(size)

    def check(self, texts: list[str], hashes: np.ndarray, files: np.ndarray, keys: np.ndarray) -> None:
        """Compare one document in `check_every` with the reference."""
        every = self.options.check_every
        if not self.worker.fast or not every:
            return
        chosen = np.flatnonzero(hashes % np.uint64(every) == 0).tolist()
        self.checked += len(chosen)
        wrong = first_difference(self.worker.fast, self.worker.reference, [texts[i] for i in chosen])
        if wrong is not None:
            i = chosen[wrong]
            raise EngineMismatch(f"{self.dataset.whole(int(files[i])).path}, document with key {int(keys[i])}")

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
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        files: np.ndarray,
        keys: np.ndarray,
        places: np.ndarray,
        splits: np.ndarray,
    ) -> None:
        """Send runs of documents that go to the same shard to it, in order."""
        shards = np.empty(len(lengths), np.int64)
        for split in range(len(SPLITS)):
            mine = splits == split
            shards[mine] = np.searchsorted(self.dataset.shard_bounds[split], places[mine], "right") - 1
        route = shards * len(SPLITS) + splits
        starts = [0, *(np.flatnonzero(np.diff(route)) + 1).tolist(), len(route)]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for a, b in pairwise(starts):
            writer = self.writer(int(splits[a]), int(shards[a]))
            run = tokens[offsets[a] : offsets[b]]
            first, last = (int(files[a]), int(keys[a])), (int(files[b - 1]), int(keys[b - 1]))
            writer.add(run, lengths[a:b].astype(np.int32), first, last)

    def writer(self, split: int, shard: int) -> PartWriter:
        """The part being written for a split; places only grow, so an earlier shard's part is complete and is
        closed.
        """
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
