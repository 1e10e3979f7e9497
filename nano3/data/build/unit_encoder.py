"""Build one unit of a plan: read its part of a dataset, tokenize it, and write its documents as fragments of shards."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import filterfalse, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nano3.config import PrepOptions
from nano3.data.build.duplicates import write_unit_hashes
from nano3.data.build.receipts import BadFile, Fragment, UnitReceipt, unit_receipt_path, write_receipt
from nano3.data.build.shard_fragment import FragmentWriter, open_fragment
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan
from nano3.data.planning.shard_assignment import assign_shards, drop_short
from nano3.data.planning.splits import (
    bad_row_error,
    check_bad_rows,
    document_hash,
    file_seed,
    splits_in_plan,
    text_hashes,
)
from nano3.data.sources.readers import Batch, FileRange, read_documents
from nano3.data.tokenization.encoders import Encoded, EncodeError, Encoder, SpecialTokenCounter, first_difference
from nano3.data.tokenization.engines import FAST, REFERENCE
from nano3.data.tokenization.long_documents import LONG, encode_chunks
from nano3.data.tokenization.special_tokens import Framing

BATCH_CHARS = 1 << 19  # characters for one call of the engine; 2^20 were slower in most measurements
CHECK_CHARS = 50_000  # characters of a document that are compared with the reference


class EngineMismatchError(Exception):
    """The fast engine gave other ids than the reference for a document, which the message names."""


@dataclass
class Worker:
    """What one process needs to build any unit of a plan.

    Attributes:
        plan: The plan.
        build: Folder of the build.
        reference: Encoder of the reference engine.
        fast: Encoder of the fast engine, or None to use the reference.
        tick: Called with the bytes of text that were encoded.
        note: Called with (dataset, file, key) of the document that is encoded next.
        count_special: Counts special tokens in ids.
    """

    plan: Plan
    build: Path
    reference: Encoder
    fast: Encoder | None
    tick: Callable[[int], None] = lambda text_bytes: None
    note: Callable[[tuple[int, int, int]], None] = lambda document: None
    count_special: SpecialTokenCounter = field(init=False)

    def __post_init__(self) -> None:
        self.count_special = SpecialTokenCounter(self.plan.tokenizer.special_ids)

    @property
    def engine(self) -> str:
        """Name of the engine in use."""
        return FAST if self.fast else REFERENCE

    def encode_unit(self, number: int) -> UnitReceipt:
        """Tokenize unit `number` of the plan and write its fragments and receipt.

        Raises:
            EngineMismatchError: If a document has other ids with the reference engine.
            UserError: If the text field is wrong.
            Failure: For a bad row, with its file and number, or a full disk.
        """
        return UnitEncoder(self, number).run()


class Columns(NamedTuple):
    """Arrays of equal length with one entry for each document.

    Attributes:
        files: File number in the dataset.
        keys: Key of the document in the file.
        offsets: int64 offset in the dataset.
        hashes: uint64 hash of the document that decides its split. With split_by=text it is set once the document is
            encoded, as the engine leaves the UTF-8 form in the string.
    """

    files: np.ndarray
    keys: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray

    def slice(self, start: int, stop: int | None) -> "Columns":
        """Return the entries of documents `start` to `stop`."""
        return Columns(*(column[start:stop] for column in self))


class UnitEncoder:
    """One unit in progress: read, filter, assign to shards, encode, write."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.number = number
        self.options: PrepOptions = worker.plan.options
        self.dataset_number, self.unit = worker.plan.unit(number)
        self.dataset: DatasetPlan = worker.plan.datasets[self.dataset_number]
        self.encode = worker.fast or worker.reference
        self.framing = Framing.from_options(worker.plan.options, worker.plan.tokenizer, worker.plan.dtype)
        self.writers: dict[int, FragmentWriter] = {}  # by split
        self.fragments: list[Fragment] = []
        self.skipped: Counter[str] = Counter()
        self.bad_files: dict[int, BadFile] = {}  # by file number
        self.pending: list[tuple[list[str], Columns]] = []
        self.pending_chars = 0
        self.by_text = self.options.split_by == "text"
        self.exact = self.options.dedup == "exact"
        # Text hashes by split and shard with dedup=exact, else all high halves under (0, 0).
        self.text_hashes: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        self.documents = self.empty = self.special = self.checked = self.truncated = self.text_bytes = 0
        self.unencoded = 0

    def run(self) -> UnitReceipt:
        """Build the unit. Leave no unfinished file behind on failure."""
        try:
            for file, file_range in self.dataset.file_ranges(self.unit):
                seed = file_seed(self.dataset.name, file_range.name)
                for batch in read_documents(file_range):
                    self.add(batch, file, file_range, seed)
            self.flush()
            for split in list(self.writers):
                self.fragments.append(self.writers[split].commit())
                del self.writers[split]
            hashed, checksum = 0, ""
            if self.by_text:
                ordered = [hashes for _, found in sorted(self.text_hashes.items()) for hashes in found]
                hashed, checksum = write_unit_hashes(self.worker.build, self.number, ordered, self.exact)
        finally:
            for writer in self.writers.values():
                writer.discard()
        receipt = UnitReceipt(
            unit=self.number,
            engine=self.worker.engine,
            documents=self.documents,
            empty=self.empty,
            skipped=dict(self.skipped),
            special=self.special,
            checked=self.checked,
            truncated=self.truncated,
            text_bytes=self.text_bytes,
            fragments=self.fragments,
            unencoded=self.unencoded,
            bad_file=max(self.bad_files.values(), key=lambda bad: bad.rows, default=None),
            hashed=hashed,
            hash_xxh128=checksum,
        )
        write_receipt(unit_receipt_path(self.worker.build, self.number), receipt)
        return receipt

    def add(self, batch: Batch, file: int, file_range: FileRange, seed: int) -> None:
        """Add one batch of a file. Short documents are collected, as small files would be slow one by one.

        Args:
            batch: Documents of the file.
            file: Number of the file in the dataset.
            file_range: The part of the file that is read.
            seed: Result of `file_seed`.
        """
        check_bad_rows(batch, file_range, self.options, self.dataset.name)
        if batch.bad:
            self.skipped.update(kind for _, kind, _ in batch.bad)
            key, _, reason = batch.bad[0]
            self.count_bad_rows(file, key, reason, len(batch.bad))
        texts, keys, offsets = drop_short(batch, self.options.min_doc_chars)
        if len(texts) < len(batch.texts):
            self.skipped["short"] += len(batch.texts) - len(texts)
        offsets = offsets + int(self.dataset.file_offsets[file])
        hashes = np.zeros(len(keys), np.uint64) if self.by_text else document_hash(seed, keys)
        columns = Columns(np.full(len(keys), file), keys, offsets, hashes)
        if max(map(len, texts), default=0) < LONG:
            self.collect(texts, columns)
            return
        begin = 0
        for i in [i for i, text in enumerate(texts) if len(text) >= LONG]:
            self.collect(texts[begin:i], columns.slice(begin, i))
            self.flush()
            text, texts[i] = texts[i], ""  # drop the reference in the batch, which may hold several long texts
            self.stream(text, *(column[i] for column in columns))
            begin = i + 1
        self.collect(texts[begin:], columns.slice(begin, None))

    def count_bad_rows(self, file: int, key: int, reason: str, rows: int) -> None:
        """Count bad rows of a file, the first of which has a key and a reason."""
        self.bad_files.setdefault(file, BadFile(file, 0, key, reason)).rows += rows

    def collect(self, texts: list[str], columns: Columns) -> None:
        """Hold documents back until there are `BATCH_CHARS` characters."""
        if not texts:
            return
        self.pending.append((texts, columns))
        self.pending_chars += sum(map(len, texts))
        if self.pending_chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Encode and write the pending documents."""
        if not self.pending:
            return
        texts = [text for batch, _ in self.pending for text in batch]
        columns = Columns(*(np.concatenate(c) for c in zip(*(columns for _, columns in self.pending), strict=True)))
        self.pending, self.pending_chars = [], 0
        self.worker.note((self.dataset_number, int(columns.files[0]), int(columns.keys[0])))
        ids, lengths = self.encode_documents(texts, columns)
        hashes = text_hashes(texts) if self.by_text else None
        if hashes is not None:
            columns = columns._replace(hashes=np.ascontiguousarray(hashes[:, 0]))
        size = utf8_size(texts)
        self.check(texts, columns)
        self.special += self.worker.count_special(ids)
        self.text_bytes += size
        self.documents += len(texts)
        del texts
        tokens, lengths, truncated = self.framing(ids, lengths)
        self.truncated += truncated
        self.empty += len(lengths) - int(np.count_nonzero(lengths))
        self.write(tokens, lengths, columns, hashes)
        self.worker.tick(size)

    def encode_documents(self, texts: list[str], columns: Columns) -> Encoded:
        """Encode documents. One that no engine can encode has no ids, and is counted.

        Raises:
            Failure: A document cannot be encoded, and bad_rows=fail.
        """
        try:
            return self.encode(texts)
        except EncodeError:
            rows = []
            for text, file, key in zip(texts, columns.files.tolist(), columns.keys.tolist(), strict=True):
                try:
                    rows.append(self.encode_or_retry([text])[0])
                except EncodeError as error:
                    self.leave_out(file, key, error)
                    rows.append(np.empty(0, np.uint32))
            return np.concatenate(rows), np.array([len(row) for row in rows], np.int64)

    def encode_or_retry(self, texts: list[str]) -> Encoded:
        """Encode texts with the reference engine if the fast one fails: its ids are correct by definition."""
        try:
            return self.encode(texts)
        except EncodeError:
            if not self.worker.fast:
                raise
            return self.worker.reference(texts)

    def leave_out(self, file: int, key: int, error: EncodeError) -> None:
        """Count a document that no engine can encode; raise Failure if bad_rows=fail."""
        reason = f"the text cannot be tokenized ({error})"
        if self.options.bad_rows != "skip":
            raise bad_row_error(self.dataset.whole_file(file), key, self.dataset.name, reason)
        self.unencoded += 1
        self.count_bad_rows(file, key, reason, 1)

    def stream(self, text: str, file: int, key: int, offset: int, hash_: np.uint64) -> None:
        """Encode and write one long document in chunks.

        Args:
            text: The document.
            file: Number of the file in the dataset.
            key: Key of the document in the file.
            offset: Offset of the document in the dataset.
            hash_: Hash of the document that decides its split; unused with split_by=text.
        """
        hashes = text_hashes([text]) if self.by_text else None
        if hashes is not None:
            hash_ = hashes[0, 0]
        splits = splits_in_plan(self.worker.plan, self.dataset, np.array([hash_]))
        shards = assign_shards(self.dataset, splits, np.array([offset], np.int64))
        writer = self.writer(int(splits[0]), int(shards[0]))
        self.keep_hashes(hashes, int(splits[0]), int(shards[0]))
        length = written = 0
        document = (int(file), int(key))
        self.worker.note((self.dataset_number, *document))
        for ids, chunk in self.encode_long(text, *document):
            if not length:
                self.check([chunk], Columns(*(np.array([value]) for value in (file, key, offset, hash_))))
            self.special += self.worker.count_special(ids)
            tokens = self.framing.frame_chunk(ids, length, written)
            length, written = length + len(ids), written + len(tokens)
            writer.add_tokens(tokens)
            size = utf8_size([chunk])
            self.text_bytes += size
            self.worker.tick(size)
        end = self.framing.end_tokens(length)
        writer.add_tokens(end)
        writer.end_documents(np.array([written + len(end)], np.int32), document, document)
        self.documents += 1
        self.empty += not length
        self.truncated += int(self.framing.limit is not None and length > self.framing.limit)

    def encode_long(self, text: str, file: int, key: int) -> Iterator[tuple[np.ndarray, str]]:
        """Yield the ids and the text of each chunk of a long document, or nothing if no engine can encode it.

        Args:
            text: The document.
            file: Number of the file in the dataset.
            key: Key of the document in the file.

        Raises:
            Failure: The document cannot be encoded, and bad_rows=fail or its beginning is already written.
        """
        begun = False
        try:
            for ids, chunk in encode_chunks(text, self.encode_or_retry):
                begun = True
                yield ids, chunk
        except EncodeError as error:
            if begun:
                reason = f"the text cannot be tokenized ({error})"
                raise bad_row_error(self.dataset.whole_file(file), key, self.dataset.name, reason) from error
            self.leave_out(file, key, error)

    def check(self, texts: list[str], columns: Columns) -> None:
        """Compare one document in `check_every` with the reference engine.

        Only `CHECK_CHARS` characters of a long document are compared, as the reference takes half a second for a
        million.

        Raises:
            EngineMismatchError: If the ids differ.
        """
        every = self.options.check_every
        if not self.worker.fast or not every:
            return
        chosen = np.flatnonzero(columns.hashes % np.uint64(every) == 0).tolist()
        self.checked += len(chosen)
        windows = [check_window(texts[i], int(columns.hashes[i])) for i in chosen]
        try:
            wrong = first_difference(self.worker.fast, self.worker.reference, windows)
        except EncodeError:
            wrong = next((i for i, text in enumerate(windows) if self.differs(text)), None)
        if wrong is not None:
            i = chosen[wrong]
            path = self.dataset.whole_file(int(columns.files[i])).path
            raise EngineMismatchError(f"{path}, document with key {int(columns.keys[i])}")

    def differs(self, text: str) -> bool:
        """Return whether one engine alone can encode a text, or both give different ids."""
        results = []
        for encode in (self.encode, self.worker.reference):
            try:
                results.append(encode([text])[0].tolist())
            except EncodeError:
                results.append(None)
        return bool(results[0] != results[1])

    def keep_hashes(self, hashes: np.ndarray | None, split: int, shard: int) -> None:
        """Keep the hashes of texts for `write_unit_hashes`.

        Args:
            hashes: Result of `text_hashes` for documents of the shard, or None with split_by=position.
            split: Index in `SPLITS`.
            shard: Number of the shard.
        """
        if hashes is not None and self.exact:
            self.text_hashes[split, shard].append(hashes)
        elif hashes is not None:
            self.text_hashes[0, 0].append(hashes[:, 0])

    def write(self, tokens: np.ndarray, lengths: np.ndarray, columns: Columns, hashes: np.ndarray | None) -> None:
        """Append documents to their fragments, in order, one run of documents for the same shard at a time.

        Args:
            tokens: Tokens of all documents, back to back, in the dtype of the shards.
            lengths: Tokens per document.
            columns: Where the documents come from.
            hashes: Result of `text_hashes` for them, or None with split_by=position.
        """
        if self.by_text and not self.exact:
            self.text_hashes[0, 0].append(columns.hashes)
        files, keys = columns.files, columns.keys
        splits = splits_in_plan(self.worker.plan, self.dataset, columns.hashes)
        shards = assign_shards(self.dataset, splits, columns.offsets)
        route = shards * len(SPLITS) + splits
        starts = [0, *(np.flatnonzero(np.diff(route)) + 1).tolist(), len(route)]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        for a, b in pairwise(starts):
            writer = self.writer(int(splits[a]), int(shards[a]))
            run = tokens[ends[a] : ends[b]]
            first, last = (int(files[a]), int(keys[a])), (int(files[b - 1]), int(keys[b - 1]))
            writer.add(run, lengths[a:b].astype(np.int32), first, last)
            if self.exact and hashes is not None:
                self.keep_hashes(hashes[a:b], int(splits[a]), int(shards[a]))

    def writer(self, split: int, shard: int) -> FragmentWriter:
        """Return the writer of a shard's fragment.

        Offsets only grow, so an earlier shard of the split is complete and its fragment is committed.
        """
        writer = self.writers.get(split)
        if writer and writer.shard == shard:
            return writer
        if writer:
            self.fragments.append(writer.commit())
        writer = self.writers[split] = open_fragment(self.worker.build, self.number, split, shard)
        return writer


def check_window(text: str, number: int) -> str:
    """Return the text, or `CHECK_CHARS` characters of it from a position derived from `number`."""
    start = number % (len(text) - CHECK_CHARS + 1) if len(text) > CHECK_CHARS else 0
    return text[start : start + CHECK_CHARS]


def utf8_size(texts: list[str]) -> int:
    """Return the size of texts in bytes of UTF-8."""
    return sum(map(len, texts)) + sum(len(text.encode()) - len(text) for text in filterfalse(str.isascii, texts))
