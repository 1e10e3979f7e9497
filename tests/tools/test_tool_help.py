"""`nano3 TOOL --help`: text filled to the terminal, commands unchanged so that they can be copied."""

import re
from types import ModuleType

import pytest

from nano3.__main__ import description, tool_modules

TOOLS = tool_modules()


def examples(module: ModuleType) -> list[str]:
    """Return the example commands in a module's docstring."""
    return [line for line in (module.__doc__ or "").splitlines() if line.startswith("nano3 ")]


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_shows_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(TOOLS[name])
    assert found and all(re.match(rf"nano3 {name}\b", line) for line in found)
    monkeypatch.setenv("COLUMNS", "60")
    lines = description(TOOLS[name]).splitlines()
    assert set(found) <= set(lines)
    assert all(len(line) <= 58 for line in lines if line not in found)


@pytest.mark.parametrize("name", TOOLS)
def test_commands_keep_their_own_lines(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nano3.__main__ import main

    monkeypatch.setattr("sys.argv", ["nano3", name, "--help"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 0
    assert set(examples(TOOLS[name])) <= set(capsys.readouterr().out.splitlines())


def test_a_module_without_a_docstring() -> None:
    assert description(ModuleType("silent")) == ""
