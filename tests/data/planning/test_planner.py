"""Requests: identity of the data, estimates, and the problems that are reported."""

import os
from pathlib import Path
from typing import Any

import pytest
from data_helpers import options, source, texts, write
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.planning.planner import PrepRequest, estimate_bytes, make_request


@given(size=st.integers(1, 1 << 45), kind=st.sampled_from(["jsonl", "parquet", "gz"]))
def test_estimates_are_rounded(size: int, kind: str) -> None:
    """A few bytes more seldom change an estimate. It is never too small, and at most 1/2048 too large."""
    estimate = estimate_bytes(size, kind)
    exact = estimate_bytes(1, kind) * size
    assert exact <= estimate <= exact + exact // 2048
    assert estimate_bytes(size + 1, kind) >= estimate
    if size > 1 << 20:
        assert sum(estimate_bytes(size + more, kind) == estimate for more in (-20, 20)) >= 1


def request(folder: Path, tokenizer: Path, **keys: Any) -> PrepRequest:
    return make_request(
        [source(folder, weight=keys.pop("weight", 1.0))], options(folder.parent / "out", tokenizer, **keys), "b"
    )


def test_hash_depends_on_content_and_options_only(tmp_path: Path, byte_bpe: Path) -> None:
    one = write(tmp_path / "one" / "x" / "a.jsonl", texts(50)).parent.parent
    two = write(tmp_path / "elsewhere" / "x" / "a.jsonl", texts(50)).parent.parent
    os.utime(two / "x" / "a.jsonl", (1, 1))
    base = request(one, byte_bpe).hash
    assert request(two, byte_bpe).hash == base
    for keys in (
        {"weight": 3.0},
        {"workers": 7},
        {"engine": "tokenizers"},
        {"check_every": 5},
        {"force": True},
        {"bad_rows": "skip"},
        {"bad_rows": "skip", "max_bad_rows": 7.0},
    ):
        assert request(one, byte_bpe, **keys).hash == base, keys
    changes = {"num_shards": 9, "add_eos": False, "sample": 3, "min_doc_chars": 2, "valid_fraction": 0.2}
    changes |= {"max_doc_tokens": 7, "split_special_tokens": True, "dtype": "int32", "add_bos": True}
    for keys in ({name: value} for name, value in changes.items()):
        assert request(one, byte_bpe, **keys).hash != base, keys
    data = bytearray((two / "x" / "a.jsonl").read_bytes())
    data[20] ^= 1
    (two / "x" / "a.jsonl").write_bytes(data)
    assert request(two, byte_bpe).hash != base


def test_hash_depends_on_the_tokenizer(tmp_path: Path, byte_bpe: Path, unigram: Path) -> None:
    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    assert request(folder, byte_bpe).hash != request(folder, unigram).hash


WRONG = {
    "shards": ({"num_shards": 0}, "num_shards=0"),
    "workers": ({"workers": 0}, "workers=0"),
    "sample": ({"sample": -1}, "sample=-1"),
    "engine": ({"engine": "fastest"}, "engine=fastest"),
    "engine_near": ({"engine": "tokenizer"}, "Did you mean 'tokenizers'"),
    "bad_rows": ({"bad_rows": "ignore"}, "fail, skip"),
    "fractions": ({"valid_fraction": 0.6, "test_fraction": 0.4}, "less than 1"),
    "negative_fraction": ({"valid_fraction": -0.1}, "at least 0"),
    "nan_fraction": ({"valid_fraction": float("nan")}, "at least 0"),
    "check_every": ({"check_every": -1}, "check_every=-1"),
    "dtype": ({"dtype": "int64"}, "dtype=int64"),
}


@pytest.mark.parametrize(("keys", "what"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_reported(keys: dict, what: str, tmp_path: Path, byte_bpe: Path) -> None:
    from nano3.utils.errors import UserError

    folder = write(tmp_path / "one" / "a.jsonl", texts(5)).parent
    with pytest.raises(UserError, match=what):
        request(folder, byte_bpe, **keys)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    from nano3.utils.errors import UserError

    sources = [source(tmp_path / "no1", "a"), source(tmp_path / "no2", "b")]
    with pytest.raises(UserError) as caught:
        make_request(sources, options(tmp_path / "out", tmp_path / "no_tokenizer"), "b")
    assert len(caught.value.problems) == 3
    sources = [source("x", "a", weight=-1), source("x", "a"), source("x", "bad/name")]
    with pytest.raises(UserError) as caught:
        make_request(sources, options(tmp_path / "out", tmp_path / "t", num_shards=0), "b")
    assert len(caught.value.problems) == 7, "four about options and names, one about the tokenizer, two about paths"
