"""Free keys: those of `megatron` and `cluster.env`, which take any. Hydra wants a plus for one that is not there yet.

Whether one is there depends on the chosen members (train=one_hopper sets some of `megatron`), so it is asked of the
composed configuration, and only once Hydra has refused.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nano3.cli.config_groups import GROUPS, OPEN, conf_dir
from nano3.utils.redaction import is_secret


def free_key_problems(name: str, overrides: list[Override], folders: Sequence[str] = ()) -> list[str]:
    """One message for each free key that is given without a plus although nothing has set it. Members are searched in
    `folders` too."""
    wanted = [o for o in overrides if is_free(o.key_or_group) and not (o.is_add() or o.is_force_add() or o.is_delete())]
    if not wanted:
        return []
    there = composed(name, overrides, folders)
    missing = {key: (value, o) for o in wanted for key, value in leaves(o) if not is_set(there, key)}
    return [message(key, value, o) for key, (value, o) in missing.items()]


def is_free(key: str) -> bool:
    """Whether the key lies in, or is, a dictionary that takes any key."""
    return f"{key}.".startswith(OPEN)


def message(key: str, value: str, override: Override) -> str:
    """What to type instead; a secret is not repeated."""
    parent = next(free.rstrip(".") for free in OPEN if key.startswith(free))
    shown = "..." if is_secret(key) else value
    return f"{key} is not set yet; a free key of {parent} is added with a plus: +{key}={shown}"


def leaves(override: Override) -> Iterator[tuple[str, str]]:
    """The keys that an override sets, with their values as they are written; {A: 1} sets A."""
    value = override.value()
    if isinstance(value, Mapping):
        yield from _leaves(override.key_or_group, value)
    else:
        yield override.key_or_group, str(override.input_line).partition("=")[2]


def _leaves(prefix: str, value: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(f"{prefix}.{key}", inner)
        else:
            yield f"{prefix}.{key}", Override._get_value_element_as_str(inner)


def composed(name: str, overrides: list[Override], folders: Sequence[str] = ()) -> Any:
    """The configuration with the chosen members and the added keys alone; empty when even that does not compose."""
    chosen = [o for o in overrides if o.key_or_group in GROUPS or (is_free(o.key_or_group) and o.is_add())]
    kept = [str(o.input_line) for o in chosen if not o.is_sweep_override()]
    if folders:
        kept.append(f"hydra.searchpath={json.dumps(list(folders))}")
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            return compose(name, kept)
    except (HydraException, OmegaConfBaseException, ValueError):
        return OmegaConf.create()


def is_set(cfg: Any, key: str) -> bool:
    """Whether a key is there, be it null."""
    *parents, last = key.split(".")
    for name in parents:
        cfg = cfg.get(name) if OmegaConf.is_dict(cfg) and name in cfg else None
    return OmegaConf.is_dict(cfg) and last in cfg
