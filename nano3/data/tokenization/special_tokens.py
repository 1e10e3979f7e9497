"""What stands on disk for the ids of documents: cut to a limit, between BOS and EOS, in the dtype of the shard."""

from dataclasses import dataclass

import numpy as np

from nano3.data.planning.plan import Plan
from nano3.data.tokenization.encoders import Encoded


@dataclass(frozen=True)
class Framing:
    """How documents are framed; `limit` is in ids of the text, BOS and EOS not counted."""

    bos: int | None
    eos: int | None
    limit: int | None
    dtype: np.dtype

    @classmethod
    def of(cls, plan: Plan) -> "Framing":
        """A plan's framing."""
        bos = plan.tokenizer.bos_id if plan.options.add_bos else None
        eos = plan.tokenizer.eod_id if plan.options.add_eos else None
        return cls(bos, eos, plan.options.max_doc_tokens, np.dtype(plan.dtype))

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokens and lengths of documents as written, and the number of documents that were cut."""
        cut = 0
        if self.limit is not None and len(lengths) and int(lengths.max()) > self.limit:
            ids, lengths, cut = truncate(ids, lengths, self.limit)
        return *frame(ids, lengths, self.bos, self.eos, self.dtype), cut

    def middle(self, ids: np.ndarray, before: int, written: int) -> np.ndarray:
        """Tokens of the next ids of a document of which `before` ids were seen and `written` tokens were written."""
        if self.limit is not None:
            ids = ids[: max(0, self.limit - before)]
        tokens = ids.astype(self.dtype)
        if self.bos is not None and not written and len(ids):
            tokens = np.concatenate([np.array([self.bos], self.dtype), tokens])
        return tokens

    def end(self, length: int) -> np.ndarray:
        """Tokens that end a document of `length` ids."""
        return np.array([self.eos] if self.eos is not None and length else [], self.dtype)


def truncate(ids: np.ndarray, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Keep the first `limit` ids of each document; also gives the number of documents that were cut."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    return ids[position < limit], np.minimum(lengths, limit), int(np.count_nonzero(lengths > limit))


def frame(ids: np.ndarray, lengths: np.ndarray, bos: int | None, eos: int | None, dtype: np.dtype) -> Encoded:
    """Put `bos` before and `eos` after every document that has ids; the new lengths count them."""
    if dtype.itemsize == ids.itemsize:
        ids = ids.view(dtype)  # an id is far below 2^31: no conversion needed
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
