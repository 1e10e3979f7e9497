"""`--help` prints the default and the documentation of every key."""

from dataclasses import MISSING, dataclass, fields, is_dataclass

import pytest
import yaml

from nano3.cli import help
from nano3.cli.config_groups import SCHEMAS
from nano3.config import ClusterConfig, DataPrepConfig, PrepOptions
from nano3.utils.command_line import CommandLine


def leaves(schema: type, prefix: str = "") -> dict[str, object]:
    """Return every dotted key with a plain default."""
    found: dict[str, object] = {}
    for f in fields(schema):
        if isinstance(f.type, type) and is_dataclass(f.type):
            found |= leaves(f.type, f"{prefix}{f.name}.")
        elif f.default is not MISSING:
            found[prefix + f.name] = f.default
    return found


def printed_defaults(app: str) -> dict[str, str]:
    """Return the text after `=` for each key of the help text."""
    lines = [line[2:].partition("=") for line in help.text(app).splitlines() if line[:2] == "  " and line[2] != " "]
    return {key: value for key, _, value in lines if key in leaves(SCHEMAS[app])}


@pytest.mark.parametrize("app", SCHEMAS)
def test_every_printed_default_parses_to_the_default(app: str) -> None:
    printed, have = printed_defaults(app), leaves(SCHEMAS[app])
    assert printed.keys() == have.keys()
    for key, value in have.items():
        if isinstance(value, float):
            assert float(printed[key]) == value, key
        elif isinstance(value, str):
            assert printed[key] == value, key
        else:
            assert repr(yaml.safe_load(printed[key])) == repr(value), key  # by name: True equals 1


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("cluster.nodes", "=1"),
        ("cluster.gpus_per_node", "=0"),
        ("optimizer.clip_grad", "=1.0"),
        ("checkpoint.keep_iteration", "=false"),
        ("cluster.account", "=null"),
        ("scheduler.lr_decay_style", "=WSD"),
    ],
)
def test_how_defaults_are_printed(key: str, line: str) -> None:
    assert f"\n  {key}{line}\n" in help.text("pretrain")


@pytest.mark.parametrize("app", SCHEMAS)
def test_every_key_is_below_its_section(app: str) -> None:
    """And those without a section are below none, but before the first."""
    section, wrong = "", []
    for line in help.text(app).partition("Keys, with the defaults")[2].splitlines()[1:]:
        key = line.strip().partition("=")[0].partition(":")[0]
        if line and not line.startswith(" "):
            section = key
        elif line.startswith("  ") and not line.startswith("   ") and key.rpartition(".")[0] != section:
            wrong.append((section, key))
    assert wrong == [] and section


@pytest.mark.parametrize("schema", [ClusterConfig, PrepOptions, DataPrepConfig], ids=lambda s: s.__name__)
def test_every_key_is_documented_inherited_ones_too(schema: type) -> None:
    docs = help.field_docs(schema)
    assert docs.keys() >= {f.name for f in fields(schema)}
    assert all(sentence[-1] in ".)" and not sentence.startswith("#") for sentence in docs.values())


def test_a_comment_of_several_lines_becomes_one_line() -> None:
    assert "stream (read remotely, store nothing) or download" in help.field_docs(PrepOptions)["hf_files"]
    assert "\n" not in help.field_docs(PrepOptions)["hf_files"]


@dataclass
class Parent:
    # What the parent says.
    first: int = 1


@dataclass
class Child(Parent):
    # What the child says instead.
    first: int = 2


def test_a_subclass_overrides_the_documentation() -> None:
    assert help.field_docs(Child) == {"first": "What the child says instead."}


@pytest.mark.parametrize(
    ("argv", "asked"),
    [(["--help"], True), (["a=1", "-h"], True), (["--hydra-help"], False), (["help=1"], False), ([], False)],
    ids=["long", "short at the end", "Hydra's own", "an override", "nothing"],
)
def test_when_help_is_requested(argv: list[str], asked: bool) -> None:
    assert help.is_requested(CommandLine.parse(argv)) is asked


def test_experiments_are_listed_for_pretrain_only() -> None:
    assert "\n  experiment " in help.text("pretrain")
    assert "\n  experiment " not in help.text("data_prep")
