"""What a subset, a split, and a path select of a hub dataset, where `datasets` gives no answer to compare with."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.sources.hub_card import match_files, select_files
from nano3.data.sources.hub_path import HubPath
from nano3.utils.errors import UserError

PATHS = ["data/train-0.parquet", "data/test-0.parquet", "en/train.jsonl", "en/dev.jsonl", "fr/train.jsonl", "README.md"]
CARD = {
    "configs": [
        {
            "config_name": "en",
            "data_files": [{"split": "train", "path": "en/train*"}, {"split": "dev", "path": ["en/dev.jsonl"]}],
        },
        {"config_name": "fr", "data_files": "fr/*.jsonl"},
        {"config_name": "all", "data_files": "**/train*"},
        {"config_name": "folder", "data_dir": "data"},
    ]
}
CHOICES = {
    "by_name": ({}, {}, ["data/train-0.parquet", "en/train.jsonl", "fr/train.jsonl"]),
    "by_name_test": ({}, {"split": "test"}, ["data/test-0.parquet"]),
    "by_name_validation": ({}, {"split": "validation"}, ["en/dev.jsonl"]),
    "by_another_word": ({}, {"split": "dev"}, ["en/dev.jsonl"]),
    "by_folder": ({}, {"subset": "fr"}, ["fr/train.jsonl"]),
    "card_split": (CARD, {"subset": "en", "split": "dev"}, ["en/dev.jsonl"]),
    "card_pattern": (CARD, {"subset": "fr"}, ["fr/train.jsonl"]),
    "card_deep_pattern": (CARD, {"subset": "all"}, ["data/train-0.parquet", "en/train.jsonl", "fr/train.jsonl"]),
    "card_folder": (CARD, {"subset": "folder", "split": "test"}, ["data/test-0.parquet"]),
    "file": (CARD, {"inside": "README.md"}, ["README.md"]),
    "folder": (CARD, {"inside": "data"}, ["data/train-0.parquet"]),
    "glob": (CARD, {"inside": "en/*"}, ["en/dev.jsonl", "en/train.jsonl"]),
}


def select(
    paths: list[str], card: dict, inside: str = "", subset: str | None = None, split: str = "train"
) -> list[str]:
    return select_files(paths, card, HubPath("org/set", None, inside), subset, split, "label")


@pytest.mark.parametrize(("card", "keys", "wanted"), CHOICES.values(), ids=CHOICES.keys())
def test_files_of_a_split(card: dict, keys: dict, wanted: list[str]) -> None:
    assert select(PATHS, card, **keys) == wanted


def test_files_without_any_split_are_train() -> None:
    assert select(["a.jsonl", "b/c.parquet"], {}) == ["a.jsonl", "b/c.parquet"]


REFUSED = {
    "no_default": (PATHS, CARD, {}, "subsets: all, en, folder, fr"),
    "script": ([*PATHS, "set.py"], {}, {}, "a loading script, set.py, defines the dataset.*revision=refs/convert/parq"),
    "csv": (
        ["train.csv", "x.md"],
        {},
        {},
        r"not of a format that is read \(\.csv\)\. Formats: parquet, .*refs/convert",
    ),
    "saved": (["data-0.arrow", "state.json"], {}, {}, "save_to_disk wrote these files.*push_to_hub"),
    "url": (
        PATHS,
        {"configs": [{"config_name": "a", "data_files": "hf://datasets/b/c/x"}]},
        {},
        "out of the repository",
    ),
    "up": (PATHS, {"configs": [{"config_name": "a", "data_files": "../x"}]}, {}, "leads out of the repository"),
    "no_name": (PATHS, {"configs": [{"data_files": "*"}]}, {}, "not a list of entries with a config_name"),
    "no_list": (PATHS, {"configs": {"a": "*"}}, {}, "not a list of entries with a config_name"),
    "slice": (PATHS, {}, {"split": "train[:10%]"}, "Sums and slices of splits are not read"),
    "sum": (PATHS, {}, {"split": "train+test"}, "splits: train, validation, test. Sums and slices"),
    "split_of_a_file": (PATHS, {}, {"inside": "en/dev.jsonl", "split": "dev"}, "not one of its splits: train"),
    "subset_of_a_path": (PATHS, CARD, {"inside": "en", "subset": "en"}, "cannot be combined with a path"),
    "nothing": (["README.md"], {}, {}, "there are no data files"),
}


@pytest.mark.parametrize(("paths", "card", "keys", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_named(paths: list[str], card: dict, keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^label: .*{message}"):
        select(paths, card, **keys)


def test_unread_formats_beside_read_ones_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    assert select(["a.jsonl", "b.csv", "c.md"], {}) == ["a.jsonl"]
    assert "label: 1 file(s) of formats that are not read left out: b.csv" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("a/b.x", "a/*.x", True),
        ("a/c/b.x", "a/*.x", False),
        ("a/c/b.x", "a/**/*.x", True),
        ("a/b.x", "a/**/*.x", True),
        ("a/b.x", "a", True),
        ("ab.x", "a", False),
    ],
)
def test_patterns(path: str, pattern: str, fits: bool) -> None:
    assert bool(match_files([path], "", pattern, "label")) == fits


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "a.x", "b.x"]), min_size=1, max_size=4).map("/".join)
WANTED = st.lists(st.sampled_from(["a", "*", "**", "*.x", "a*", "?", "[ab]", "[!a]"]), min_size=1, max_size=4)


@given(NAMES, WANTED)
def test_patterns_agree_with_a_regular_expression(path: str, wanted: list[str]) -> None:
    """`**` matches any number of folders; at the end, it matches all files in the folder before it."""
    sign = {"*": "[^/]*", "?": "[^/]", "[ab]": "[ab]", "[!a]": "[^a/]", "*.x": r"[^/]*\.x", "a*": "a[^/]*", "a": "a"}
    text = "".join("(?:[^/]+/)*" if part == "**" else f"{sign[part]}/" for part in wanted[:-1])
    text += ".+/" if wanted[-1] == "**" else f"{sign[wanted[-1]]}/"
    pattern = "/".join(wanted)
    plain = not any(c in pattern for c in "*?[")
    expected = re.fullmatch(text + ("(?:[^/]+/)*" if plain else ""), f"{path}/")
    assert bool(match_files([path], "", pattern, "label")) == bool(expected)
    assert bool(match_files([path], "", f"./{pattern}", "label")) == bool(expected)
