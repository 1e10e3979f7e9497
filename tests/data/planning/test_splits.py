"""Splits: hashes, bounds that give every split its share, and bad rows found while planning."""

from pathlib import Path

import numpy as np
import pytest
from data_helpers import options, paper_dataset
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.planning import splits
from nano3.data.planning.plan import SPLITS, DatasetPlan
from nano3.data.planning.splits import FULL, check_bad_rows, document_hash, file_seed, fit_bounds, set_bounds, split_of
from nano3.data.sources.readers import Batch
from nano3.utils.errors import Failure, UserError

shares = st.sampled_from([0.0, 1e-9, 0.005, 0.1, 0.3, 0.49, 0.9])


def sorted_hashes(count: int) -> np.ndarray:
    """Sorted hashes of the documents of a file."""
    return np.sort(document_hash(file_seed("d", "f"), np.arange(count, dtype=np.int64)))


@given(count=st.integers(0, 200), valid=shares, test=shares.filter(lambda s: s < 0.1))
def test_every_split_gets_its_share_and_at_min_chars_one(count: int, valid: float, test: float) -> None:
    d = paper_dataset([1])
    fit_bounds(d, sorted_hashes(count), (valid, test))
    found = np.bincount(split_of(sorted_hashes(count), d.bounds), minlength=3).tolist()
    wanted = [valid, test]
    assert all(n == 0 for n, share in zip(found[1:], wanted, strict=True) if share == 0)
    assert sum(found) == count
    if count > sum(share > 0 for share in wanted):
        assert all(n >= 1 for n, share in zip(found, [1, *wanted], strict=True) if share > 0)
        assert not d.warnings
    else:
        assert found[0] == min(count, 1), "training comes first"
        missing = [i for i, share in enumerate(wanted) if share > 0 and not found[i + 1]]
        assert len(d.warnings) == len(missing)
    if count >= 20:
        assert abs(found[1] - valid * count) <= 1.5
        assert abs(found[2] - test * count) <= 1.5


@given(st.integers(0, FULL - 1), st.integers(0, FULL - 1), st.lists(st.integers(0, FULL - 1), min_size=1))
def test_split_is_chosen_by_plain_comparison(a: int, b: int, hashes: list[int]) -> None:
    """Floats and signed integers cannot represent all 64-bit bounds."""
    valid, test = sorted((a, b))
    hashes += [valid, max(valid - 1, 0), test, max(test - 1, 0), FULL - 1, 0]
    found = split_of(np.array(hashes, np.uint64), (valid, test)).tolist()
    assert found == [1 if h < valid else 2 if h < test else 0 for h in hashes]


def test_files_with_similar_names_have_different_hashes() -> None:
    names = [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("ab", ""), ("", "ab"), ("a", "bc")]
    assert len({file_seed(*pair) for pair in names}) == len(names)
    keys = np.arange(1000, dtype=np.int64)
    hashes = np.concatenate([document_hash(file_seed(*pair), keys) for pair in names])
    assert len(np.unique(hashes)) == len(hashes)


# Bounds from the data


def dataset_of(folder: Path, files: dict[str, bytes]) -> DatasetPlan:
    """A dataset with existing files."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sizes = [len(data) for data in files.values()]
    d = paper_dataset(sizes)
    d.root, d.keys = str(folder), list(files)
    return d


def rows(count: int, text: str = "x") -> bytes:
    return f'{{"text": "{text}"}}\n'.encode() * count


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"valid_fraction": 0.0, "test_fraction": 0.0}, (0, 0)),
        ({"valid_fraction": 0.5, "test_fraction": 0.0}, (FULL // 2, FULL // 2)),
        ({"valid_fraction": 0.25, "test_fraction": 0.25}, (FULL // 4, FULL // 2)),
        ({"valid_fraction": 0.0, "test_fraction": 0.5}, (0, FULL // 2)),
    ],
    ids=["train_only", "valid", "both", "test"],
)
def test_bounds_of_enough_documents_are_the_fractions(tmp_path: Path, keys: dict, wanted: tuple[int, int]) -> None:
    d = dataset_of(tmp_path, {"a.jsonl": rows(100)})
    set_bounds(d, options(tmp_path, tmp_path, **keys))
    assert d.bounds == wanted


def test_nothing_is_read_for_training_data_only(tmp_path: Path) -> None:
    d = paper_dataset([100])  # its file does not exist
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=0.0, test_fraction=0.0))
    with pytest.raises(Failure, match="cannot be read"):
        set_bounds(d, options(tmp_path, tmp_path))


def test_bad_row_behind_the_scanned_text_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = dataset_of(tmp_path, {"a.jsonl": rows(1000), "b.jsonl": b'{"text": null}\n'})
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=0.2, test_fraction=0.2))
    monkeypatch.setattr(splits, "SCAN_BYTES", 100)
    d = dataset_of(tmp_path, {"a.jsonl": rows(1000), "b.jsonl": b'{"text": null}\n'})
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=1e-12, test_fraction=0.0))
    assert d.bounds[0] == int(1e-12 * FULL)
    assert "no document of valid among its first 1,000" in d.warnings[0]


@pytest.mark.parametrize("min_chars", [0, 5])
def test_short_documents_do_not_count(tmp_path: Path, min_chars: int) -> None:
    """There are three long texts among many short ones: each split has one of them."""
    short = "" if min_chars == 0 else "abcd"
    contents = {f"{i}.jsonl": rows(40, short) + rows(1, "long enough") for i in range(3)}
    d = dataset_of(tmp_path, contents)
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=1e-9, test_fraction=1e-9, min_doc_chars=min_chars))
    key = 40 * len(rows(1, short))
    hashes = [document_hash(file_seed("d", name), np.array([key], np.int64))[0] for name in contents]
    assert sorted(split_of(np.array(hashes), d.bounds).tolist()) == [0, 1, 2]


# Bad rows


def batch(bad: list[tuple[int, str, str]], texts: int = 0) -> Batch:
    keys = np.arange(texts, dtype=np.int64)
    return Batch(["x"] * texts, keys, keys, bad)


NUMBER = "'text' is a number, not a string"
NO = "no field 'text'; its fields: body"
BAD_ROWS = {
    "no_row_has_the_field": (batch([(0, "no_text", NO), (9, "no_text", NO)]), UserError, "none of the first 2 rows"),
    "behind_a_byte_order_mark": (batch([(3, "no_text", NO)]), UserError, "its fields: body"),
    "a_field_of_a_template": (
        batch([(0, "no_text", "no field 'no'; its fields: a")]),
        UserError,
        "field 'no' of text_field=text",
    ),
    "no_row_has_text_in_it": (
        batch([(0, "no_text", NUMBER), (9, "no_text", NUMBER)]),
        UserError,
        "text_field=text: 'text' is a number, not a string, in each of the first 2 rows",
    ),
    "one_row_has_no_text_in_it": (batch([(0, "no_text", NUMBER)]), Failure, "row 1 .*Fix the row"),
    "rows_without_text_later": (batch([(9, "no_text", NUMBER), (28, "no_text", NUMBER)]), Failure, "Fix the row"),
    "null_in_all_rows": (batch([(0, "null", "'text' is null"), (9, "null", "'text' is null")]), Failure, "row 1 "),
    "one_row_has_it": (batch([(0, "no_text", NO)], texts=1), Failure, "row 1 .*no field"),
    "another_fault_too": (batch([(0, "no_text", NO), (9, "null", "'text' is null")]), Failure, "row 1 .*no field"),
    "not_at_the_start": (batch([(28, "no_text", NO)]), Failure, "row 3 .*Fix the row"),
}


@pytest.mark.parametrize(("found", "kind", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_wrong_field_is_distinguished_from_bad_row(
    tmp_path: Path, found: Batch, kind: type[Exception], message: str
) -> None:
    d = dataset_of(tmp_path, {"a.jsonl": b'{"body": "a"}\n{"t": "abcd"}\n{}'})
    with pytest.raises(kind, match=message) as caught:
        check_bad_rows(found, d.whole_file(0), options(tmp_path, tmp_path), "d")
    assert "a.jsonl" in str(caught.value)
    check_bad_rows(found, d.whole_file(0), options(tmp_path, tmp_path, bad_rows="skip"), "d")


@given(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=50), st.integers(0, FULL - 1))
def test_document_hash_is_splitmix64(keys: list[int], seed: int) -> None:
    def plain(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % FULL
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % FULL
        return x ^ (x >> 31)

    wanted = [plain((seed + (k + 1) * 0x9E3779B97F4A7C15) % FULL) for k in keys]
    assert document_hash(seed, np.array(keys)).tolist() == wanted


def test_splits_of_many_documents_have_their_shares() -> None:
    hashes = document_hash(file_seed("d", "a.jsonl"), np.arange(200_000))
    counts = np.bincount(split_of(hashes, (int(0.01 * FULL), int(0.03 * FULL))), minlength=3) / 200_000
    assert counts == pytest.approx([0.97, 0.01, 0.02], rel=0.06)


@pytest.mark.parametrize(
    ("count", "fractions", "wanted"),
    [
        (0, (0.1, 0.1), [0, 0, 0]),
        (1, (0.1, 0.1), [1, 0, 0]),
        (2, (0.1, 0.1), [1, 1, 0]),
        (3, (0.1, 0.1), [1, 1, 1]),
        (3, (0.0, 0.1), [2, 0, 1]),
        (10, (0.4, 0.5), [1, 4, 5]),
        (100, (0.005, 0.005), [98, 1, 1]),
        (1000, (0.1, 0.2), [700, 100, 200]),
    ],
)
def test_small_data_has_every_split(count: int, fractions: tuple[float, float], wanted: list[int]) -> None:
    d = paper_dataset([1])
    hashes = np.sort(document_hash(7, np.arange(count)))
    fit_bounds(d, hashes, fractions)
    assert np.bincount(split_of(hashes, d.bounds), minlength=3).tolist() == wanted
    missing = [SPLITS[i + 1] for i, f in enumerate(fractions) if f and not wanted[i + 1]]
    assert [name for name in missing if any(name in warning for warning in d.warnings)] == missing
