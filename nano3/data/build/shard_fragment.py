"""Write a fragment: the documents of one unit that belong to one shard."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano3.data.build.direct_writer import DirectWriter
from nano3.data.build.receipts import Fragment, add_suffix
from nano3.data.planning.plan import SPLITS

DocumentRef = tuple[int, int]  # file number in the dataset, key of the document in the file


def open_fragment(build: Path, unit: int, split: int, shard: int) -> "FragmentWriter":
    """Create the files of a fragment under temporary names.

    Args:
        build: Folder of the build.
        unit: Number of the unit in the plan.
        split: Index in `SPLITS`.
        shard: Number of the shard in its dataset and split.

    Raises:
        Failure: If a file cannot be created; then none is left.
    """
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
    """A fragment being written."""

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
        """Append whole documents.

        Args:
            tokens: Tokens of all documents, back to back, in the dtype of the shard.
            lengths: int32[documents], tokens per document; 0 for an empty one.
            first: The first document.
            last: The last document.
        """
        self.add_tokens(tokens)
        self.end_documents(lengths, first, last)

    def add_tokens(self, tokens: np.ndarray) -> None:
        """Append tokens of documents that `end_documents` ends later."""
        self.tokens += len(tokens)
        self.bin.write(tokens.data)

    def end_documents(self, lengths: np.ndarray, first: DocumentRef, last: DocumentRef) -> None:
        """Record the documents whose tokens have been appended.

        Args:
            lengths: int32[documents], tokens per document; 0 for an empty one.
            first: The first document.
            last: The last document.
        """
        if not self.documents:
            self.first = first
        self.last = last
        self.documents += len(lengths)
        self.sequences += int(np.count_nonzero(lengths))
        self.len.write(lengths.data)

    def discard(self) -> None:
        """Remove the files."""
        self.bin.discard()
        self.len.discard()

    def commit(self) -> Fragment:
        """Rename both files to their final names and return the fragment."""
        return Fragment(
            self.split, self.shard, self.name, self.documents, self.sequences, self.tokens, self.bin.size,
            self.bin.commit(sync=False), self.len.commit(sync=False), self.first, self.last,
        )  # fmt: skip
