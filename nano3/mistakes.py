"""Wrong overrides, and Hydra's errors about them, told so that the next try is right: all at once, nearest key first.

Hydra's own messages are good but one at a time, with exit code 1 and, for a typo, advice to append the key with `+`.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from nano3.conf import GROUPS, OPEN, SCHEMAS, groups, members, schema_keys
from nano3.errors import Nano3Error, UserError, did_you_mean, nearest
from nano3.secrecy import is_secret


def explain(error: Exception, name: str, argv: list[str]) -> Nano3Error:
    """Turn Hydra's and OmegaConf's exceptions into a `UserError` that lists every wrong override in `argv`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Nano3Error):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ConfigCompositionException | MissingConfigException) and (
        found := [*wrong_overrides(name, argv, choices=True), *wrong_values(name, argv)]
    ):
        return UserError(found)
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return explain(error.__cause__, name, argv)
    if isinstance(error, OverrideParseException):
        return UserError(
            f"{error}\n  Overrides are written key=value; quote lists and spaces for the shell: 'key=[a, b]'."
        )
    if isinstance(error, InterpolationResolutionError):
        return UserError(str(error).split("\n")[0])
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {str(error).splitlines()[0]}")
    return UserError(tidy(str(error)))


def tidy(text: str) -> str:
    """Hydra's message without its advice to append with `+`, which is wrong for a typo."""
    lines = [line for line in text.splitlines() if not line.startswith("To append to your")]
    return "\n  ".join(line.strip() for line in lines if line.strip())


def parsed(argv: list[str]) -> list[Override]:
    """The overrides among the words of a command line; none when one cannot be parsed, which Hydra tells better."""
    words = [word for word in argv if not word.startswith("-") and "=" in word]
    try:
        return OverridesParser.create().parse_overrides(words)
    except OverrideParseException:
        return []


def wrong_overrides(name: str, argv: list[str], choices: bool) -> list[str]:
    """One message for each override of application `name` that names no key or, with `choices`, no member of a group.

    Members are looked at only once Hydra has refused: a folder given with --config-dir may hold more.
    """
    keys = list(schema_keys(SCHEMAS[name]))
    found = []
    for override in parsed(argv):
        key = override.key_or_group
        if key in GROUPS:
            found += wrong_choices(override, key, name, choices)
        elif not key.startswith("hydra") and key not in keys and (message := wrong_key(override, key, name, keys)):
            found.append(message)
    return found


def wrong_key(override: Override, key: str, name: str, keys: list[str]) -> str | None:
    """What to say of a key that is not in the schema; None when it may be there all the same."""
    if key.startswith(OPEN):
        parent = key.rsplit(".", 1)[0]
        written = f"{key}=..." if is_secret(key) else override.input_line
        plus = f"a free key of {parent} is added with a plus: +{written}"
        return None if override.is_add() or override.is_delete() else f"{key} is not set yet; {plus}"
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in keys if k.startswith(f"{parent}.")] if parent in keys else []
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    top = [k for k in keys if "." not in k]
    pool = next((p for p in (siblings, [*keys, *GROUPS]) if nearest(key, p)), siblings or top)
    meant = f" Did you mean {same_leaf[0]!r}?" if same_leaf else did_you_mean(key, pool)
    return f"no key {key!r} in {name}.{meant}\n  All keys with their values: python -m nano3.{name} --cfg job"


def wrong_choices(override: Override, group: str, name: str, choices: bool) -> list[str]:
    """What is wrong with `group=NAME`: the plus, the group, and with `choices` the name."""
    if group == "experiment" and name == "data_prep":
        known = ", ".join(members("data_blend"))
        return [
            f"experiments belong to nano3.pretrain; the data of one is prepared with data_blend=NAME (NAME: {known})"
        ]
    if group == "experiment" and not override.is_add():
        return [f"an experiment is added with a plus: +{override.input_line}"]
    if group not in groups(name):
        return [f"no group {group!r} in {name}; it has {', '.join(groups(name))}"]
    if group != "experiment" and override.is_add():
        written = str(override.input_line)
        return [f"{written}: {group} has a member already; choose another without the plus: {written.lstrip('+')}"]
    if not choices:
        return []
    known_names = members(group)
    return [
        f"no {group}={c}.{did_you_mean(c, known_names)}" for c in map(str, values(override)) if c not in known_names
    ]


def wrong_values(name: str, argv: list[str]) -> list[str]:
    """One message for each override whose value has the wrong type."""
    found = []
    for override in parsed(argv):
        key = override.key_or_group
        if key in GROUPS or key.startswith("hydra") or override.is_delete():
            continue
        for value in values(override):
            blank: Any = OmegaConf.structured(SCHEMAS[name])
            try:
                OmegaConf.update(blank, key, value)
            except OmegaConfBaseException as error:
                found.append(f"{key}: {str(error).splitlines()[0]}")
            except ValueError as error:  # a section given one value
                found.append(f"{key}: {str(error).splitlines()[0]}")
    return found


def values(override: Override) -> Iterator[Any]:
    """The value of an override, or each of a sweep's; nothing for sweeps that are no list."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from value.list
    elif not override.is_sweep_override() and not is_dataclass(value):
        yield value
