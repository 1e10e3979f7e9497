"""Explain wrong overrides and Hydra's errors about them: all problems at once, each with the nearest valid key.

Hydra reports one problem at a time, with exit code 1, and answers a typo with the advice to append the key with `+`.
"""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from nano3.artifacts.store import UnknownReferenceError
from nano3.cli.config_file_errors import conf_dir_problems, file_problems, search_path_problems, yaml_problem
from nano3.cli.config_groups import (
    DATA_PREP_BLEND_KEYS,
    GROUPS,
    OPEN_SECTIONS,
    SCHEMAS,
    app_groups,
    members,
    schema_keys,
    type_problem,
)
from nano3.cli.open_keys import is_open_key, open_key_problems
from nano3.config.blend import SourceConfig
from nano3.utils.command_line import FLAGS, THEN, CommandLine, OverrideWord
from nano3.utils.errors import Nano3Error, UserError, did_you_mean, nearest
from nano3.utils.redaction import is_secret, without_secrets

# Errors that are explained without a traceback.
EXPECTED_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, Nano3Error)
# Hydra accepts only one of these flags at a time.
EXCLUSIVE_FLAGS = ("-m", "--multirun", "--run", "-r", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
# Keys of Hydra that have no effect on an application, and what to set instead.
_NO_EFFECT = {
    "pretrain": {
        "hydra.run.dir": "Set run.output_dir, or run.name.",
        "hydra.sweep.subdir": "The folder of a sweep point is named after the keys that vary.",
        "hydra.output_subdir": "RUN/starts keeps the configuration of every start.",
        "hydra.job.chdir": "Ranks work in the folder of the command.",
    },
    "data_prep": {
        "hydra.run.dir": "Set output_dir.",
        "hydra.sweep.dir": "Set output_dir; each point gets a folder in it.",
        "hydra.sweep.subdir": "The folder of a sweep point is named after the keys that vary.",
        "hydra.output_subdir": "manifest.json records the options.",
        "hydra.job.chdir": "A preparation works in the folder of the command.",
    },
}
_DATASET_KEYS = [field.name for field in fields(SourceConfig)]
# Errors of composing a configuration. Hydra raises ValueError and OSError for a member's file without keys.
COMPOSITION_ERRORS = (ConfigCompositionException, MissingConfigException, yaml.YAMLError, ValueError, OSError)


def explain_error(error: Exception, name: str, line: CommandLine) -> Nano3Error:
    """Turn an error of Hydra or OmegaConf into a `UserError` that lists every wrong override.

    Args:
        error: The error. A `Nano3Error` that it wraps is returned instead.
        name: Application, "pretrain" or "data_prep".
        line: The command line that was being composed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Nano3Error):
            return _with_blend_hint(cause)
        cause = cause.__cause__ or cause.__context__
    if found := composition_problems(error, name, line):
        return UserError(found)
    if isinstance(error, yaml.YAMLError):
        return UserError(yaml_problem(error))
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return explain_error(error.__cause__, name, line)
    if isinstance(error, OverrideParseException):
        return UserError(_syntax_problem(str(error.override), line))
    if isinstance(error, InterpolationResolutionError):
        return UserError(str(error).split("\n")[0])
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {str(error).splitlines()[0]}")
    return UserError(clean_hydra_message(str(error)))


def composition_problems(error: Exception, name: str, line: CommandLine) -> list[str]:
    """Return everything that is wrong with the overrides and the files they choose, after composing them failed."""
    if not isinstance(error, COMPOSITION_ERRORS) or isinstance(error, InterpolationResolutionError):
        return []
    found = [*override_problems(name, line, check_members=True), *type_problems(name, line)]
    found += file_problems(name, parse_overrides(line), str(error), line.config_dirs)
    return found + open_key_problems(name, parse_overrides(line), line.config_dirs)


def problems_before_composing(name: str, line: CommandLine) -> list[str]:
    """Return everything that is wrong with the command line, if Hydra would explain part of it badly or not at all."""
    found = [*conf_dir_problems(), *flag_problems(name, line), *override_problems(name, line, check_members=False)]
    found += converted_text_problems(name, line)
    found += search_path_problems(parse_overrides(line))
    found += [f"{o.word} has no effect. {_NO_EFFECT[name][o.key]}" for o in line.overrides if o.key in _NO_EFFECT[name]]
    if not found:
        return []
    return [
        *found,
        *type_problems(name, line),
        *open_key_problems(name, parse_overrides(line), line.config_dirs),
    ]


def _with_blend_hint(error: Nano3Error) -> Nano3Error:
    """Add the command that prepares the data, if the error is about missing data of a blend in conf/."""
    if isinstance(error, UnknownReferenceError) and error.tag in members("data_blend"):
        first, *others = error.problems
        return UserError([f"{first}\n  To prepare it: python -m nano3.data_prep data_blend={error.tag}", *others])
    return error


def clean_hydra_message(text: str) -> str:
    """Return Hydra's message without the advice to append with `+` and without OmegaConf's internal details."""
    noise = ("To append to your", "full_key:", "reference_type=", "object_type=")
    lines = [line.strip() for line in text.splitlines()]
    return "\n  ".join(line for line in lines if line and not line.startswith(noise))


@lru_cache(maxsize=8)
def parse_overrides(line: CommandLine) -> tuple[Override, ...]:
    """Parse the overrides that have a value with Hydra's parser; leave out those that it cannot parse."""
    words = [o.word for o in line.overrides if o.value is not None]
    try:
        return tuple(OverridesParser.create().parse_overrides(words))
    except OverrideParseException:
        return tuple(parsed for word in words if (parsed := _parsed(word)))


def _parsed(word: str) -> Override | None:
    """Return an override as Hydra's parser reads it, None if it cannot."""
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException:
        return None


def syntax_problems(line: CommandLine) -> list[str]:
    """Return one message for each word that is no override: without a value, or unreadable for Hydra's parser."""
    words = [*line.other]
    typed = [override.word for override in line.overrides if override.value is not None]
    if len(parse_overrides(line)) < len(typed):
        words += [word for word in typed if not _parsed(word)]
    return [_syntax_problem(word, line) for word in words]


def _syntax_problem(word: str, line: CommandLine) -> str:
    """Return the message for a word that Hydra's parser cannot read, with the quotes that would suffice.

    Args:
        word: The word.
        line: The command line, in which commas may separate the values of a sweep.
    """
    override = OverrideWord.parse(word)
    head, value = f"{override.prefix}{override.key}", override.value
    if value is None and "~" not in head:
        return f"{word}: expected key=value" + (f", such as {word}=VALUE." if word[-1:].isalpha() else ".")
    shown = f"{head}=..." if is_secret(override.key) else word
    if value is None or not _parsed(f"{head}=1"):
        return f"{shown}: {head!r} cannot be a key. Write key=value, without spaces around the equals sign."
    if is_secret(override.key):
        value = "..."
    values = value.split(",") if line.has_flag("-m", "--multirun") else [value]
    quoted = f"{head}=" + ",".join(v if _parsed(f"{head}={v}") else f'"{v}"' for v in values)
    if not set(value) & set("[]{}'\"\\") and _parsed(quoted):
        return f"{shown}: Hydra reads such text in quotes only. Quote it for the shell, too: {shlex.quote(quoted)}"
    return (
        f"{shown}: Hydra cannot read this value: a bracket or quote is left open, or the text needs quotes. Write "
        "key=value, and quote lists and spaces for the shell: 'key=[a, b]'. Text: 'key=\"text\"'."
    )


def override_problems(name: str, line: CommandLine, check_members: bool) -> list[str]:
    """Return one message for each override that cannot be read or has an unknown key, group or group member.

    Args:
        name: Application, "pretrain" or "data_prep".
        line: The command line.
        check_members: Whether to check the names in `group=NAME`. Only useful after Hydra has failed, because Hydra
            may search more folders (hydra.searchpath).
    """
    keys = list(schema_keys(SCHEMAS[name]))
    found = syntax_problems(line)
    for override in parse_overrides(line):
        key = override.key_or_group
        if key in GROUPS:
            known = members(key, line.config_dirs) if check_members else None
            found += _group_problems(override, key, name, known)
        elif name == "pretrain" and key.startswith("data_blend.") and key.partition(".")[2] in DATA_PREP_BLEND_KEYS:
            found.append(
                f"{key} belongs to nano3.data_prep: a run trains on the prepared data that run.data names. Remove it, "
                "or use it to prepare other data and point run.data there."
            )
        elif not key.startswith(("hydra", *OPEN_SECTIONS)) and key not in keys:
            found.append(_unknown_key(key, name, keys))
    return found


def _unknown_key(key: str, name: str, keys: list[str]) -> str:
    """Return the message for a key that is not in the schema."""
    parent, _, leaf = key.rpartition(".")
    if name == "data_prep" and parent in ("", "data_blend") and leaf in _DATASET_KEYS:
        return (
            f"{key} belongs to a dataset. Set it for each one that needs it, in the file of blend_path or data_blend."
        )
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    if parent in keys and siblings and (near := nearest(leaf, list(siblings))):
        hint = f" Did you mean {siblings[near]!r}?"
    elif same_leaf:
        hint = f" Did you mean {same_leaf[0]!r}?"
    elif parent in keys and siblings:
        hint = f" The keys of {parent} are {', '.join(siblings)}."
    elif parent in keys:
        hint = f" {parent} has no keys of its own; set it as a whole: {parent}=..."
    else:
        sections = [k for k in keys if key.startswith(f"{k}.")]
        pool = [k for k in [*keys, *app_groups(name)] if k not in sections]
        hint = did_you_mean(key, pool if nearest(key, pool) else [k for k in keys if "." not in k])
    return f"no key {key!r} in {name}.{hint}\n  To list all keys and values: python -m nano3.{name} --cfg job"


def _group_problems(override: Override, group: str, name: str, known_members: list[str] | None) -> list[str]:
    """Return what is wrong with one `group=NAME`: the group, the plus or, if `known_members` is given, the name."""
    word = OverrideWord.parse(str(override.input_line))
    if group == "experiment" and name == "data_prep":
        blends = ", ".join(members("data_blend"))
        return [
            f"experiments belong to nano3.pretrain. To prepare the data of one, use data_blend=NAME (NAME: {blends})."
        ]
    if group not in app_groups(name):
        return [f"no group {group!r} in {name}. Its groups are {', '.join(app_groups(name))}."]
    if override.is_delete():
        return []
    values = list(override_values(override))
    # `train=[phase1,perf_gb200]` takes several members, the later ones over the earlier ones.
    listed = [item for value in values if isinstance(value, list) for item in value]
    if any(value in (None, "") for value in [*values, *listed]) or not all(isinstance(item, str) for item in listed):
        plus = "+" if group == "experiment" else ""
        return [f"{word.word}: choose a member of {group}: {plus}{group}=NAME (NAME: {', '.join(members(group))})"]
    if group == "experiment" and not override.is_add():
        return [f"add an experiment with a plus: +{word.without_plus}"]
    if group != "experiment" and (override.is_add() or override.is_force_add()):
        return [f"{word.word}: {group} already has a member. Choose another one without the plus: {word.without_plus}"]
    if known_members is None:
        return []
    chosen = [*listed, *(str(value) for value in values if not isinstance(value, list))]
    return [f"no {group}={c}.{did_you_mean(c, known_members)}" for c in chosen if c not in known_members]


def flag_problems(name: str, line: CommandLine) -> list[str]:
    """Return one message for each unknown flag, for which Hydra would print its usage, and for excluding flags."""
    keys = list(schema_keys(SCHEMAS[name]))
    found = []
    for flag in line.flags:
        if flag.name in ("-", "--") or any(known.startswith(flag.name) for known in FLAGS):
            continue
        if flag.name == THEN and name == "data_prep":
            found.append("--then must be followed by the overrides of a run: --then +experiment=NAME key=value ...")
            continue
        near = nearest(flag.name.lstrip("-").replace("-", "_"), [*keys, "then"] if name == "data_prep" else keys)
        if not near and not flag.name.startswith("--"):  # short flags of Hydra, whose values may follow at once
            continue
        if near == "then":
            hint = "Did you mean --then WORDS?"
        elif near:
            value = "true" if get_type_hints(SCHEMAS[name]).get(near) is bool else "VALUE"
            hint = f"Did you mean {near}={flag.value or value}?"
        else:
            hint = "Settings are written key=value."
        found.append(f"{flag.name}: no such flag. {hint}")
    actions = [flag.word for flag in line.flags if flag.name in EXCLUSIVE_FLAGS]
    if len(actions) > 1:
        found.append(f"{' and '.join(actions)} exclude each other. Remove {actions[0]} or {actions[-1]}.")
    return found


def converted_text_problems(name: str, line: CommandLine) -> list[str]:
    """Return one message for each text that Hydra would convert to a number or boolean and write differently.

    For example, Hydra reads `run.name=2024_01_01` as the number 20240101.
    """
    found, keys = [], set(schema_keys(SCHEMAS[name]))
    for override in parse_overrides(line):
        key, typed = override.key_or_group, OverrideWord.parse(str(override.input_line)).value
        if key in GROUPS or key not in keys or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        if not isinstance(value, bool | int | float) or str(value) == typed:
            continue
        blank: Any = OmegaConf.structured(SCHEMAS[name])
        with contextlib.suppress(OmegaConfBaseException, ValueError):  # type_problems reports a wrong type
            OmegaConf.update(blank, key, value)
            if isinstance(OmegaConf.select(blank, key), str) and not is_secret(key):
                found.append(f"{key}={typed} would be read as {value}. To keep the text, write '{key}=\"{typed}\"'")
    return found


def type_problems(name: str, line: CommandLine) -> list[str]:
    """Return one message for each override whose value has the wrong type."""
    found, keys = [], set(schema_keys(SCHEMAS[name]))
    for override in parse_overrides(line):
        key = override.key_or_group
        if key in GROUPS or not (key in keys or is_open_key(key)) or override.is_delete():
            continue
        for value in override_values(override):
            blank: Any = OmegaConf.structured(SCHEMAS[name])
            try:
                OmegaConf.update(blank, key, value)
            except (OmegaConfBaseException, ValueError) as error:  # ValueError: one value for a whole section
                found.append(type_problem(SCHEMAS[name], key, value, error))
    return found


def override_values(override: Override) -> Iterator[Any]:
    """Yield the value of an override, or each value of a sweep over a list; nothing for other sweeps."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from map(Override._convert_value, value.list)  # without the quotes that were typed
    elif not override.is_sweep_override() and not is_dataclass(value):
        yield value


def nested_text_problems(cfg: DictConfig) -> list[str]:
    """Return one message for each list of texts that holds something else, which OmegaConf accepts.

    In YAML, an unquoted text with a colon is a key with a value.

    Args:
        cfg: A composed configuration.
    """
    schema: Any = OmegaConf.get_type(cfg)
    found = []
    for key in schema_keys(schema):
        hint: Any = schema
        for part in key.split("."):
            hint = get_type_hints(hint)[part]
        if hint not in (list[str], dict[str, str]):
            continue
        value: Any = OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
        items = value.values() if isinstance(value, dict) else value
        found += [
            f"{key}: {without_secrets(item)} is not text. Put quotes around a text with a colon, bracket or brace."
            for item in items
            if not isinstance(item, str)
        ]
    return found
