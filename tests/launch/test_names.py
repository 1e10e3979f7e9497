"""Names made of what users type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.names import safe_name, sweep_labels, time_seconds
from nano3.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("0", 0),
        ("90:30", 5430),
        ("04:00:00", 14400),
        ("1-0", 86400),
        ("1-12", 129600),
        ("2-03:04", 183840),
        ("7-00:00:00", 604800),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_time_limit(text: str, seconds: int | None) -> None:
    assert time_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "1-", "1-2-3", "01:00:00; rm -rf x", "1:00\n", " 5"])
def test_not_a_time_limit(text: str) -> None:
    with pytest.raises(ValueError):
        time_seconds(text)


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
def test_slug(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text())
def test_slug_is_always_safe(text: str) -> None:
    assert set(safe_name(text)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert safe_name(text)[0] not in "-."


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


def test_labels_do_not_depend_on_order() -> None:
    one = sweep_labels([["a=1", "b=x"], ["a=2", "b=y"]])
    other = sweep_labels([["b=x", "a=1"], ["b=y", "a=2"]])
    assert one == other


def test_equal_points_are_refused() -> None:
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
