"""One part: the documents of one unit that go to one shard, as they are written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import Fragment, add_suffix
from nano3.data.planning.plan import SPLITS

DocumentRef = tuple[int, int]  # file number in the dataset, key of the document in the file


def open_fragment(build: Path, unit: int, split: int, shard: int) -> "FragmentWriter":
    """Start a part in the build's folder."""
    name = f"{unit:06d}.{SPLITS[split]}.{shard:05d}"
    path = build / "units" / name
    tokens = DirectWriter(add_suffix(path, ".bin"))
    try:
        return FragmentWriter(split, shard, name, tokens, DirectWriter(add_suffix(path, ".len")))
    except BaseException:
        tokens.discard()
        raise


@dataclass
class FragmentWriter:
    """Collects one part."""

    split: int
    shard: int
    name: str
    bin: DirectWriter
    len: DirectWriter
    documents: int = 0
    sequences: int = 0
    tokens: int = 0
    first: DocumentRef = (0, 0)
    last: DocumentRef = (0, 0)

    def add(self, tokens: np.ndarray, lengths: np.ndarray, first: DocumentRef, last: DocumentRef) -> None:
        """Append documents: their tokens back to back and their lengths (int32, 0 for an empty one)."""
        self.add_tokens(tokens)
        self.end_documents(lengths, first, last)

    def add_tokens(self, tokens: np.ndarray) -> None:
        """Append tokens of documents whose end is told later."""
        self.tokens += len(tokens)
        self.bin.write(tokens.data)

    def end_documents(self, lengths: np.ndarray, first: DocumentRef, last: DocumentRef) -> None:
        """Tell the lengths (int32) of documents whose tokens have been appended."""
        if not self.documents:
            self.first = first
        self.last = last
        self.documents += len(lengths)
        self.sequences += int(np.count_nonzero(lengths))
        self.len.write(lengths.data)

    def discard(self) -> None:
        """Remove what was written."""
        self.bin.discard()
        self.len.discard()

    def commit(self) -> Fragment:
        """Give both files their names."""
        return Fragment(
            self.split, self.shard, self.name, self.documents, self.sequences, self.tokens, self.bin.size,
            self.bin.commit(sync=False), self.len.commit(sync=False), self.first, self.last,
        )  # fmt: skip
