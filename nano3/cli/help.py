"""`--help` of both applications: how to use it, groups with their members, and every key with its sentence.

Hydra's own help composes the configuration and copies it, which takes longer than everything else together.
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
from nano3.cli.config_groups import SCHEMAS, groups, members

FLAGS = """\
  --cfg job            print the composed configuration and do nothing else; add --resolve for final values
  dry_run=true         check everything and show what would be done
  -m, --multirun       run every combination of values: key=1,2 other=a,b
  --version            the version of nano3
  --config-dir DIR     a folder with group members of your own (or set NANO3_CONF)
  --hydra-help         Hydra's own flags"""


def asked(argv: list[str]) -> bool:
    """Whether the command line asks for this text."""
    return "--help" in argv or "-h" in argv


def text(name: str) -> str:
    """The whole help of application `name`."""
    about = (importlib.import_module("__main__").__doc__ or "").strip()
    lines = [about, "", f"usage: python -m nano3.{name} [FLAGS] [GROUP=NAME ...] [KEY=VALUE ...]", "", FLAGS, ""]
    lines.append("Groups (GROUP=NAME; an experiment is added with a plus: +experiment=NAME):")
    lines += [f"  {group:<20} {', '.join(members(group))}" for group in groups(name)]
    lines += ["", "Keys, with what the code has before conf/ and the command line:"]
    lines += _keys(SCHEMAS[name], "")
    return "\n".join(lines)


def version() -> str:
    """nano3's version, and that of what reads its configuration."""
    return f"nano3 {__version__} (hydra-core {metadata.version('hydra-core')}, Python {platform.python_version()})"


def _keys(schema: type, prefix: str) -> Iterator[str]:
    said = sentences(schema)
    for f in fields(schema):
        key = prefix + f.name
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield f"\n{key}: {said[f.name]}"
            yield from _keys(f.type, f"{key}.")
        else:
            yield f"  {key}{_default(f)}\n      {said[f.name]}"


def _default(f: Any) -> str:
    if f.default is MISSING:
        return ""
    if f.default is None or isinstance(f.default, bool):  # asked by type: 1 equals True
        return f"={'null' if f.default is None else str(f.default).lower()}"
    return f"={f.default}"


@cache
def sentences(schema: type) -> dict[str, str]:
    """The comment above each field of a dataclass, and of the dataclasses that it extends."""
    found: dict[str, str] = {}
    for base in reversed([c for c in schema.__mro__ if is_dataclass(c)]):
        source = inspect.getsource(base)
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign):
                first = node.lineno - 1
                while lines[first - 1].strip().startswith("#"):
                    first -= 1
                words = [line.strip().lstrip("# ") for line in lines[first : node.lineno - 1]]
                found[ast.unparse(node.target)] = " ".join(words)
    return found
