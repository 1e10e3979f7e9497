"""One unit of work: read a part of a dataset, tokenize it, write its documents as parts of shards."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from nano3.config import PrepOptions
from nano3.data.build.receipts import Fragment, UnitReceipt, unit_receipt, write_receipt
from nano3.data.build.shard_fragment import FragmentWriter, open_fragment
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan
from nano3.data.planning.shard_assignment import assign_shards, drop_short
from nano3.data.planning.splits import check_bad_rows, document_hash, file_seed, split_of
from nano3.data.sources.readers import Batch, FileRange, read_documents
from nano3.data.tokenization.encoders import Encoder, SpecialTokenCounter, first_difference
from nano3.data.tokenization.engines import FAST, REFERENCE
from nano3.data.tokenization.long_documents import LONG, encode_chunks
from nano3.data.tokenization.special_tokens import Framing

BATCH_CHARS = 1 << 20  # characters that are worth a call of the engine
CHECK_CHARS = 50_000  # characters of a document that are compared with the reference


class EngineMismatchError(Exception):
    """The fast engine gave other ids than the reference."""


@dataclass
class Worker:
    """What one process needs to do any piece of a plan. `fast` is None when the reference is to be used."""

    plan: Plan
    build: Path
    reference: Encoder
    fast: Encoder | None
    tick: Callable[[int], None] = lambda text_bytes: None
    count_special: SpecialTokenCounter = field(init=False)

    def __post_init__(self) -> None:
        self.count_special = SpecialTokenCounter(self.plan.tokenizer.special_ids)

    @property
    def engine(self) -> str:
        """Name of the engine in use."""
        return FAST if self.fast else REFERENCE

    def encode_unit(self, number: int) -> UnitReceipt:
        """Tokenize a unit and write its parts and receipt.

        Raises `EngineMismatchError` when a re-check fails, `Failure` or `UserError` naming file and row for bad input or
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
        self.framing = Framing.from_options(worker.plan.options, worker.plan.tokenizer, worker.plan.dtype)
        self.open_parts: dict[int, FragmentWriter] = {}
        self.parts: list[Fragment] = []
        self.skipped: Counter[str] = Counter()
        # Texts, and for each its file number, key, place in the dataset and hash.
        self.waiting: list[tuple[list[str], tuple[np.ndarray, ...]]] = []
        self.waiting_chars = 0
        self.documents = self.empty = self.special = self.checked = self.truncated = self.text_bytes = 0

    def run(self) -> UnitReceipt:
        """The whole unit; leaves no unfinished file behind when it fails."""
        try:
            for file, part in self.dataset.file_ranges(self.unit):
                seed = file_seed(self.dataset.name, part.name)
                for batch in read_documents(part):
                    self.add(batch, file, part, seed)
            self.flush()
            for split in list(self.open_parts):
                self.parts.append(self.open_parts[split].commit())
                del self.open_parts[split]
        finally:
            for writer in self.open_parts.values():
                writer.discard()
        receipt = UnitReceipt(
            self.number, self.worker.engine, self.documents, self.empty, dict(self.skipped), self.special,
            self.checked, self.truncated, self.text_bytes, self.parts,
        )  # fmt: skip
        write_receipt(unit_receipt(self.worker.build, self.number), receipt)
        return receipt

    def add(self, batch: Batch, file: int, part: FileRange, seed: int) -> None:
        """Take in one batch of a file. Documents wait until there are enough: small files would be slow one by one."""
        check_bad_rows(batch, part, self.options, self.dataset.name)
        self.skipped.update(kind for _, kind, _ in batch.bad)
        texts, keys, places = drop_short(batch, self.options.min_doc_chars)
        if len(texts) < len(batch.texts):
            self.skipped["short"] += len(batch.texts) - len(texts)
        columns = (
            np.full(len(keys), file),
            keys,
            places + int(self.dataset.file_offsets[file]),
            document_hash(seed, keys),
        )
        begin = 0
        for i in [i for i, text in enumerate(texts) if len(text) >= LONG]:
            self.wait(texts[begin:i], tuple(c[begin:i] for c in columns))
            self.flush()
            text, texts[i] = texts[i], ""  # this was the only reference, and a batch may hold several long texts
            self.stream(text, *(c[i] for c in columns))
            begin = i + 1
        self.wait(texts[begin:], tuple(c[begin:] for c in columns))

    def wait(self, texts: list[str], columns: tuple[np.ndarray, ...]) -> None:
        """Keep documents until there are enough."""
        if not texts:
            return
        self.waiting.append((texts, columns))
        self.waiting_chars += sum(map(len, texts))
        if self.waiting_chars >= BATCH_CHARS:
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
        size = sum(map(utf8_size, texts))
        self.text_bytes += size
        self.documents += len(texts)
        del texts
        tokens, lengths, cut = self.framing(ids, lengths)
        self.truncated += cut
        self.empty += len(lengths) - int(np.count_nonzero(lengths))
        self.write(tokens, lengths, files, keys, places, split_of(hashes, self.dataset.bounds))
        self.worker.tick(size)

    def stream(self, text: str, file: int, key: int, place: int, hash_: np.uint64) -> None:
        """Encode and write one long document piece by piece."""
        split = int(split_of(np.array([hash_]), self.dataset.bounds)[0])
        writer = self.writer(split, int(np.searchsorted(self.dataset.shard_bounds[split], place, "right")) - 1)
        length = kept = 0
        for ids, piece in encode_chunks(text, self.encode):
            if not length:
                self.check([piece], np.array([hash_]), np.array([file]), np.array([key]))
            self.special += self.worker.count_special(ids)
            tokens = self.framing.frame_chunk(ids, length, kept)
            length, kept = length + len(ids), kept + len(tokens)
            writer.add_tokens(tokens)
            size = utf8_size(piece)
            self.text_bytes += size
            self.worker.tick(size)
        end = self.framing.end_tokens(length)
        writer.add_tokens(end)
        where = (int(file), int(key))
        writer.end_documents(np.array([kept + len(end)], np.int32), where, where)
        self.documents += 1
        self.truncated += int(self.framing.limit is not None and length > self.framing.limit)

    def check(self, texts: list[str], hashes: np.ndarray, files: np.ndarray, keys: np.ndarray) -> None:
        """Compare one document in `check_every` with the reference; of a long one some stretch, for the reference takes
        half a second for a million characters.
        """
        every = self.options.check_every
        if not self.worker.fast or not every:
            return
        chosen = np.flatnonzero(hashes % np.uint64(every) == 0).tolist()
        self.checked += len(chosen)
        stretches = [check_window(texts[i], int(hashes[i])) for i in chosen]
        wrong = first_difference(self.worker.fast, self.worker.reference, stretches)
        if wrong is not None:
            i = chosen[wrong]
            raise EngineMismatchError(
                f"{self.dataset.whole_file(int(files[i])).path}, document with key {int(keys[i])}"
            )

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
        shards = assign_shards(self.dataset, splits, places)
        route = shards * len(SPLITS) + splits
        starts = [0, *(np.flatnonzero(np.diff(route)) + 1).tolist(), len(route)]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        for a, b in pairwise(starts):
            writer = self.writer(int(splits[a]), int(shards[a]))
            run = tokens[offsets[a] : offsets[b]]
            first, last = (int(files[a]), int(keys[a])), (int(files[b - 1]), int(keys[b - 1]))
            writer.add(run, lengths[a:b].astype(np.int32), first, last)

    def writer(self, split: int, shard: int) -> FragmentWriter:
        """The part being written for a split; places only grow, so an earlier shard's part is complete and is
        closed.
        """
        writer = self.open_parts.get(split)
        if writer and writer.shard == shard:
            return writer
        if writer:
            self.parts.append(writer.commit())
        writer = self.open_parts[split] = open_fragment(self.worker.build, self.number, split, shard)
        return writer


def check_window(text: str, number: int) -> str:
    """A text, or CHECKED characters of it from a place that the number gives."""
    start = number % (len(text) - CHECK_CHARS + 1) if len(text) > CHECK_CHARS else 0
    return text[start : start + CHECK_CHARS]


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
