"""What is wrong inside the files that a command line chooses: broken YAML, wrong keys, wrong values, with their file.

Looked into only once Hydra has refused: it stops at the first mistake and often does not say which file it is in.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nano3.cli.config_groups import GROUPS, OPEN, SCHEMAS, conf_dir, given_conf, schema_keys, user_conf
from nano3.utils.errors import did_you_mean
from nano3.utils.tree import leaves

_CHOSEN_BY_HYDRA = re.compile(r"In '(\w+/[^']+)'")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def file_problems(name: str, overrides: list[Override], told: str, argv: list[str]) -> list[str]:
    """One message for each mistake in the chosen members' files; `told` is what Hydra said, which may name one."""
    chosen = [f"{o.key_or_group}/{o.value()}" for o in overrides if o.key_or_group in GROUPS]
    chosen += _CHOSEN_BY_HYDRA.findall(told)
    found: list[str] = []
    for member in dict.fromkeys(chosen):
        if path := file_of(member, argv):
            found += problems_in(path, member.partition("/")[0], name)
    return found


def file_of(member: str, argv: list[str]) -> Path | None:
    """The file of "cluster/hopper", searched as Hydra does: --config-dir, the user's folder, nano3's."""
    roots = [*given_conf(argv), *filter(None, [user_conf()]), conf_dir()]
    return next((path for root in roots if (path := Path(root) / f"{member}.yaml").is_file()), None)


def experiment_override_warning(words: Sequence[str]) -> str | None:
    """What to tell of overrides that name a member of `train` and an experiment which sets keys of it to other values:
    Hydra puts the experiment above it."""
    typed = dict(word.lstrip("+").partition("=")[::2] for word in words)
    if not {"train", "experiment"} <= typed.keys():
        return None
    below, above = (member_values(f"{group}/{typed[group]}") for group in ("train", "experiment"))
    keys = [key for key, value in below.items() if key not in typed and above.get(key, value) != value]
    if not keys:
        return None
    told = ", ".join(f"{key}={above[key]}" for key in keys)
    return (
        f"train={typed['train']}: experiment={typed['experiment']} stands above it, so these are the experiment's: "
        f"{told}. To have another value write it out: KEY=VALUE."
    )


def member_values(member: str, argv: Sequence[str] = ()) -> dict[str, Any]:
    """The dotted keys that the file of "train/phase2" sets, with their values, those of the members it builds on
    included; none of a file that cannot be read, which composing tells."""
    path, group = file_of(member, list(argv)), member.partition("/")[0]
    try:
        text = path.read_text() if path else ""
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict):
        return {}
    names = [name for name in content.pop("defaults", []) if isinstance(name, str)]
    found: dict[str, Any] = {}
    for below in (f"{group}/{name}" for name in names if name != "_self_"):
        found |= member_values(below, argv) if below != member else {}
    return found | dict(leaves(content, "" if _PACKAGE.search(text) else f"{group}."))


def problems_in(path: Path, group: str, name: str) -> list[str]:
    """What is wrong with the file of a member of `group` for application `name`."""
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path}: cannot be read: {error}"]
    except yaml.YAMLError as error:
        return [yaml_problem(error, path)]
    if not isinstance(content, dict | None):
        return [f"{path}: it holds {content!r} and no keys; write one key: value a line."]
    package = _PACKAGE.search(text)
    if package and package[1] != "_global_":
        return []
    prefix = "" if package else f"{group}."
    keys = list(schema_keys(SCHEMAS[name]))
    if group == "experiment" and not package:
        return [f"{path}: an experiment begins with the line '# @package _global_'; without it no key of it counts."]
    for hydras_own in ("defaults", "hydra") if package else ("defaults",):
        (content or {}).pop(hydras_own, None)
    return [f"{path}: {problem}" for problem in _problems(content or {}, prefix, keys, SCHEMAS[name])]


def _problems(content: Mapping[Any, Any], prefix: str, keys: list[str], schema: type) -> Iterator[str]:
    for short, value in content.items():
        key = f"{prefix}{short}"
        below = [k for k in keys if k.startswith(f"{key}.")]
        if key not in keys:
            if not key.startswith(OPEN):
                siblings = [k.removeprefix(prefix) for k in keys if k.rpartition(".")[0] == prefix.rstrip(".")]
                yield f"no key {short!r} in {prefix.rstrip('.') or 'it'}.{did_you_mean(str(short), siblings)}"
        elif isinstance(value, Mapping) and below:
            yield from _problems(value, f"{key}.", keys, schema)
        else:
            blank: Any = OmegaConf.structured(schema)
            try:
                OmegaConf.update(blank, key, value, merge=False)  # merging takes a list for a text
            except (OmegaConfBaseException, ValueError) as error:
                yield f"{key}: {str(error).splitlines()[0]}"


def yaml_problem(error: yaml.YAMLError, path: Path | None = None) -> str:
    """A YAML mistake in one line: the file, where in it, what is wrong, and what to do."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    file = path or Path(mark.name if mark else "a configuration file")
    where = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
    starts = file.parent / "starts"
    if file.name == "config.yaml" and starts.is_dir():
        mend = f"Copy the newest {starts}/*/config.yaml over it, or give this run another name (run.name=...)."
    else:
        mend = "Mend the file: key: value, with the same indentation (blanks, no tabs) for keys of one level."
    return f"{where}: not valid YAML: {what}. {mend}"


def missing_folder() -> list[str]:
    """Why $NANO3_CONF cannot be searched; nothing when it can, or is not set."""
    folder = user_conf()
    if folder is None or Path(folder).is_dir():
        return []
    return [
        f"NANO3_CONF={os.environ['NANO3_CONF']}: there is no such folder. Make it (it holds cluster/NAME.yaml, "
        f"data_blend/NAME.yaml, ...), or unset NANO3_CONF."
    ]
