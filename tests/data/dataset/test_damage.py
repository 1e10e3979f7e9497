"""Prepared data that was damaged in any way is found out; whoever reads it is told instead of given wrong tokens."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import run, source, texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano3.data.dataset.indexed import HEADER, IndexedFile, write_index
from nano3.data.dataset.manifest import load_manifest
from nano3.data.dataset.verify import verify
from nano3.utils.errors import Failure, Nano3Error


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Path:
    """Whole data of two datasets; never changed."""
    place = tmp_path_factory.mktemp("good")
    sources = [source(write(place / f"{n}.jsonl", texts(60, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, place / "out", byte_bpe, valid_fraction=0.1)
    return place / "out"


def problems_of(folder: Path) -> list[str]:
    try:
        return [problem for _, found in verify(folder) for problem in found]
    except Nano3Error as error:
        return error.problems


def flip(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


CHANGES = {
    "flipped": lambda data, at, bits: flip(data, at, bits),
    "cut": lambda data, at, bits: data[:at],
    "longer": lambda data, at, bits: data + bytes([bits]) * (at % 9 + 1),
    "zeros": lambda data, at, bits: data[:at] + bytes(max(1, (len(data) - at) // 2)) + b"\x01",
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_any_file_is_found_and_named(good: Path, data: st.DataObject) -> None:
    files = [*sorted(good.glob("*/*.bin")), *sorted(good.glob("*/*.idx")), good / "tokenizer" / "tokenizer.json"]
    path = data.draw(st.sampled_from(files), label="file")
    before = path.read_bytes()
    change = CHANGES[data.draw(st.sampled_from(sorted(CHANGES)), label="change")]
    changed = change(before, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255)))
    try:
        path.write_bytes(changed)
        problems = problems_of(good)
    finally:
        path.write_bytes(before)
    assert problems
    assert any(str(path.with_suffix("")) in problem for problem in problems)


def test_nothing_is_wrong_with_good_data(good: Path) -> None:
    assert problems_of(good) == []


BLENDS = {
    "no_json": (lambda b: "{", "cannot be read"),
    "not_utf8": (lambda b: b"\xff\xfe{}", "cannot be read"),
    "a_list": (lambda b: [b], "expected {split: [weight, prefix, ...]}"),
    "split_is_no_list": (lambda b: {**b, "train": "data"}, "train does not list"),
    "split_missing": (lambda b: {k: v for k, v in b.items() if k != "valid"}, "valid does not list"),
    "shard_missing": (lambda b: {**b, "train": b["train"][2:]}, "train does not list"),
    "shards_swapped": (lambda b: {**b, "train": b["train"][2:4] + b["train"][:2] + b["train"][4:]}, "does not list"),
    "weight_missing": (lambda b: {**b, "train": b["train"][1:]}, "train does not list"),
    "no_number": (
        lambda b: {**b, "train": ["much", *b["train"][1:]]},
        "train has a weight that is not positive: 'much'",
    ),
    "negative": (lambda b: {**b, "train": ["-1", *b["train"][1:]]}, "train has a weight that is not positive: '-1'"),
    "zero": (lambda b: {**b, "train": ["0.0", *b["train"][1:]]}, "train has a weight that is not positive: '0.0'"),
    "nan": (lambda b: {**b, "train": ["nan", *b["train"][1:]]}, "train has a weight that is not positive: 'nan'"),
    "infinite": (lambda b: {**b, "train": ["inf", *b["train"][1:]]}, "train has a weight that is not positive: 'inf'"),
    "null": (lambda b: {**b, "train": [None, *b["train"][1:]]}, "train has a weight that is not positive: None"),
}


@pytest.mark.parametrize(("change", "message"), BLENDS.values(), ids=BLENDS.keys())
def test_a_damaged_blend_is_told(tmp_path: Path, good: Path, change, message: str) -> None:
    shutil.copytree(good, tmp_path / "out", ignore=shutil.ignore_patterns(".prep"))
    path = tmp_path / "out" / "blend.json"
    text = path.read_text().replace(str(good), str(tmp_path / "out"))
    path.write_text(text)
    assert problems_of(tmp_path / "out") == []
    made = change(json.loads(text))
    path.write_bytes(
        made if isinstance(made, bytes) else (made if isinstance(made, str) else json.dumps(made)).encode()
    )
    (problem,) = problems_of(tmp_path / "out")
    assert str(path) in problem
    assert message in problem


MANIFESTS = {
    "empty": (b"", "cannot be read"),
    "no_json": (b"{", "cannot be read"),
    "not_utf8": (b'{"format": "\xff"}', "cannot be read"),
    "a_list": (b"[]", "not a data manifest"),
    "other_format": (b'{"format": 1}', "a data manifest of format 1; this nano3 reads format 2"),
    "only_format": (b'{"format": 2}', "damaged: blend, plan_hash, .* missing"),
}


@pytest.mark.parametrize(("data", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_damaged_manifest_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(Failure, match=rf"{tmp_path}/manifest\.json: {message}"):
        load_manifest(tmp_path)


LENGTHS = st.lists(st.integers(0, 5), max_size=12)


def write_pair(prefix: Path, lengths: list[int], dtype: str) -> np.ndarray:
    """A pair with documents of these lengths, and its tokens."""
    tokens = np.arange(sum(lengths)).astype(dtype)
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    with prefix.with_name(prefix.name + ".idx").open("wb") as f:
        parts = np.array(lengths, np.int32)
        write_index(f.write, lambda: iter([parts]), int(np.count_nonzero(parts)), len(parts), dtype)
    return tokens


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from(["uint16", "int32"]))
def test_a_pair_comes_back(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str) -> None:
    prefix = tmp_path_factory.mktemp("pair") / "data.v1"  # a dot in the name belongs to it
    tokens = write_pair(prefix, lengths, dtype)
    data = IndexedFile(prefix)
    ends = np.cumsum([0, *lengths])
    assert [data.document(i).tolist() for i in range(len(data))] == [
        tokens[a:b].tolist() for a, b in itertools.pairwise(ends)
    ]
    data.close()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.data())
def test_a_damaged_head_never_gives_more_than_there_is(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    """An index whose head was changed is refused, or is of another dtype with as many bytes: nothing else fits."""
    prefix = tmp_path_factory.mktemp("pair") / "data"
    write_pair(prefix, lengths, "uint16")
    path = prefix.with_name("data.idx")
    before = path.read_bytes()
    at = data.draw(st.integers(0, HEADER.size - 1))
    path.write_bytes(flip(before, at, data.draw(st.integers(1, 255))))
    try:
        found = IndexedFile(prefix)
    except Failure as failure:
        assert str(prefix) in str(failure)
        return
    assert found.dtype == np.int32
    assert not sum(lengths), "the same tokens cannot fill twice the bytes"
