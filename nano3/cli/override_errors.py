"""Wrong overrides, and Hydra's errors about them, told so that the next try is right: all at once, nearest key first.

Hydra's own messages are good but one at a time, with exit code 1 and, for a typo, advice to append the key with `+`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from nano3.artifacts.store import UnknownReference
from nano3.cli.config_file_errors import file_problems, missing_folder, yaml_problem
from nano3.cli.config_groups import (
    FLAGS,
    GROUPS,
    OF_PREPARATION,
    OPEN,
    SCHEMAS,
    TAKES_A_VALUE,
    given_conf,
    groups,
    members,
    schema_keys,
)
from nano3.cli.open_keys import free_key_problems, is_free
from nano3.utils.errors import Nano3Error, UserError, did_you_mean, nearest
from nano3.utils.redaction import is_secret

# What is told without a traceback.
EXPECTED_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, Nano3Error)
# Of these Hydra does one thing at a time.
ONE_OF = ("-m", "--multirun", "--run", "-r", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
# What composing raises; the bare ones of a member's file that holds no keys.
COMPOSING = (ConfigCompositionException, MissingConfigException, yaml.YAMLError, ValueError, OSError)


def explain_error(error: Exception, name: str, argv: list[str]) -> Nano3Error:
    """Turn Hydra's and OmegaConf's exceptions into a `UserError` that lists every wrong override in `argv`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Nano3Error):
            return with_blend(cause)
        cause = cause.__cause__ or cause.__context__
    if found := everything_wrong(error, name, argv):
        return UserError(found)
    if isinstance(error, yaml.YAMLError):
        return UserError(yaml_problem(error))
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return explain_error(error.__cause__, name, argv)
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        quoted = f" Other text goes in quotes twice: '{key}=\"{value}\"'" if equals and is_plain(value) else ""
        return UserError(
            f"{error}\n  Overrides are written key=value; quote lists and spaces for the shell: 'key=[a, b]'.{quoted}"
        )
    if isinstance(error, InterpolationResolutionError):
        return UserError(str(error).split("\n")[0])
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {str(error).splitlines()[0]}")
    return UserError(tidy(str(error)))


def everything_wrong(error: Exception, name: str, argv: list[str]) -> list[str]:
    """All that is wrong with the overrides and the files they choose, when composing them has failed."""
    if not isinstance(error, COMPOSING) or isinstance(error, InterpolationResolutionError):
        return []
    found = [*override_problems(name, argv, choices=True), *wrong_values(name, argv)]
    found += file_problems(name, parsed(argv), str(error), argv)
    return found + free_key_problems(name, parsed(argv), given_conf(argv))


def wrong_beforehand(name: str, argv: list[str]) -> list[str]:
    """All that is wrong with the overrides, if one of them names no key: Hydra would tell of one only, and wrongly."""
    found = [*missing_folder(), *wrong_flags(name, argv), *override_problems(name, argv, choices=False)]
    found += rewritten_texts(name, argv)
    if not found:
        return []
    return [*found, *wrong_values(name, argv), *free_key_problems(name, parsed(argv), given_conf(argv))]


def with_blend(error: Nano3Error) -> Nano3Error:
    """The same error; one about data that is not there also says how to make it, if nano3 knows the blend."""
    if isinstance(error, UnknownReference) and error.tag in members("data_blend"):
        return UserError(
            [f"{p}\n  To make it: python -m nano3.data_prep data_blend={error.tag}" for p in error.problems]
        )
    return error


def tidy(text: str) -> str:
    """Hydra's message without its advice to append with `+`, which is wrong for a typo, and without OmegaConf's own
    words for where it was."""
    inner = ("To append to your", "full_key:", "reference_type=", "object_type=")
    lines = [line.strip() for line in text.splitlines()]
    return "\n  ".join(line for line in lines if line and not line.startswith(inner))


def parsed(argv: list[str]) -> list[Override]:
    """The overrides among the words of a command line; none when one cannot be parsed, which Hydra tells better."""
    pairs = zip(["", *argv], argv, strict=False)
    words = [word for before, word in pairs if word[:1] != "-" and "=" in word and before not in TAKES_A_VALUE]
    try:
        return OverridesParser.create().parse_overrides(words)
    except OverrideParseException:
        return []


def override_problems(name: str, argv: list[str], choices: bool) -> list[str]:
    """One message for each override of application `name` that names no key or, with `choices`, no member of a group.

    Members are looked at only once Hydra has refused: it may search more folders (hydra.searchpath).
    """
    keys = list(schema_keys(SCHEMAS[name]))
    found = []
    for override in parsed(argv):
        key = override.key_or_group
        if key in GROUPS:
            found += wrong_choices(override, key, name, members(key, argv) if choices else None)
        elif name == "pretrain" and key.startswith("data_blend.") and key.partition(".")[2] in OF_PREPARATION:
            found.append(
                f"{key} belongs to nano3.data_prep: a run trains on the data that run.data names, as they were "
                "prepared. Leave it out, or prepare data with it and point run.data there."
            )
        elif not key.startswith(("hydra", *OPEN)) and key not in keys:
            found.append(wrong_key(key, name, keys))
    return found


def wrong_key(key: str, name: str, keys: list[str]) -> str:
    """What to say of a key that is not in the schema."""
    parent, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    if parent in keys and siblings and (near := nearest(leaf, list(siblings))):
        meant = f" Did you mean {siblings[near]!r}?"
    elif same_leaf:
        meant = f" Did you mean {same_leaf[0]!r}?"
    elif parent in keys and siblings:
        meant = f" {parent} has {', '.join(siblings)}."
    elif parent in keys:
        meant = f" {parent} has no keys of its own; it is set as a whole: {parent}=..."
    else:
        above = [k for k in keys if key.startswith(f"{k}.")]
        pool = [k for k in [*keys, *groups(name)] if k not in above]
        meant = did_you_mean(key, pool if nearest(key, pool) else [k for k in keys if "." not in k])
    return f"no key {key!r} in {name}.{meant}\n  All keys with their values: python -m nano3.{name} --cfg job"


def wrong_choices(override: Override, group: str, name: str, choices: list[str] | None) -> list[str]:
    """What is wrong with `group=NAME`: the plus, the group, and, when its `choices` are given, the name."""
    bare = str(override.input_line).lstrip("+")
    if group == "experiment" and name == "data_prep":
        known = ", ".join(members("data_blend"))
        return [
            f"experiments belong to nano3.pretrain; the data of one is prepared with data_blend=NAME (NAME: {known})"
        ]
    if group not in groups(name):
        return [f"no group {group!r} in {name}; it has {', '.join(groups(name))}"]
    if override.is_delete():
        return []
    if any(value in (None, "") for value in values(override)):
        plus = "+" if group == "experiment" else ""
        known = ", ".join(members(group))
        return [f"{override.input_line}: {group} needs a member: {plus}{group}=NAME (NAME: {known})"]
    if group == "experiment" and not override.is_add():
        return [f"an experiment is added with a plus: +{bare}"]
    if group != "experiment" and (override.is_add() or override.is_force_add()):
        return [f"{override.input_line}: {group} has a member already; choose another without the plus: {bare}"]
    if choices is None:
        return []
    return [f"no {group}={c}.{did_you_mean(c, choices)}" for c in map(str, values(override)) if c not in choices]


def wrong_flags(name: str, argv: list[str]) -> list[str]:
    """One message for each word that looks like a flag and is none of Hydra's, which would show its usage."""
    keys = [f.name for f in fields(SCHEMAS[name])]
    found = []
    for word in argv:
        flag, _, value = word.partition("=")
        if not flag.startswith("--") or flag == "--" or any(known.startswith(flag) for known in FLAGS):
            continue
        if flag == "--then" and name == "data_prep":
            found.append("--then needs the words of one run: --then +experiment=NAME key=value ...")
            continue
        near = nearest(flag[2:].replace("-", "_"), [*keys, "then"] if name == "data_prep" else keys)
        meant = "--then WORDS" if near == "then" else f"{near}={value or 'VALUE'}" if near else "key=value"
        found.append(f"{flag}: no such flag. Did you mean {meant}?" if near else f"{flag}: no such flag; {meant}")
    doing = [word for word in argv if word.partition("=")[0] in ONE_OF]
    if len(doing) > 1:
        found.append(f"{' and '.join(doing)}: only one of these at a time; leave out {doing[0]} or {doing[-1]}.")
    return found


def rewritten_texts(name: str, argv: list[str]) -> list[str]:
    """One message for each text that Hydra would read as a number or a truth value and write another way: of
    `run.name=2024_01_01` it would make 20240101."""
    found, keys = [], set(schema_keys(SCHEMAS[name]))
    for override in parsed(argv):
        key, typed = override.key_or_group, str(override.input_line).partition("=")[2]
        if key in GROUPS or key not in keys or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        if not isinstance(value, bool | int | float) or str(value) == typed:
            continue
        blank: Any = OmegaConf.structured(SCHEMAS[name])
        with contextlib.suppress(OmegaConfBaseException, ValueError):  # told as a wrong value
            OmegaConf.update(blank, key, value)
            if isinstance(OmegaConf.select(blank, key), str) and not is_secret(key):
                found.append(f"{key}={typed} would be read as {value}; for the text write '{key}=\"{typed}\"'")
    return found


def is_plain(value: str) -> bool:
    """Whether a value has no signs of a list, a dictionary or quotes in it, so that it may be meant as text."""
    return bool(value) and not set(value) & set("[]{}'\"")


def wrong_values(name: str, argv: list[str]) -> list[str]:
    """One message for each override whose value has the wrong type."""
    found, keys = [], set(schema_keys(SCHEMAS[name]))
    for override in parsed(argv):
        key = override.key_or_group
        if key in GROUPS or not (key in keys or is_free(key)) or override.is_delete():
            continue
        for value in values(override):
            blank: Any = OmegaConf.structured(SCHEMAS[name])
            try:
                OmegaConf.update(blank, key, value)
            except (OmegaConfBaseException, ValueError) as error:  # ValueError: a section given one value
                found.append(f"{key}: {'not text' if is_secret(key) else str(error).splitlines()[0]}")
    return found


def values(override: Override) -> Iterator[Any]:
    """The value of an override, or each of a sweep's; nothing for sweeps that are no list."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from value.list
    elif not override.is_sweep_override() and not is_dataclass(value):
        yield value
