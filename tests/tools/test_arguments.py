"""Arguments of the tools: numbers, a run by path or name, folders without data."""

import argparse
import re
from pathlib import Path
from types import ModuleType

import pytest

from nano3.__main__ import parse_arguments, tool_modules
from nano3.tools import export, inspect_data, plan, tail, verify
from nano3.tools._arguments import RUNS, find_run, find_runs_below
from nano3.utils.errors import Failure, UserError


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    """Subfolders of a run contain no runs, and links are not followed."""
    for name in ("a", "a/checkpoints/iter_1", "a/logs", "sweep/lr=1", "sweep/slurm", "b/deep/er", "wandb"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "sweep" / "round").symlink_to(tmp_path)
    found = {str(run_dir.relative_to(tmp_path)) for run_dir in find_runs_below(tmp_path)}
    assert found == {"a", "sweep/lr=1", "b/deep/er"}
    assert list(find_runs_below(tmp_path / "gone")) == []


def test_a_path_takes_precedence_over_a_run_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match=r"no run 'notes', neither here nor under output/nano3/runs\. `nano3 jobs`"):
        find_run("notes")
    (tmp_path / RUNS / "mine").mkdir(parents=True)
    assert find_run("mine") == RUNS / "mine"
    (tmp_path / "mine").mkdir()
    assert find_run("mine") == Path("mine")


@pytest.mark.parametrize("tool", [inspect_data, verify], ids=["inspect", "verify"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param("nothing", "no manifest.json; it is not a folder that nano3.data_prep made", id="empty"),
        pytest.param(".prep", "no manifest.json; its preparation is not finished: run it again", id="unfinished"),
        pytest.param("manifest.json", "cannot be read: ", id="a folder for a file"),
    ],
)
def test_a_folder_without_data_is_rejected(tmp_path: Path, tool: ModuleType, make: str, message: str) -> None:
    (tmp_path / make).mkdir()
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    with pytest.raises((UserError, Failure)) as caught:
        tool.run(parser.parse_args([str(tmp_path)]))
    assert str(tmp_path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        pytest.param(inspect_data, ["d", "--doc", "-1"], "-1 is too small. The minimum is 0.", id="document"),
        pytest.param(inspect_data, ["d", "--count", "0"], "0 is too small. The minimum is 1.", id="count"),
        pytest.param(inspect_data, ["d", "--chars", "many"], "'many' is not a whole number", id="characters"),
        pytest.param(verify, ["d", "--threads", "1.5"], "'1.5' is not a whole number", id="threads"),
        pytest.param(tail, ["r", "-n", "-3"], "-3 is too small. The minimum is 0.", id="lines"),
        pytest.param(tail, ["r", "--rank", ""], "'' is not a whole number", id="rank"),
        pytest.param(export, ["r", "--iteration", "-1"], "-1 is too small. The minimum is 1.", id="iteration"),
        pytest.param(plan, ["w", "--price", "0"], "0 is out of range. Give a number above 0", id="no price"),
        pytest.param(plan, ["w", "--price", "-2.5"], "-2.5 is out of range. Give a number above 0", id="negative"),
        pytest.param(plan, ["w", "--price", "nan"], "nan is out of range. Give a number above 0", id="nan"),
        pytest.param(plan, ["w", "--price", "inf"], "inf is out of range. Give a number above 0", id="inf"),
        pytest.param(plan, ["w", "--price", "2,5"], "'2,5' is not a number", id="comma"),
    ],
)
def test_numbers_are_checked_by_the_parser(
    capsys: pytest.CaptureFixture[str], tool: ModuleType, words: list[str], message: str
) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(words)
    assert raised.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("tool", tool_modules().values(), ids=tool_modules())
def test_every_number_of_every_tool_has_a_range(tool: ModuleType) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    assert [action.dest for action in parser._actions if action.type in (int, float)] == []


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        pytest.param(["plan", "a=1", "--top", "1", "b=2"], "words", ["a=1", "b=2"], id="plan"),
        pytest.param(["plan", "--top", "1", "~a", "--price=2", "+b=2"], "words", ["~a", "+b=2"], id="signs"),
        pytest.param(["eval", "run", "--tasks", "t", "cluster=slurm"], "cluster", ["cluster=slurm"], id="eval"),
        pytest.param(["jobs", "a", "--active", "b"], "folders", [Path("a"), Path("b")], id="jobs"),
        pytest.param(["jobs", "--active"], "folders", [RUNS], id="default"),
        pytest.param(["report", "a", "--output", "o.html", "b"], "runs", ["a", "b"], id="report"),
        pytest.param(["scaling", "a", "--output", "o.html", "b"], "runs", ["a", "b"], id="scaling"),
        pytest.param(["artifacts", "list"], "what", "list", id="commands of its own"),
    ],
)
def test_options_may_stand_between_words(
    monkeypatch: pytest.MonkeyPatch, words: list[str], name: str, expected: object
) -> None:
    monkeypatch.setattr("sys.argv", ["nano3", *words])
    tool, args = parse_arguments()
    assert tool is tool_modules(words[0])[words[0]] and getattr(args, name) == expected


@pytest.mark.parametrize(
    "words", [["plan"], ["plan", "a=1", "--tip", "1"], ["eval", "r"], ["jobs", "--watch", "0"], []]
)
def test_what_no_tool_takes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["nano3", *words])
    with pytest.raises(SystemExit) as raised:
        parse_arguments()
    assert raised.value.code == 2 and "usage: nano3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        pytest.param("verfy", "Did you mean 'verify'?", id="near"),
        pytest.param("zzz", "Allowed: artifacts, cancel, ", id="far"),
        pytest.param("quickstart", "Allowed: artifacts, cancel, ", id="a run"),
    ],
)
def test_an_unknown_tool_is_answered_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, word: str, hint: str
) -> None:
    monkeypatch.setattr("sys.argv", ["nano3", word, "--output", "x"])
    with pytest.raises(UserError, match=re.escape(f"no tool {word!r}. {hint}")):
        parse_arguments()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        pytest.param(["export", "tiny", "--output=~/x"], "output", id="export"),
        pytest.param(["report", "tiny", "--output=~/x"], "output", id="report"),
        pytest.param(["scaling", "tiny", "--output=~/x"], "output", id="scaling"),
        pytest.param(["eval", "tiny", "--tasks=~/x"], "tasks", id="eval"),
    ],
)
def test_a_shell_leaves_the_home_folder_of_an_option_to_the_tool(
    monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("sys.argv", ["nano3", *words])
    value = getattr(parse_arguments()[1], name)
    assert str(value[0] if isinstance(value, list) else value) == "/home/me/x"
