"""What both entry points share: where `conf/` is, how Hydra is called, and how its errors are told.

Hydra's own messages are good but one at a time, with exit code 1 and, for a typo, advice to append the key with `+`.
Here every wrong key is told at once with the nearest right one, and a user's error ends with exit code 2.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from nano3.artifacts.resolver import register_resolver
from nano3.config import DataPrepConfig, PretrainConfig
from nano3.errors import Nano3Error, UserError, did_you_mean, nearest

SCHEMAS: dict[str, type] = {"pretrain": PretrainConfig, "data_prep": DataPrepConfig}
GROUPS = ("model", "data_blend", "train", "cluster", "experiment")
OPEN = ("megatron.", "cluster.env.")  # dictionaries that take any key


def conf_dir() -> str:
    """The folder that holds pretrain.yaml: beside the package in a checkout, inside it in an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "conf", here / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"conf/ is neither beside nor inside {here}: the installation is incomplete")


def run_app(name: str, task: Callable[[DictConfig], int]) -> NoReturn:
    """Compose the configuration `name` from the command line, call `task` with it, and leave with its exit code.

    Exit codes: what `task` returns; 2 for a user's error; 1 for a foreseen failure. Anything else keeps its traceback.
    """
    for app, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{app}_schema", node=schema)
    sample = Path(__file__).resolve().parent / "sample"
    OmegaConf.register_new_resolver("sample", lambda file: str(sample / file), replace=True)
    register_resolver()
    shown_in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving with 1

    def call(cfg: DictConfig) -> None:
        try:
            sys.exit(task(cfg))
        except (HydraException, OmegaConfBaseException, Nano3Error) as error:
            if shown_in_full:
                raise
            leave(explain(error, name))

    try:
        if found := wrong_overrides(name, sys.argv[1:], choices=False):
            raise UserError(found)
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=name)(call)()
    except (HydraException, OmegaConfBaseException, Nano3Error) as error:
        if shown_in_full:
            raise
        leave(explain(error, name))
    sys.exit(0)


def leave(error: Nano3Error) -> NoReturn:
    """Print every problem on stderr and exit with the error's code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(error.exit_code)


def explain(error: Exception, name: str) -> Nano3Error:
    """Turn Hydra's and OmegaConf's exceptions into a `UserError` that lists every wrong override."""
    if isinstance(error, Nano3Error):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Nano3Error):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ConfigCompositionException | MissingConfigException) and (
        found := wrong_overrides(name, sys.argv[1:], choices=True)
    ):
        return UserError(found)
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return explain(error.__cause__, name)
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


def schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, groups and leaves."""
    for f in fields(schema):
        yield prefix + f.name
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from schema_keys(f.type, f"{prefix}{f.name}.")


def wrong_overrides(name: str, argv: list[str], choices: bool) -> list[str]:
    """One message for each override of application `name` that names no key or, with `choices`, no member of a group.

    Members are looked at only once Hydra has refused: a folder given with --config-dir may hold more.
    """
    words = [word for word in argv if not word.startswith("-") and "=" in word]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except OverrideParseException:
        return []  # Hydra tells it better
    keys = list(schema_keys(SCHEMAS[name]))
    found = []
    for override in overrides:
        key = override.key_or_group
        if key in GROUPS:
            found += [message for message in wrong_choices(override, key, name) if choices or key == "experiment"]
        elif not key.startswith("hydra") and key not in keys and (message := wrong_key(override, key, name, keys)):
            found.append(message)
    return found


def wrong_key(override: Override, key: str, name: str, keys: list[str]) -> str | None:
    if key.startswith(OPEN):
        parent = key.rsplit(".", 1)[0]
        plus = f"a free key of {parent} is added with a plus: +{override.input_line}"
        return None if override.is_add() or override.is_delete() else f"{key} is not set yet; {plus}"
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in keys if k.startswith(f"{parent}.")] if parent in keys else []
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    top = [k for k in keys if "." not in k]
    pool = next((p for p in (siblings, [*keys, *GROUPS]) if nearest(key, p)), siblings or top)
    meant = f" Did you mean {same_leaf[0]!r}?" if same_leaf else did_you_mean(key, pool)
    return f"no key {key!r} in {name}.{meant}\n  All keys with their values: python -m nano3.{name} --cfg job"


def wrong_choices(override: Override, group: str, name: str) -> list[str]:
    if group == "experiment" and name == "data_prep":
        known = ", ".join(members("data_blend"))
        return [
            f"experiments belong to nano3.pretrain; the data of one is prepared with data_blend=NAME (NAME: {known})"
        ]
    if group == "experiment" and not override.is_add():
        return [f"an experiment is added with a plus: +{override.input_line}"]
    value = override.value()
    chosen = [str(v) for v in value.list] if isinstance(value, ChoiceSweep) else [str(value)]
    known_names = members(group)
    return [f"no {group}={c}.{did_you_mean(c, known_names)}" for c in chosen if c not in known_names]


def members(group: str) -> list[str]:
    """The names that `group=NAME` accepts: conf/ and, when set, the user's folder $NANO3_CONF."""
    roots = [conf_dir(), *filter(None, [os.environ.get("NANO3_CONF")])]
    return sorted({path.stem for root in roots for path in (Path(root) / group).glob("*.yaml")})


def task_overrides() -> list[str]:
    """The overrides of this start as they were typed, Hydra's own left out."""
    return list(HydraConfig.get().overrides.task)


def typed(cfg: DictConfig) -> Any:
    """The composed configuration as its dataclass, interpolations resolved.

    Raises `UserError` naming every value that is still missing (`???`).
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError([f"no value for {key}; set it on the command line: {key}=..." for key in missing])
    return OmegaConf.to_object(cfg)
