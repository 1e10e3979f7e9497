"""Splits: bounds that give every split its share, and rows that are refused before any work is done."""

from pathlib import Path

import numpy as np
import pytest
from data_helpers import options, paper_dataset
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.planning import splits
from nano3.data.planning.plan import DatasetPlan
from nano3.data.planning.splits import FULL, check_bad_rows, document_hash, file_seed, fit_bounds, set_bounds, split_of
from nano3.data.sources.readers import Batch
from nano3.utils.errors import Failure, UserError

shares = st.sampled_from([0.0, 1e-9, 0.005, 0.1, 0.3, 0.49, 0.9])


def numbers(count: int) -> np.ndarray:
    """Hashes of documents, sorted."""
    return np.sort(document_hash(file_seed("d", "f"), np.arange(count, dtype=np.int64)))


@given(count=st.integers(0, 200), valid=shares, test=shares.filter(lambda s: s < 0.1))
def test_every_split_gets_its_share_and_at_least_one(count: int, valid: float, test: float) -> None:
    d = paper_dataset([1])
    fit_bounds(d, numbers(count), (valid, test))
    found = np.bincount(split_of(numbers(count), d.bounds), minlength=3).tolist()
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
def test_a_split_is_chosen_by_the_plainest_comparison(a: int, b: int, hashes: list[int]) -> None:
    """At bounds of 64 bits a float, or a signed number, would be wrong by a little or by a lot."""
    valid, test = sorted((a, b))
    hashes += [valid, max(valid - 1, 0), test, max(test - 1, 0), FULL - 1, 0]
    found = split_of(np.array(hashes, np.uint64), (valid, test)).tolist()
    assert found == [1 if h < valid else 2 if h < test else 0 for h in hashes]


def test_files_and_datasets_of_like_names_have_their_own_hashes() -> None:
    names = [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("ab", ""), ("", "ab"), ("a", "bc")]
    assert len({file_seed(*pair) for pair in names}) == len(names)
    keys = np.arange(1000, dtype=np.int64)
    hashes = np.concatenate([document_hash(file_seed(*pair), keys) for pair in names])
    assert len(np.unique(hashes)) == len(hashes)


# Bounds from the data


def dataset_of(folder: Path, files: dict[str, bytes]) -> DatasetPlan:
    """A dataset whose files are there."""
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


def test_nothing_is_read_where_training_is_all(tmp_path: Path) -> None:
    d = paper_dataset([100])  # its file is not there
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=0.0, test_fraction=0.0))
    with pytest.raises(Failure, match="cannot be read"):
        set_bounds(d, options(tmp_path, tmp_path))


def test_a_bad_row_behind_what_is_read_does_not_stop_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = dataset_of(tmp_path, {"a.jsonl": rows(1000), "b.jsonl": b'{"text": null}\n'})
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=0.2, test_fraction=0.2))
    monkeypatch.setattr(splits, "SCAN_BYTES", 100)
    d = dataset_of(tmp_path, {"a.jsonl": rows(1000), "b.jsonl": b'{"text": null}\n'})
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=1e-12, test_fraction=0.0))
    assert d.bounds[0] == int(1e-12 * FULL)
    assert "no document of valid among its first 1,000" in d.warnings[0]


@pytest.mark.parametrize("least", [0, 5])
def test_documents_that_will_be_left_out_do_not_count(tmp_path: Path, least: int) -> None:
    """Three texts among many that are empty or too short: each split has one of the three."""
    short = "" if least == 0 else "abcd"
    parts = {f"{i}.jsonl": rows(40, short) + rows(1, "long enough") for i in range(3)}
    d = dataset_of(tmp_path, parts)
    set_bounds(d, options(tmp_path, tmp_path, valid_fraction=1e-9, test_fraction=1e-9, min_doc_chars=least))
    key = 40 * len(rows(1, short))
    hashes = [document_hash(file_seed("d", name), np.array([key], np.int64))[0] for name in parts]
    assert sorted(split_of(np.array(hashes), d.bounds).tolist()) == [0, 1, 2]


# Refusing


def batch(bad: list[tuple[int, str, str]], texts: int = 0) -> Batch:
    keys = np.arange(texts, dtype=np.int64)
    return Batch(["x"] * texts, keys, keys, bad)


NO = "no field 'text'; its fields: body"
REFUSED = {
    "no_row_has_the_field": (batch([(0, "no_text", NO), (9, "no_text", NO)]), UserError, "none of the first 2 rows"),
    "behind_a_byte_order_mark": (batch([(3, "no_text", NO)]), UserError, "its fields: body"),
    "one_row_has_it": (batch([(0, "no_text", NO)], texts=1), Failure, "row 1 .*no field"),
    "another_fault_too": (batch([(0, "no_text", NO), (9, "null", "'text' is null")]), Failure, "row 1 .*no field"),
    "not_at_the_start": (batch([(28, "no_text", NO)]), Failure, "row 3 .*Fix the row"),
}


@pytest.mark.parametrize(("found", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_field_is_told_apart_from_a_wrong_row(
    tmp_path: Path, found: Batch, kind: type[Exception], message: str
) -> None:
    d = dataset_of(tmp_path, {"a.jsonl": b'{"body": "a"}\n{"t": "abcd"}\n{}'})
    with pytest.raises(kind, match=message) as caught:
        check_bad_rows(found, d.whole_file(0), options(tmp_path, tmp_path), "d")
    assert "a.jsonl" in str(caught.value)
    check_bad_rows(found, d.whole_file(0), options(tmp_path, tmp_path, bad_rows="skip"), "d")
