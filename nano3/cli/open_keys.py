"""Open keys: the keys of `megatron` and `cluster.env`, which accept any name.

Hydra requires a plus for an open key that is not set yet. Whether it is set depends on the chosen group members
(train=one_hopper sets some keys of `megatron`), so the configuration is composed to find out, and only after Hydra has
failed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nano3.cli.config_groups import GROUPS, OPEN_SECTIONS, conf_dir
from nano3.utils.command_line import OverrideWord
from nano3.utils.redaction import is_secret
from nano3.utils.tree import leaves


def open_key_problems(name: str, overrides: Sequence[Override], config_dirs: Sequence[str] = ()) -> list[str]:
    """Return one message for each open key that is overridden without a plus although nothing sets it.

    Args:
        name: Application, "pretrain" or "data_prep".
        overrides: The parsed command line.
        config_dirs: Folders of `--config-dir`, searched for members too.
    """
    without_plus = [
        o for o in overrides if is_open_key(o.key_or_group) and not (o.is_add() or o.is_force_add() or o.is_delete())
    ]
    if not without_plus:
        return []
    cfg = _compose_members(name, overrides, config_dirs)
    missing = {key: text for o in without_plus for key, text in override_leaves(o) if not is_set(cfg, key)}
    return [_missing_plus(key, text) for key, text in missing.items()]


def is_open_key(key: str) -> bool:
    """Return whether a key is, or lies in, a dictionary that accepts any key."""
    return f"{key}.".startswith(OPEN_SECTIONS)


def _missing_plus(key: str, text: str) -> str:
    """Return what to type instead. A secret is not repeated."""
    section = next(prefix.rstrip(".") for prefix in OPEN_SECTIONS if key.startswith(prefix))
    shown = "..." if is_secret(key) else text
    return f"{key} is not set yet. Add a new key to {section} with a plus: +{key}={shown}"


def override_leaves(override: Override) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys that an override sets, each with its value as text; `a={b: 1}` sets a.b."""
    value = override.value()
    if isinstance(value, Mapping):
        for key, inner in leaves(value, f"{override.key_or_group}."):
            yield key, Override._get_value_element_as_str(inner)
    else:
        yield override.key_or_group, OverrideWord.parse(str(override.input_line)).value or ""


def _compose_members(name: str, overrides: Sequence[Override], config_dirs: Sequence[str]) -> Any:
    """Compose only the chosen members and added keys; return an empty configuration if even that fails."""
    chosen = [o for o in overrides if o.key_or_group in GROUPS or (is_open_key(o.key_or_group) and o.is_add())]
    kept = [str(o.input_line) for o in chosen if not o.is_sweep_override()]
    if config_dirs:
        kept.append(f"hydra.searchpath={json.dumps(list(config_dirs))}")
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            return compose(name, kept)
    except (HydraException, OmegaConfBaseException, ValueError):
        return OmegaConf.create()


def is_set(cfg: Any, key: str) -> bool:
    """Return whether a configuration has a dotted key, even with the value null."""
    *parents, last = key.split(".")
    for name in parents:
        cfg = cfg.get(name) if OmegaConf.is_dict(cfg) and name in cfg else None
    return OmegaConf.is_dict(cfg) and last in cfg
