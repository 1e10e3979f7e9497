"""Framing: a document that comes in pieces gets the tokens it would get whole, whatever the cuts and limits."""

from pathlib import Path

import numpy as np
import pytest
from data_helpers import paper_dataset, paper_plan
from hypothesis import example, given
from hypothesis import strategies as st

from nano3.data.tokenization.special_tokens import Framing

ends = st.sampled_from([None, 7])


def whole(framing: Framing, rows: list[list[int]]) -> tuple[list[list[int]], int]:
    """Tokens of each document, and how many were cut."""
    ids, lengths = np.array([i for row in rows for i in row], np.uint32), np.array(list(map(len, rows)), np.int64)
    tokens, lengths, cut = framing(ids, lengths)
    assert tokens.dtype == framing.dtype
    assert len(tokens) == lengths.sum()
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] if rows else [], cut


def in_pieces(framing: Framing, pieces: list[list[int]]) -> list[int]:
    """Tokens of one document as a unit writes a long one."""
    length, tokens = 0, list[int]()
    for piece in pieces:
        tokens += framing.frame_chunk(np.array(piece, np.uint32), length, len(tokens)).tolist()
        length += len(piece)
    return tokens + framing.end_tokens(length).tolist()


@given(
    pieces=st.lists(st.lists(st.integers(8, 900), max_size=5), max_size=6),
    bos=ends,
    eos=ends,
    limit=st.none() | st.integers(1, 12),
    dtype=st.sampled_from(["uint16", "int32"]),
)
@example(pieces=[[], [8, 9]], bos=7, eos=7, limit=1, dtype="uint16")  # a piece of text may have no ids
@example(pieces=[[8], [9], [10]], bos=7, eos=7, limit=1, dtype="int32")  # all after the limit is left out
def test_pieces_are_framed_as_the_whole(
    pieces: list[list[int]], bos: int | None, eos: int | None, limit: int | None, dtype: str
) -> None:
    framing = Framing(bos, eos, limit, np.dtype(dtype))
    document = [i for piece in pieces for i in piece]
    assert in_pieces(framing, pieces) == whole(framing, [document])[0][0]


@given(rows=st.lists(st.lists(st.integers(8, 900), max_size=6), max_size=8), limit=st.none() | st.integers(1, 7))
def test_documents_do_not_depend_on_their_neighbours(rows: list[list[int]], limit: int | None) -> None:
    framing = Framing(1, 2, limit, np.dtype("uint16"))
    alone = [whole(framing, [row]) for row in rows]
    together, cut = whole(framing, rows)
    assert together == [tokens[0] for tokens, _ in alone]
    assert cut == sum(n for _, n in alone)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_ids_of_the_engine_are_left_as_they_are(dtype: str) -> None:
    """The fast engine's arrays are views of memory that it owns, and a re-check may read them once more."""
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
def test_a_plan_says_how_documents_are_framed(tmp_path: Path, keys: dict, wanted: tuple) -> None:
    plan = paper_plan(tmp_path, [paper_dataset([1])], **keys)
    framing = Framing.from_options(plan.options, plan.tokenizer, plan.dtype)
    assert (framing.bos, framing.eos, framing.limit) == wanted
    assert framing.dtype == np.uint16
