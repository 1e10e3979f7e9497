"""Blend files of any content are either read or rejected with one message per problem."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config import SourceConfig
from nano3.config.blend import parse_datasets, read_blend_file
from nano3.utils.errors import UserError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["name", "path", "weight", "split", "subset", "revision", "text_field", "wieght", "epochs", ""])
ENTRY = st.dictionaries(KEYS, VALUE, max_size=5) | VALUE
GOOD = st.fixed_dictionaries(
    {"name": st.sampled_from("abcdefgh"), "path": st.sampled_from(["a.jsonl", "hf://a/b"])},
    optional={
        "weight": st.floats(1e-6, 1e6),
        "max_epochs": st.none() | st.floats(0.1, 9),
        "subset": st.none() | st.just("en"),
        "text_field": st.just("body"),
    },
)


def read(folder: Path, content: bytes) -> list[SourceConfig] | list[str]:
    """Return the datasets of a blend file with this content, or its problems."""
    path = folder / "b.json"
    path.write_bytes(content)
    try:
        return read_blend_file(path)
    except UserError as error:
        assert error.problems
        assert all(str(path) in problem for problem in error.problems), error.problems
        return error.problems


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRY, max_size=4) | VALUE)
def test_any_json_is_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, datasets: object) -> None:
    found = read(tmp_path_factory.mktemp("blend"), json.dumps({"datasets": datasets}).encode())
    for source in (s for s in found if isinstance(s, SourceConfig)):
        assert source.name
        assert source.path
        assert 0 < source.weight < float("inf")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert read(tmp_path_factory.mktemp("blend"), content)


@given(st.lists(GOOD, min_size=1, max_size=5, unique_by=lambda entry: entry["name"]))
def test_valid_entries_are_returned_unchanged(entries: list[dict]) -> None:
    found = parse_datasets(entries, "b")
    assert [s.name for s in found] == [entry["name"] for entry in entries]
    for source, entry in zip(found, entries, strict=True):
        wanted = {**vars(SourceConfig(name="", path="")), **entry, "weight": float(entry.get("weight", 1))}
        assert vars(source) == wanted


@given(st.lists(GOOD, min_size=1, max_size=4, unique_by=lambda entry: entry["name"]), st.data())
def test_one_wrong_key_is_one_problem(entries: list[dict], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(entries) - 1))
    key, value, expected = data.draw(
        st.sampled_from(
            [
                ("weight", -1, "weight must be a number above 0, found -1"),
                ("weight", "2", "weight must be a number above 0, found '2'"),
                ("path", "", "path is missing"),
                ("name", None, "name is missing"),
                ("max_epochs", "4", "max_epochs must be a number above 0, found '4'"),
                ("split", 3, "split must be text, found 3; write it in quotes"),
                ("textfield", "body", "no key 'textfield'. Did you mean 'text_field'?"),
            ]
        )
    )
    entries[number][key] = value
    with pytest.raises(UserError) as caught:
        parse_datasets(entries, "blend b")
    (problem,) = caught.value.problems
    assert problem.startswith(f"blend b, dataset {number + 1}")
    assert problem.endswith(expected)


def test_a_dataset_has_a_weight_or_epochs_or_tokens(tmp_path: Path) -> None:
    entries = [
        {"name": "a", "path": "x", "epochs": 2},
        {"name": "b", "path": "x", "tokens": 3e11, "max_epochs": 4},
        {"name": "c", "path": "x", "weight": 2},
    ]
    text = json.dumps({"datasets": entries, "max_epochs": 8})
    sources = read(tmp_path, text.encode())
    assert [source.budget for source in sources] == [
        {"epochs": 2.0, "max_epochs": 8.0},
        {"tokens": 3e11, "max_epochs": 4.0},
        {"max_epochs": 8.0},
    ]
    entries[0]["weight"], entries[1]["epochs"] = 1, 1
    both = read(tmp_path, json.dumps({"datasets": entries, "max_epochs": -1}).encode())
    assert [str(problem).partition(": ")[2] for problem in both] == [
        "max_epochs must be a number above 0, found -1",
        "give one of weight, epochs and tokens, not weight and epochs",
        "give one of weight, epochs and tokens, not epochs and tokens",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"datasets": [], "datasets": [{"name": "a", "path": "x"}]}', "'datasets' is given more than once"),
        ('{"datasets": [{"name": "a", "path": "x", "weight": 1, "weight": 2}]}', "'weight' is given more than once"),
        ('{"datasets": [{"name": "a", "path": "x", "text_field": "q\\"o"}]}', "text_field must not contain quotes"),
        ('{"datasets": [{"name": "a", "path": "x", "text_field": "a\\nb"}]}', "text_field must not contain quotes"),
    ],
    ids=["list twice", "key twice", "quote", "newline"],
)
def test_duplicate_keys_and_bad_text_fields_are_rejected(tmp_path: Path, content: str, expected: str) -> None:
    found = read(tmp_path, content.encode())
    assert len(found) == 1
    assert expected in str(found[0])
