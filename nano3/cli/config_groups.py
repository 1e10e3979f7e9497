"""The configuration groups in conf/, their members, and the keys of both applications."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from nano3.config import DataPrepConfig, PretrainConfig
from nano3.utils.files import expand_user
from nano3.utils.redaction import is_secret, without_secrets

SCHEMAS: dict[str, type] = {"pretrain": PretrainConfig, "data_prep": DataPrepConfig}
GROUPS = ("model", "data_blend", "train", "cluster", "experiment")
OPEN_SECTIONS = ("megatron.", "cluster.env.")  # dictionaries that accept any key
# What a key of a type takes.
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list, such as [a, b]",
    dict: "keys with values, such as {a: 1}",
}
# Keys of a blend that only data preparation reads. nano3.pretrain uses nothing but its name.
DATA_PREP_BLEND_KEYS = ("datasets", "tokenizer_model", "num_shards", "valid_fraction", "test_fraction")


def conf_dir() -> str:
    """Return the folder of pretrain.yaml: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"conf/ is neither beside nor inside {package}: the installation is incomplete")


def user_conf_dir() -> str | None:
    """Return the user's own configuration folder, $NANO3_CONF, or None if it is not set."""
    folder = os.environ.get("NANO3_CONF")
    return str(expand_user(folder).absolute()) if folder else None


def app_groups(app: str) -> list[str]:
    """Return the groups of an application, "pretrain" or "data_prep"."""
    sections = {f.name for f in fields(SCHEMAS[app])}
    return [g for g in GROUPS if g in sections or (g, app) == ("experiment", "pretrain")]


def members(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """Return the names that `group=NAME` accepts.

    Args:
        group: Name of a configuration group.
        config_dirs: Folders to search besides conf/ and $NANO3_CONF (`CommandLine.config_dirs`).
    """
    roots = [conf_dir(), *filter(None, [user_conf_dir()]), *config_dirs]
    return sorted({path.stem for root in roots for path in (Path(root) / group).glob("*.yaml")})


def schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a dataclass, sections included."""
    for f in fields(schema):
        yield prefix + f.name
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from schema_keys(f.type, f"{prefix}{f.name}.")


def type_problem(schema: type, key: str, value: Any, error: Exception) -> str:
    """Return what a key takes and what it was given, or OmegaConf's message for a type without a word of its own.

    A secret is not repeated.

    Args:
        schema: The dataclass of the whole configuration.
        key: A dotted key of it.
        value: The refused value.
        error: OmegaConf's error.
    """
    if is_secret(key):
        return f"{key}: not text"
    hint: Any = schema
    for part in key.split("."):
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if isinstance(hint, UnionType) else [hint]
    kind = _KINDS.get(get_origin(kinds[0]) or kinds[0]) if len(kinds) == 1 else None
    if any(get_origin(inner) is list for inner in get_args(hint)):
        kind = "a list of lists, such as [[1, 2]]"
    if is_dataclass(hint):
        return f"{key} is a section: set its keys, such as {key}.{fields(hint)[0].name}=VALUE"
    if kind is None:
        return f"{key}: {str(error).splitlines()[0]}"
    shown = "null" if value is None else repr(value) if isinstance(value, str) else str(without_secrets(value))
    return f"{key} must be {kind}{' or null' if kinds != [hint] else ''}, not {shown}"
