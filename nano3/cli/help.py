"""The `--help` text of both applications: usage, groups with their members, and every key with its documentation.

Hydra's own help composes and copies the configuration, which takes longer than the rest of the program's start.
"""

import ast
import importlib
import inspect
import platform
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import metadata
from typing import Any

from nano3 import __version__
from nano3.cli.config_groups import SCHEMAS, app_groups, members
from nano3.utils.command_line import CommandLine

FLAGS = """\
  --cfg job            print the composed configuration and exit; add --resolve for final values
  dry_run=true         check everything and show what would be done
  -m, --multirun       run every combination of values: key=1,2 other=a,b
  --version            print the version of nano3 and exit
  --config-dir DIR     a folder with group members of your own (or set NANO3_CONF)
  --hydra-help         list Hydra's own flags"""


def is_requested(line: CommandLine) -> bool:
    """Return whether the command line asks for this text."""
    return line.has_flag("--help", "-h")


def text(name: str) -> str:
    """Return the whole help text of application `name`."""
    about = (importlib.import_module("__main__").__doc__ or "").strip()
    lines = [about, "", f"usage: python -m nano3.{name} [FLAGS] [GROUP=NAME ...] [KEY=VALUE ...]", "", FLAGS, ""]
    lines.append("Groups (GROUP=NAME; add an experiment with a plus: +experiment=NAME):")
    lines += [f"  {group:<20} {', '.join(members(group))}" for group in app_groups(name)]
    lines += ["", "Keys, with the defaults that conf/ and the command line may override:"]
    lines += _key_lines(SCHEMAS[name], "")
    return "\n".join(lines)


def version() -> str:
    """Return the versions of nano3, hydra-core and Python."""
    return f"nano3 {__version__} (hydra-core {metadata.version('hydra-core')}, Python {platform.python_version()})"


def _key_lines(schema: type, prefix: str) -> Iterator[str]:
    docs = field_docs(schema)
    # Keys before sections: after a section they would seem to belong to it.
    for f in sorted(fields(schema), key=_is_section):
        key = prefix + f.name
        if isinstance(f.type, type) and _is_section(f):
            yield f"\n{key}: {docs[f.name]}"
            yield from _key_lines(f.type, f"{key}.")
        else:
            yield f"  {key}{_default(f)}\n      {docs[f.name]}"


def _is_section(f: Any) -> bool:
    return is_dataclass(f.type)


def _default(f: Any) -> str:
    if f.default is MISSING:
        return ""
    if f.default is None or isinstance(f.default, bool):  # by type, because 1 equals True
        return f"={'null' if f.default is None else str(f.default).lower()}"
    return f"={f.default}"


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Return the comment above each field of a dataclass, inherited fields included, as one line of text."""
    found: dict[str, str] = {}
    for base in reversed([c for c in schema.__mro__ if is_dataclass(c)]):
        source = inspect.getsource(base)
        lines = source.splitlines()
        class_def = ast.parse(source).body[0]
        assert isinstance(class_def, ast.ClassDef)
        for node in class_def.body:
            if isinstance(node, ast.AnnAssign):
                first = node.lineno - 1
                while lines[first - 1].strip().startswith("#"):
                    first -= 1
                words = [line.strip().lstrip("# ") for line in lines[first : node.lineno - 1]]
                found[ast.unparse(node.target)] = " ".join(words)
    return found
