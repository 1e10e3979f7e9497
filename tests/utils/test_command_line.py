"""Command lines are split the way Hydra reads them."""

import pytest

from nano3.utils.command_line import CommandLine, Flag, OverrideWord, fold_then


@pytest.mark.parametrize(
    ("word", "prefix", "key", "value"),
    [
        ("a.b=1", "", "a.b", "1"),
        ("+a=b=c", "+", "a", "b=c"),
        ("++a=", "++", "a", ""),
        ("~a", "~", "a", None),
        ("~a=1", "~", "a", "1"),
        ("a", "", "a", None),
    ],
)
def test_override_word(word: str, prefix: str, key: str, value: str | None) -> None:
    assert OverrideWord.parse(word) == OverrideWord(word, prefix, key, value)


def test_words_are_flags_overrides_or_neither() -> None:
    line = CommandLine.parse(["a=1", "--config-dir", "x=y", "-m", "--cfg=job", "~b", "word", "+c=2"])
    assert line.flags == (
        Flag("--config-dir", "--config-dir", "x=y"),
        Flag("-m", "-m"),
        Flag("--cfg=job", "--cfg", "job"),
    )
    assert [o.word for o in line.overrides] == ["a=1", "~b", "+c=2"]
    assert line.other == ("word",)
    assert line.values == {"a": "1", "c": "2"}


@pytest.mark.parametrize("flag", ["--cfg", "-c", "--info", "-i"])
def test_the_choice_of_a_flag_is_its_value_and_an_override_is_not(flag: str) -> None:
    assert CommandLine.parse([flag, "job"]) == ((flag, "job"), (Flag(flag, flag, "job"),), (), ())
    assert [o.word for word in ("a=1", "~a") for o in CommandLine.parse([flag, word]).overrides] == ["a=1", "~a"]


def test_the_last_assignment_of_a_key_counts() -> None:
    line = CommandLine.parse(["a=1", "++a=2", "~b=3"])
    assert line.values == {"a": "2"}
    assert line.keys == {"a", "b"}


def test_overrides_move_behind_the_flags() -> None:
    line = CommandLine.parse(["a=1", "--config-dir", "x=y", "~b", "-m", "c=1,2"])
    assert line.flags_first() == ["--config-dir", "x=y", "-m", "a=1", "~b", "c=1,2"]


def test_a_flag_value_equal_to_an_override_stays_with_its_flag() -> None:
    assert CommandLine.parse(["--config-dir", "a=1", "a=1"]).flags_first() == ["--config-dir", "a=1", "a=1"]


@pytest.mark.parametrize("words", [["--config-dir", "/x"], ["-cd", "/x"], ["--config-dir=/x"]], ids=" ".join)
def test_config_dirs(words: list[str]) -> None:
    assert CommandLine.parse(["train.seed=1", *words, "-m"]).config_dirs == ["/x"]


def test_a_config_dir_flag_without_a_folder_is_left_to_hydra() -> None:
    assert CommandLine.parse(["train.seed=1", "--config-dir"]).config_dirs == []


def test_a_flag_is_not_the_value_of_another_flag() -> None:
    line = CommandLine.parse(["--config-dir", "--help"])
    assert line.has_flag("--help", "-h")
    assert line.config_dirs == []


@pytest.mark.parametrize(
    ("words", "folded"),
    [
        (["a=1"], ["a=1"]),
        (["a=1", "--then"], ["a=1", "--then"]),
        (["a=1", "--then", "+b=c", "d=1,2"], ["a=1", "then=['+b=c','d=1,2']"]),
        (["--then", "a='x'", "b=\\"], ["then=['a=\\'x\\'','b=\\\\']"]),
    ],
    ids=["none", "without words", "words", "quotes"],
)
def test_then_becomes_one_override(words: list[str], folded: list[str]) -> None:
    assert fold_then(words) == folded
