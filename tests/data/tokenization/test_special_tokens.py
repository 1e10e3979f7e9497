"""Framing of documents, whole and in chunks."""

from pathlib import Path

import numpy as np
import pytest
from data_helpers import paper_dataset, paper_plan
from hypothesis import example, given
from hypothesis import strategies as st

from nano3.data.tokenization import special_tokens
from nano3.data.tokenization.special_tokens import Framing, frame, truncate

ends = st.sampled_from([None, 7])


def whole(framing: Framing, rows: list[list[int]]) -> tuple[list[list[int]], int]:
    """Tokens of each document, and how many documents were cut."""
    ids, lengths = np.array([i for row in rows for i in row], np.uint32), np.array(list(map(len, rows)), np.int64)
    tokens, lengths, cut = framing(ids, lengths)
    assert tokens.dtype == framing.dtype
    assert len(tokens) == lengths.sum()
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] if rows else [], cut


def in_chunks(framing: Framing, chunks: list[list[int]]) -> list[int]:
    """Tokens of one document that is written in chunks."""
    length, tokens = 0, list[int]()
    for chunk in chunks:
        tokens += framing.frame_chunk(np.array(chunk, np.uint32), length, len(tokens)).tolist()
        length += len(chunk)
    return tokens + framing.end_tokens(length).tolist()


@given(
    chunks=st.lists(st.lists(st.integers(8, 900), max_size=5), max_size=6),
    bos=ends,
    eos=ends,
    limit=st.none() | st.integers(1, 12),
    dtype=st.sampled_from(["uint16", "int32"]),
)
@example(chunks=[[], [8, 9]], bos=7, eos=7, limit=1, dtype="uint16")  # a chunk of text may have no ids
@example(chunks=[[8], [9], [10]], bos=7, eos=7, limit=1, dtype="int32")  # nothing follows after the limit
def test_chunks_are_framed_like_the_whole_document(
    chunks: list[list[int]], bos: int | None, eos: int | None, limit: int | None, dtype: str
) -> None:
    framing = Framing(bos, eos, limit, np.dtype(dtype))
    document = [i for chunk in chunks for i in chunk]
    assert in_chunks(framing, chunks) == whole(framing, [document])[0][0]


@given(rows=st.lists(st.lists(st.integers(8, 900), max_size=6), max_size=8), limit=st.none() | st.integers(1, 7))
def test_documents_are_framed_independently(rows: list[list[int]], limit: int | None) -> None:
    framing = Framing(1, 2, limit, np.dtype("uint16"))
    single = [whole(framing, [row]) for row in rows]
    together, cut = whole(framing, rows)
    assert together == [tokens[0] for tokens, _ in single]
    assert cut == sum(n for _, n in single)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_ids_of_the_engine_are_not_changed(dtype: str) -> None:
    """The fast engine's arrays are views of its own memory, and a re-check may read them again."""
    ids = np.frombuffer(np.arange(10, dtype=np.uint32).tobytes(), np.uint32)
    Framing(None, 2, 3, np.dtype(dtype))(ids, np.array([4, 6], np.int64))
    Framing(1, None, None, np.dtype(dtype))(ids, np.array([4, 6], np.int64))
    assert ids.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, (None, 2, None)),
        ({"add_bos": True}, (1, 2, None)),
        ({"add_eos": False, "max_doc_tokens": 5}, (None, None, 5)),
    ],
    ids=["usual", "bos", "limit"],
)
def test_options_determine_the_framing(tmp_path: Path, keys: dict, wanted: tuple) -> None:
    plan = paper_plan(tmp_path, [paper_dataset([1])], **keys)
    framing = Framing.from_options(plan.options, plan.tokenizer, plan.dtype)
    assert (framing.bos, framing.eos, framing.limit) == wanted
    assert framing.dtype == np.uint16


rows = st.lists(st.lists(st.integers(5, 9), max_size=6), max_size=12)


@pytest.mark.parametrize("join_tokens", [1, 4, 200])
@given(rows=rows, bos=st.sampled_from([None, 1]), eos=st.sampled_from([None, 2]), limit=st.integers(1, 8))
def test_frame_and_truncate(
    join_tokens: int, rows: list[list[int]], bos: int | None, eos: int | None, limit: int
) -> None:
    """Both ways to frame documents give the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(special_tokens, "JOIN_TOKENS", join_tokens)
        check_frame(rows, bos, eos, limit)


def check_frame(rows: list[list[int]], bos: int | None, eos: int | None, limit: int) -> None:
    """Compare `truncate` and `frame` with the simplest way, in both dtypes."""
    ids = np.array([i for r in rows for i in r], np.uint32)
    lengths = np.array([len(r) for r in rows], np.int64)
    ids, lengths, cut = truncate(ids, lengths, limit)
    wanted = [([bos] if bos else []) + r[:limit] + ([eos] if eos else []) if r else [] for r in rows]
    for dtype in (np.uint16, np.int32):
        tokens, framed = frame(ids, lengths, bos, eos, np.dtype(dtype))
        assert tokens.dtype == dtype
        assert tokens.tolist() == [i for r in wanted for i in r]
        assert framed.tolist() == [len(r) for r in wanted]
    assert cut == sum(len(r) > limit for r in rows)
