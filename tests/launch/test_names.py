"""launch.names: job names and labels of sweep points."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.names import natural_order, slurm_job_name, sweep_labels
from nano3.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tiny", "tiny"),
        ("lr=1e-3", "lr-1e-3"),
        ("a b'c\"d", "a-b-c-d"),
        ("x; rm -rf ~", "x-rm--rf"),
        ("line\n#SBATCH --wrap=x", "line-SBATCH---wrap-x"),
        ("%j %A", "j-A"),
        ("", "job"),
        ("--wrap", "wrap"),
        ("ü" * 5, "job"),
        ("n" * 300, "n" * 100),
    ],
)
def test_slurm_job_name(text: str, name: str) -> None:
    assert slurm_job_name(text) == name


@given(st.text())
def test_slurm_job_name_is_always_safe(text: str) -> None:
    assert set(slurm_job_name(text)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert slurm_job_name(text)[0] not in "-."


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([["train.lr=1"], ["train.lr=2"]], ["train.lr=1", "train.lr=2"]),
        (
            [["+experiment=tiny", "a=1", "b=3"], ["+experiment=tiny", "a=2", "b=3"]],
            ["a=1", "a=2"],
        ),
        ([["b=1", "a=2"], ["b=2", "a=2"], ["b=1", "a=1"]], ["a=2__b=1", "a=2__b=2", "a=1__b=1"]),
        ([["+experiment=x"], ["+experiment=y"]], ["experiment=x", "experiment=y"]),
        ([["a=1", "hydra.verbose=true", "cluster.nodes=2"]], ["a=1"]),
        ([["cluster.nodes=2"]], ["point"]),
        ([["a=1"], ["a=1", "b=2"]], ["point", "b=2"]),
    ],
    ids=["one key", "fixed key", "sorted", "plus", "one point", "nothing", "missing key"],
)
def test_sweep_labels(points: list[list[str]], labels: list[str]) -> None:
    assert sweep_labels(points) == labels


def test_labels_of_some_points_name_the_keys_that_are_not_fixed() -> None:
    words = ["+experiment=tiny", "run.name=x", "lr=1"]
    assert sweep_labels([words], fixed={"experiment", "run.name"}) == ["lr=1"]
    assert sweep_labels([words, [*words[:2], "lr=1"]], fixed={"experiment", "run.name"}, unique=False) == ["lr=1"] * 2
    assert sweep_labels([words], fixed={"experiment", "run.name", "lr"}) == sweep_labels([words])


def test_labels_do_not_depend_on_order() -> None:
    one = sweep_labels([["a=1", "b=x"], ["a=2", "b=y"]])
    other = sweep_labels([["b=x", "a=1"], ["b=y", "a=2"]])
    assert one == other


def test_equal_points_are_rejected() -> None:
    with pytest.raises(UserError, match="same point twice: a=1"):
        sweep_labels([["a=1"], ["a=1"], ["a=2"]])
    with pytest.raises(UserError, match="same point twice: lr=1 name=x"):
        sweep_labels([["lr=1", "name=x"], ["lr=1", "name=x"]])


_VALUES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=200)


@given(st.lists(_VALUES, min_size=2, max_size=5, unique=True))
def test_labels_are_different_and_safe_folder_names(values: list[str]) -> None:
    labels = sweep_labels([[f"key={value}"] for value in values])
    assert len(set(labels)) == len(values)
    for label in labels:
        assert len(label.encode()) <= 255
        assert not set(label) & set("/\\%:,;'\"\n\r\t $*?&|<>(){}[]~#!`\0")
        assert label not in (".", "..") and not label.startswith("-")


@pytest.mark.parametrize("value", ["../../etc", "a/b", "a b", "x,y", "x:y", "$(rm)", "'", "\n", "%j", "é"])
def test_unsafe_values_get_a_hash(value: str) -> None:
    label = sweep_labels([[f"k={value}"], ["k=other"]])[0]
    assert label.startswith("k=") and label[-9] == "-" and "/" not in label


def test_points_with_values_of_any_encoding_have_labels() -> None:
    labels = sweep_labels([[f"k={os.fsdecode(value)}"] for value in (b"caf\xe9", b"caf\xe8", b"caf")])
    assert len(set(labels)) == 3 and all(label.isascii() and label.startswith("k=caf") for label in labels)


def test_names_with_numbers_are_sorted_as_people_do() -> None:
    names = ["seed=2", "seed=10", "seed=1", "a", "10_2", "10_11", "9_3"]
    assert sorted(names, key=natural_order) == ["9_3", "10_2", "10_11", "a", "seed=1", "seed=2", "seed=10"]
