"""Mistakes in the files that a command line chooses: broken YAML, unknown keys and wrong values, with the file's name.

The files are checked only after Hydra has failed: Hydra stops at the first mistake and often does not name the file.
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nano3.cli.config_groups import GROUPS, OPEN_SECTIONS, SCHEMAS, conf_dir, schema_keys, type_problem, user_conf_dir
from nano3.utils.command_line import CommandLine
from nano3.utils.disk_errors import reason
from nano3.utils.errors import did_you_mean
from nano3.utils.tree import leaves

_MEMBER_IN_HYDRA_MESSAGE = re.compile(r"In '(\w+/[^']+)'")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def file_problems(
    name: str, overrides: Sequence[Override], hydra_message: str, config_dirs: Sequence[str]
) -> list[str]:
    """Return one message for each mistake in the files of the chosen group members.

    Args:
        name: Application, "pretrain" or "data_prep".
        overrides: The parsed command line.
        hydra_message: Hydra's error message, which may name a member that another file chooses.
        config_dirs: Folders of `--config-dir`.
    """
    chosen = []
    for o in (o for o in overrides if o.key_or_group in GROUPS):
        value = o.value()
        chosen += [f"{o.key_or_group}/{name}" for name in (value if isinstance(value, list) else [value])]
    chosen += _MEMBER_IN_HYDRA_MESSAGE.findall(hydra_message)
    found: list[str] = []
    for member in dict.fromkeys(chosen):
        if path := member_file(member, config_dirs):
            found += problems_in_file(path, member.partition("/")[0], name)
    return found


def member_file(member: str, config_dirs: Sequence[str] = ()) -> Path | None:
    """Return the file of a member such as "cluster/hopper", or None.

    The search order is Hydra's: the folders of `--config-dir`, $NANO3_CONF, conf/.
    """
    roots = [*config_dirs, *filter(None, [user_conf_dir()]), conf_dir()]
    return next((path for root in roots if (path := Path(root) / f"{member}.yaml").is_file()), None)


def experiment_override_warning(words: Sequence[str]) -> str | None:
    """Return a warning if an experiment overrides keys that the chosen member of `train` sets, or None.

    Hydra gives the experiment precedence over `train=NAME`, even when both are typed.
    """
    typed = CommandLine.parse(words).values
    if not {"train", "experiment"} <= typed.keys():
        return None
    experiment = member_values(f"experiment/{typed['experiment']}")
    train: dict[str, Any] = {}
    for name in str(typed["train"]).strip("[]").split(","):
        train |= member_values(f"train/{name.strip()}")
    keys = [key for key, value in train.items() if key not in typed and experiment.get(key, value) != value]
    if not keys:
        return None
    overridden = ", ".join(f"{key}={experiment[key]}" for key in keys)
    return (
        f"experiment={typed['experiment']} overrides train={typed['train']}, so these values are the experiment's: "
        f"{overridden}. To use another value, set it on the command line: KEY=VALUE."
    )


def lost_schedule_warning(words: Sequence[str]) -> str | None:
    """Return a warning if the typed members of `train` replace the experiment's and have no length, or None.

    The members `perf_GPU` only add to a schedule.
    """
    typed = CommandLine.parse(words).values
    if not {"train", "experiment"} <= typed.keys() or "train.train_iters" in typed:
        return None
    chosen = [name.strip() for name in str(typed["train"]).strip("[]").split(",")]
    defaults = _member_content(f"experiment/{typed['experiment']}")[1].get("defaults", [])
    own = next((d["override /train"] for d in defaults if isinstance(d, dict) and "override /train" in d), None)
    known = {"default", own} & set(chosen)
    if own is None or known or any("train.train_iters" in member_values(f"train/{name}") for name in chosen):
        return None
    return (
        f"train={typed['train']} has no schedule and replaces train={own} of experiment={typed['experiment']}, so the "
        f"run has the default length, batch and learning rate. For both: 'train=[{own},{','.join(chosen)}]'"
    )


def member_values(member: str, config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """Return the dotted keys and values that a member such as "train/phase2" sets, including those of its defaults.

    A file that cannot be read has no values; composing the configuration reports it.
    """
    group, (text, content) = member.partition("/")[0], _member_content(member, config_dirs)
    names = [name for name in content.pop("defaults", []) if isinstance(name, str)]
    found: dict[str, Any] = {}
    for base in (f"{group}/{name}" for name in names if name != "_self_"):
        found |= member_values(base, config_dirs) if base != member else {}
    return found | dict(leaves(content, "" if _PACKAGE.search(text) else f"{group}."))


def _member_content(member: str, config_dirs: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Return the text and the values of a member's file, both empty if it cannot be read."""
    path = member_file(member, config_dirs)
    try:
        text = path.read_text() if path else ""
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "", {}
    return text, content if isinstance(content, dict) else {}


def problems_in_file(path: Path, group: str, name: str) -> list[str]:
    """Return one message for each mistake in the file of a member.

    Args:
        path: The member's file.
        group: Its group, for example "cluster".
        name: Application, "pretrain" or "data_prep".
    """
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except OSError as error:
        return [f"{path}: cannot be read: {reason(error, path)}"]
    except UnicodeDecodeError as error:
        return [f"{path}: cannot be read: {error}"]
    except yaml.YAMLError as error:
        return [yaml_problem(error, path)]
    if not isinstance(content, dict | None):
        return [f"{path}: expected one key: value per line, found {content!r}."]
    package = _PACKAGE.search(text)
    if package and package[1] != "_global_":
        return []
    if group == "experiment" and not package:
        return [
            f"{path}: an experiment must begin with the line '# @package _global_'; without it, its keys have no effect"
        ]
    for hydra_key in ("defaults", "hydra") if package else ("defaults",):
        (content or {}).pop(hydra_key, None)
    keys = list(schema_keys(SCHEMAS[name]))
    found = _content_problems(content or {}, "" if package else f"{group}.", keys, SCHEMAS[name])
    return [f"{path}: {problem}" for problem in found]


def _content_problems(content: Mapping[Any, Any], prefix: str, keys: list[str], schema: type) -> Iterator[str]:
    """Yield the unknown keys and wrong values of one section, and those of the sections inside it."""
    for short, value in content.items():
        key = f"{prefix}{short}"
        if key not in keys:
            if not key.startswith(OPEN_SECTIONS):
                section = prefix.rstrip(".")
                siblings = [k.removeprefix(prefix) for k in keys if k.rpartition(".")[0] == section]
                where = f" in {section}" if section else " at the top level"
                yield f"no key {short!r}{where}.{did_you_mean(str(short), siblings)}"
        elif isinstance(value, Mapping) and any(k.startswith(f"{key}.") for k in keys):
            yield from _content_problems(value, f"{key}.", keys, schema)
        else:
            blank: Any = OmegaConf.structured(schema)
            try:
                OmegaConf.update(blank, key, value, merge=False)  # with merge=True a list passes as text
            except (OmegaConfBaseException, ValueError) as error:
                yield type_problem(schema, key, value, error)


def yaml_problem(error: yaml.YAMLError, path: Path | None = None) -> str:
    """Return a YAML error as one line: the file, the position, what is wrong and what to do.

    Args:
        error: The error, which may hold the name of the file and the position.
        path: The file, if the error does not name it.
    """
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    file = path or Path(mark.name if mark else "a configuration file")
    where = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
    starts = file.parent / "starts"
    if file.name == "config.yaml" and starts.is_dir():
        fix = f"Copy the newest {starts}/*/config.yaml over it, or give this run another name (run.name=...)."
    else:
        fix = "Correct the file: write key: value, and indent keys of one level equally, with spaces."
    return f"{where}: not valid YAML: {what}. {fix}"


def search_path_problems(overrides: Sequence[Override]) -> list[str]:
    """Return one message for each entry of hydra.searchpath in which Hydra would find no files, or fail.

    Hydra itself checks that the value is a list of texts.
    """
    values = [o.value() for o in overrides if o.key_or_group == "hydra.searchpath"]
    entries = [entry for value in values if isinstance(value, list) for entry in value if isinstance(entry, str)]
    return [
        f"hydra.searchpath: {entry}: {why}. Write file:///folder, or pkg://package.folder for an installed package."
        for entry in entries
        if "${" not in entry and (why := _search_path_problem(entry))
    ]


def _search_path_problem(entry: str) -> str | None:
    scheme, mark, path = entry.partition("://")
    if not mark or scheme == "file":
        return None if Path(path if mark else entry).is_dir() else "there is no such folder"
    if scheme != "pkg":
        return f"{scheme}:// is not supported"
    try:
        spec = importlib.util.find_spec(path.replace("/", ".").rstrip("."))
    except (ImportError, ValueError) as error:
        return f"the package cannot be imported ({error})"
    if spec is None:
        return "there is no such package"
    return "a module, not a package" if spec.submodule_search_locations is None else None


def conf_dir_problems() -> list[str]:
    """Return one message if $NANO3_CONF is set to a folder that does not exist."""
    folder = user_conf_dir()
    if folder is None:
        return []
    if Path(folder).is_dir():
        for path in (Path(folder), *(Path(folder) / group for group in GROUPS)):
            if path.is_dir():
                os.listdir(path)  # noqa: PTH208  PermissionError: Hydra would find no members there
        return []
    return [
        f"NANO3_CONF={os.environ['NANO3_CONF']}: there is no such folder. Create it (it contains cluster/NAME.yaml, "
        f"data_blend/NAME.yaml, ...) or unset NANO3_CONF."
    ]
