"""Compose the points of a sweep: the files once, and the values of each point on a copy of the result.

Hydra reads and merges all files again for each point. Points that choose the same members of the groups differ only in
values, which Hydra sets after merging. Anything unusual, also any error, is left to Hydra.
"""

import copy
import pickle
from collections.abc import Sequence
from functools import lru_cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException


class _Base:
    """A configuration that is copied for each point."""

    def __init__(self, config: DictConfig) -> None:
        try:
            self._pickled = pickle.dumps(config)
        except (pickle.PicklingError, AttributeError, TypeError):  # a schema of the application that is no module's
            self._pickled = b""
            self._config = config

    def copy(self) -> DictConfig:
        """Return a copy; unpickling takes a quarter of the time of `copy.deepcopy`."""
        if not self._pickled:
            return copy.deepcopy(self._config)
        config = pickle.loads(self._pickled)
        assert isinstance(config, DictConfig)
        return config


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Return parsed overrides; the points of a sweep have most words in common."""
    return [_parse_override(word) for word in words]


@lru_cache(maxsize=10_000)
def _parse_override(word: str) -> Override:
    return OverridesParser.create().parse_overrides([word])[0]


class SweepComposer:
    """Composes points with `compose`, and keeps those that `ahead` composes until `compose` takes them out.

    Hydra's own sweeper composes every point to check it, just before the launcher needs it.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        """Let Hydra's loader compose points ahead."""
        self._plain = loader.load_sweep_config
        self._bases: dict[tuple[str, ...], _Base] = {}
        self._kept: dict[tuple[str, ...], DictConfig] = {}
        loader.load_sweep_config = self.ahead  # type: ignore[method-assign]

    def ahead(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a point and keep it.

        Args:
            master_config: The configuration of the sweep.
            sweep_overrides: All overrides of the point, "key=value".
        """
        key = tuple(sweep_overrides)
        if key not in self._kept:
            self._kept[key] = self._compose(master_config, sweep_overrides)
        return self._kept[key]

    def compose(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return a point that no other caller holds.

        Args:
            master_config: The configuration of the sweep.
            sweep_overrides: All overrides of the point, "key=value".
        """
        return self._kept.pop(tuple(sweep_overrides), None) or self._compose(master_config, sweep_overrides)

    def _compose(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        parsed = parse_overrides(sweep_overrides)
        values = [override for override in parsed if _sets_a_value(override)]
        others = tuple(str(override.input_line) for override in parsed if not _sets_a_value(override))
        if not values or any(_meet(value, other) for value in values for other in parsed if not _sets_a_value(other)):
            return self._plain(master_config, sweep_overrides)
        try:
            if others not in self._bases:
                self._bases[others] = _Base(self._plain(master_config, list(others)))
            config = self._bases[others].copy()
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except (HydraException, OmegaConfBaseException):  # its message must be that of the whole point
            return self._plain(master_config, sweep_overrides)
        own = [override for override in parsed if not override.is_hydra_override()]
        job = config.hydra.job
        options = job.config.override_dirname
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = [override.input_line for override in own]
            job.override_dirname = get_overrides_dirname(
                own, kv_sep=options.kv_sep, item_sep=options.item_sep, exclude_keys=options.exclude_keys
            )
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config


def _sets_a_value(override: Override) -> bool:
    """Return whether an override only changes a value of an existing key: names of groups have no dot."""
    return (
        override.type == OverrideType.CHANGE
        and override.package is None
        and "." in override.key_or_group
        and "/" not in override.key_or_group
        and not override.is_hydra_override()
        and not override.is_sweep_override()
    )


def _meet(value: Override, other: Override) -> bool:
    """Return whether another override adds or removes keys where this one sets a value, so that their order counts."""
    return other.type != OverrideType.CHANGE and other.key_or_group.partition(".")[0] in (
        value.key_or_group.partition(".")[0],
        "hydra",
    )
