"""Verification finds any damage to prepared data, and readers raise errors instead of returning wrong tokens."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from data_helpers import run, source, texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano3.data.dataset.checksum import checksum
from nano3.data.dataset.indexed import HEADER, IndexedFile, write_index
from nano3.data.dataset.manifest import Manifest, load_manifest, manifest_checksum
from nano3.data.dataset.verify import verify
from nano3.training.dataset import open_data
from nano3.utils.errors import Failure, Nano3Error, UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Path:
    """Good data of two datasets; restored after every change."""
    folder = tmp_path_factory.mktemp("good")
    sources = [source(write(folder / f"{n}.jsonl", texts(60, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, folder / "out", byte_bpe, valid_fraction=0.1)
    return folder / "out"


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
def test_any_change_of_any_file_is_found(good: Path, data: st.DataObject) -> None:
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


def test_good_data_has_no_problems(good: Path) -> None:
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
def test_damaged_blend_is_reported(tmp_path: Path, good: Path, change: Callable[[Any], Any], message: str) -> None:
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
def test_damaged_manifest_is_reported(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(Failure, match=rf"{tmp_path}/manifest\.json: {message}"):
        load_manifest(tmp_path)


LENGTHS = st.lists(st.integers(0, 5), max_size=12)


def write_pair(prefix: Path, lengths: list[int], dtype: str) -> np.ndarray:
    """A pair with documents of these lengths, and its tokens."""
    tokens = np.arange(sum(lengths)).astype(dtype)
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    with prefix.with_name(prefix.name + ".idx").open("wb") as f:
        counts = np.array(lengths, np.int32)
        write_index(f.write, lambda: iter([counts]), int(np.count_nonzero(counts)), len(counts), dtype)
    return tokens


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from(["uint16", "int32"]))
def test_written_pair_is_read_back(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str) -> None:
    prefix = tmp_path_factory.mktemp("pair") / "data.v1"  # the dot is part of the name
    tokens = write_pair(prefix, lengths, dtype)
    data = IndexedFile(prefix)
    ends = np.cumsum([0, *lengths])
    assert [data.document(i).tolist() for i in range(len(data))] == [
        tokens[a:b].tolist() for a, b in itertools.pairwise(ends)
    ]
    data.close()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.data())
def test_damaged_header_is_rejected(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    """A changed header is rejected, unless it only names another dtype for a file without tokens."""
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


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be damaged."""
    copy = shutil.copytree(good, tmp_path / "out")
    edit(
        copy / "blend.json",
        lambda b: [b.update({k: [w.replace(str(good), str(copy)) for w in v]}) for k, v in b.items()],
    )
    return Path(copy)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file, in a manifest with a fitting checksum."""
    value = json.loads(path.read_text())
    change(value)
    if "checksum" in value:
        value["checksum"] = manifest_checksum(msgspec.convert(value, Manifest))
    path.write_text(json.dumps(value))


def rewrite(data: Path, change: Callable[[np.ndarray], object]) -> None:
    """Change a token of a shard."""
    path = first_file(data, "train/*.bin")
    tokens = np.fromfile(path, np.uint16)
    change(tokens)
    tokens.tofile(path)


def first_file(data: Path, pattern: str) -> Path:
    return next(iter(sorted(data.glob(pattern))))


DAMAGE = {
    "bit": (lambda d: rewrite(d, lambda t: t.__setitem__(5, t[5] ^ 1)), r"train/data_\d+\.bin: XXH128"),
    "cut_bin": (
        lambda d: first_file(d, "train/*.bin").write_bytes(first_file(d, "train/*.bin").read_bytes()[:-2]),
        r"\.bin: .* bytes, but",
    ),
    "cut_idx": (
        lambda d: first_file(d, "train/*.idx").write_bytes(first_file(d, "train/*.idx").read_bytes()[:-8]),
        r"\.idx: .* header says",
    ),
    "lost": (lambda d: first_file(d, "valid/*.bin").unlink(), r"valid/data_\d+\.bin: missing"),
    "tokenizer": (
        lambda d: (d / "tokenizer" / "tokenizer.json").write_text("{}"),
        r"tokenizer\.json: not the tokenizer",
    ),
    "blend": (lambda d: edit(d / "blend.json", lambda b: b["train"].pop(0)), r"blend\.json: train does not list"),
    "sums": (
        lambda d: edit(d / "manifest.json", lambda m: m["splits"]["train"].update(tokens=1)),
        r"manifest\.json: train has 1 tokens",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_problem_names_the_damaged_file(data: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(data)
    problems = [p for _, found in verify(data) for p in found]
    assert problems
    assert re.search(message, "\n".join(problems)), problems


WRONG_TOKENS = {
    "range": (lambda t, ends: t.__setitem__(3, 65000), "outside the vocabulary of 1,500"),
    "end": (lambda t, ends: t.__setitem__(ends[0], 9), "not with the end-of-document token 2"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TOKENS.values(), ids=WRONG_TOKENS.keys())
def test_tokens_are_checked(data: Path, change: Callable[[np.ndarray, np.ndarray], object], message: str) -> None:
    """Even if the checksums agree, as they do if the data was made wrongly."""
    shard = load_manifest(data).shards[0]
    ends = np.cumsum(IndexedFile(data / shard.prefix).lengths) - 1
    rewrite(data, lambda t: change(t, ends))
    path = data / f"{shard.prefix}.bin"
    edit(data / "manifest.json", lambda m: m["shards"][0].update(bin_xxh128=checksum(path)))
    assert message in " ".join(p for _, found in verify(data) for p in found)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("blend.json", lambda s: s.replace('"0.', '"0.9', 1), "the manifest makes it"),
        ("blend.json", lambda s: s.replace('"train"', '"trian"'), "'trian' is no split of the data"),
    ],
    ids=["weight", "split"],
)
def test_every_small_file_is_compared_with_the_manifest(
    data: Path, file: str, damage: Callable[[str], str], message: str
) -> None:
    """What the manifest determines is computed. tests/training/run/test_record_attacks.py damages the other files."""
    path = data / file
    path.write_text(damage(path.read_text()))
    problem = problems_of(data)[0]
    assert str(path) in problem and message in problem


@pytest.mark.parametrize("weight", ["nan", "inf", "-0.5"])
def test_no_training_starts_with_a_weight_that_is_none(data: Path, weight: str) -> None:
    blend = json.loads((data / "blend.json").read_text())
    blend["train"][0] = weight
    (data / "blend.json").write_text(json.dumps(blend))
    with pytest.raises(UserError, match=r"blend\.json is damaged .*positive and finite"):
        open_data(data)


@pytest.mark.parametrize("key", ["dataset", "split"])
def test_a_manifest_that_contradicts_itself_is_damaged(data: Path, key: str) -> None:
    """As one of an earlier version, which has no checksum."""
    value = json.loads((data / "manifest.json").read_text())
    value["shards"][0][key] = "none"
    del value["checksum"], value["tokenizer"]["files"]
    (data / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(Failure, match=r"manifest\.json: damaged: .*'none', which does not exist"):
        load_manifest(data)
