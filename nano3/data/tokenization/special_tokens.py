"""From the ids of documents to the tokens on disk: cut to a limit, framed by BOS and EOS, in the dtype of the shard."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nano3.config import PrepOptions
from nano3.data.tokenization.encoders import Encoded
from nano3.data.tokenization.tokenizer import TokenizerInfo

JOIN_TOKENS = 200  # mean length of documents from which `join_documents` is faster than `frame_by_mask` (measured)


@dataclass(frozen=True)
class Framing:
    """How documents are written.

    Attributes:
        bos: Id written before each document, or None.
        eos: Id written after each document, or None.
        limit: Maximum number of ids of a document's text, without BOS and EOS; None for no limit.
        dtype: Dtype of the tokens on disk.
    """

    bos: int | None
    eos: int | None
    limit: int | None
    dtype: np.dtype

    @classmethod
    def from_options(cls, options: PrepOptions, tokenizer: TokenizerInfo, dtype: str) -> "Framing":
        """Return the framing that the options of a preparation ask for."""
        bos = tokenizer.bos_id if options.add_bos else None
        eos = tokenizer.eod_id if options.add_eos else None
        return cls(bos, eos, options.max_doc_tokens, np.dtype(dtype))

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Frame whole documents.

        Args:
            ids: uint32 ids of all documents, back to back.
            lengths: int64 number of ids of each document.

        Returns:
            The tokens to write, the int64 number of tokens of each document, and how many documents were cut.
        """
        cut = 0
        if self.limit is not None and len(lengths) and int(lengths.max()) > self.limit:
            ids, lengths, cut = truncate(ids, lengths, self.limit)
        return *frame(ids, lengths, self.bos, self.eos, self.dtype), cut

    def frame_chunk(self, ids: np.ndarray, seen: int, written: int) -> np.ndarray:
        """Return the tokens to write for the next chunk of a long document.

        Args:
            ids: uint32 ids of the chunk.
            seen: Number of ids in the document's earlier chunks.
            written: Number of tokens written for them.
        """
        if self.limit is not None:
            ids = ids[: max(0, self.limit - seen)]
        tokens = ids.astype(self.dtype)
        if self.bos is not None and not written and len(ids):
            tokens = np.concatenate([np.array([self.bos], self.dtype), tokens])
        return tokens

    def end_tokens(self, length: int) -> np.ndarray:
        """Return the tokens that follow the last chunk of a document of `length` ids."""
        return np.array([self.eos] if self.eos is not None and length else [], self.dtype)


def truncate(ids: np.ndarray, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the first `limit` ids of each document, the new lengths, and how many documents were cut."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    return ids[position < limit], np.minimum(lengths, limit), int(np.count_nonzero(lengths > limit))


def frame(ids: np.ndarray, lengths: np.ndarray, bos: int | None, eos: int | None, dtype: np.dtype) -> Encoded:
    """Put `bos` before and `eos` after every document that has ids.

    Args:
        ids: uint32 ids of all documents, back to back.
        lengths: int64 number of ids of each document.
        bos: Id to write before each document, or None.
        eos: Id to write after each document, or None.
        dtype: Dtype of the result.

    Returns:
        The tokens, and the int64 number of tokens of each document.
    """
    if dtype.itemsize == ids.itemsize:
        ids = ids.view(dtype)  # ids are far below 2^31, so no conversion is needed
    full = lengths > 0
    extra = (bos is not None) + (eos is not None)
    framed = lengths + extra * full
    if not extra:
        return ids.astype(dtype, copy=False), framed
    if len(ids) >= JOIN_TOKENS * max(int(np.count_nonzero(full)), 1):
        return join_documents(ids.astype(dtype, copy=False), lengths[full], bos, eos), framed
    return frame_by_mask(ids, framed, np.cumsum(framed)[full], bos, eos, dtype), framed


def join_documents(ids: np.ndarray, lengths: np.ndarray, bos: int | None, eos: int | None) -> np.ndarray:
    """Return the tokens that `frame` returns, in a read-only array. The work is that of copying, and per document.

    Args:
        ids: Ids of all documents, back to back, in the dtype of the result.
        lengths: int64 number of ids of each document that has any.
        bos: Id to write before each document, or None.
        eos: Id to write after each document, or None.
    """
    view = memoryview(ids).cast("B")
    ends = (np.cumsum(lengths) * ids.itemsize).tolist()
    texts = (view[start:end] for start, end in pairwise([0, *ends]))
    between = np.array([i for i in (eos, bos) if i is not None], ids.dtype).tobytes()
    tokens = np.frombuffer(between.join([b"", *texts, b""]), ids.dtype)
    return tokens[int(eos is not None) : len(tokens) - int(bos is not None)]


def frame_by_mask(
    ids: np.ndarray, framed: np.ndarray, ends: np.ndarray, bos: int | None, eos: int | None, dtype: np.dtype
) -> np.ndarray:
    """Return the tokens that `frame` returns. The work is that of a mask of all tokens.

    Args:
        ids: Ids of all documents, back to back.
        framed: int64 number of tokens to write of each document.
        ends: int64 end in the result of each document that has ids.
        bos: Id to write before each document, or None.
        eos: Id to write after each document, or None.
        dtype: Dtype of the result.
    """
    out = np.empty(int(framed.sum()), dtype)
    starts = ends - framed[framed > 0]
    text = np.ones(len(out), bool)
    if eos is not None:
        text[ends - 1] = False
        out[ends - 1] = eos
    if bos is not None:
        text[starts] = False
        out[starts] = bos
    out[text] = ids
    return out
