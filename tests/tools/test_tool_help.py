"""What `nano3 TOOL --help` says: sentences that fit the terminal, and commands that can be copied as they stand."""

import re
from types import ModuleType

import pytest

from nano3.__main__ import description, tool_modules

TOOLS = tool_modules()


def examples(module: ModuleType) -> list[str]:
    return [line for line in (module.__doc__ or "").splitlines() if line.startswith("nano3 ")]


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_shows_how_it_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(TOOLS[name])
    assert found and all(re.match(rf"nano3 {name}\b", line) for line in found)
    monkeypatch.setenv("COLUMNS", "60")
    told = description(TOOLS[name]).splitlines()
    assert set(found) <= set(told)
    assert all(len(line) <= 58 for line in told if line not in found)


@pytest.mark.parametrize("name", TOOLS)
def test_the_help_keeps_the_commands_on_lines_of_their_own(name: str, monkeypatch, capsys) -> None:
    from nano3.__main__ import main

    monkeypatch.setattr("sys.argv", ["nano3", name, "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert set(examples(TOOLS[name])) <= set(capsys.readouterr().out.splitlines())


def test_a_module_without_words_has_none() -> None:
    assert description(ModuleType("silent")) == ""
