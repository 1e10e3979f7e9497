"""launch.sweep_composer: points are composed as Hydra composes them, and files are read once for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.hydra_launcher import _without_hydra
from launch.sweep_composer import SweepComposer, _Base, parse_overrides

FILES = {
    "app.yaml": "defaults: [model: small, _self_]\nopt: {lr: 1.0, betas: [1, 2], more: {}}\nname: x\n"
    "label: ${name}-${model.size}\nlate: ${opt.lr}\nhydra: {job: {env_copy: [HOME]}}\n",
    "model/small.yaml": "size: 1\nkind: {a: 1}\n",
    "model/large.yaml": "size: 2\nkind: {a: 2}\n",
    "extra/one.yaml": "# @package _global_\nopt: {lr: 5.0}\nadded: {k: 1}\n",
}


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[ConfigLoader]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


def master(loader: ConfigLoader, *overrides: str) -> DictConfig:
    return loader.load_configuration("app", list(overrides), run_mode=RunMode.MULTIRUN)


POINTS: list[list[str]] = [
    ["opt.lr=2"],
    ["opt.lr=3", "name=y"],
    ["opt.lr=3", "opt.betas=[3,4,5]", "model.kind={a:7}"],
    ["model=large", "opt.lr=4"],
    ["+extra=one", "opt.lr=6"],
    ["+extra=one", "added.k=6"],
    ["+opt.new=1", "opt.new=2"],
    ["opt.lr=1", "+opt.more.x=1"],
    ["+top.new=1", "opt.lr=9"],
    ["~opt.betas", "opt.lr=9"],
    ["opt.lr=${model.size}", "hydra.job.name=z"],
    ["++opt.lr=8", "model.size=3"],
    ["name=only"],
    ["opt.lr=1", "opt.lr=2"],
    [],
]


@pytest.mark.parametrize("repeats", [1, 2])
def test_points_are_what_hydra_composes(loader: ConfigLoader, repeats: int) -> None:
    config = master(loader)
    plain = [OmegaConf.to_container(loader.load_sweep_config(config, point)) for point in POINTS]
    composer = SweepComposer(loader)
    for _ in range(repeats):
        for point, wanted in zip(POINTS, plain, strict=True):
            made = composer.compose(config, point)
            assert OmegaConf.to_container(made) == wanted
            assert OmegaConf.is_struct(made)
            assert made.late == made.opt.lr, "interpolations belong to the point"


@pytest.mark.parametrize(
    "point",
    [["opt.rl=2"], ["opt.lr=2", "model=huge"], ["model.size.x=1"], ["opt@x.lr=2"], ["opt.lr=2", "+name=y"]],
    ids=str,
)
def test_errors_are_those_of_hydra(loader: ConfigLoader, point: list[str]) -> None:
    config = master(loader)
    with pytest.raises(HydraException) as plain:
        loader.load_sweep_config(config, point)
    with pytest.raises(HydraException) as made:
        SweepComposer(loader).compose(config, point)
    assert str(made.value) == str(plain.value)


def test_files_are_read_once(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    config = master(loader)
    read: list[Any] = []
    compose = ConfigLoaderImpl._compose_config_from_defaults_list
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "_compose_config_from_defaults_list",
        lambda self, **keys: read.append(1) or compose(self, **keys),
    )
    composer = SweepComposer(loader)
    for lr in range(10):
        composer.ahead(config, [f"opt.lr={lr}"])
    assert len(read) == 1
    assert [composer.compose(config, [f"opt.lr={lr}"]).opt.lr for lr in range(10)] == list(range(10))


def test_a_point_that_was_taken_is_not_given_again(loader: ConfigLoader) -> None:
    config = master(loader)
    composer = SweepComposer(loader)
    composer.ahead(config, ["opt.lr=2"])
    first = composer.compose(config, ["opt.lr=2"])
    first.opt.lr = 99
    assert composer.compose(config, ["opt.lr=2"]).opt.lr == 2


@dataclass
class Typed:
    """A schema of a module."""

    sizes: dict[str, list[int]] = field(default_factory=lambda: {"a": [1]})
    rate: float | None = None


def test_copies_keep_types_flags_and_interpolations() -> None:
    @dataclass
    class Local(Typed):
        """A schema that cannot be pickled."""

    for schema in (Typed, Local):
        config = OmegaConf.create({"own": OmegaConf.structured(schema), "late": "${own.rate}"})
        OmegaConf.set_struct(config, True)
        made = _Base(config).copy()
        made.own.rate = 2
        assert OmegaConf.is_struct(made) and made.late == 2.0 and config.late is None
        assert OmegaConf.to_object(made.own) == schema(rate=2.0)
        with pytest.raises(OmegaConfBaseException, match="not be converted to Integer"):
            made.own.sizes = {"a": ["x"]}


def test_without_hydra_values_are_shared_and_resolve_in_the_whole(loader: ConfigLoader) -> None:
    whole = loader.load_sweep_config(master(loader), ["opt.lr=2"])
    own = _without_hydra(whole)
    assert "hydra" in whole and "hydra" not in own and "hydra" not in OmegaConf.to_container(own, resolve=True)
    assert OmegaConf.is_struct(own) and own.late == 2 and own.label == "x-1"
    whole.opt.lr = 3
    assert own.late == own.opt.lr == 3


def test_words_are_parsed_once_and_as_hydra_does() -> None:
    first, again = (parse_overrides(["a.b=1,2", "~c", "d={x:1}"]) for _ in range(2))
    assert [str(o.input_line) for o in first] == ["a.b=1,2", "~c", "d={x:1}"]
    assert all(one is other for one, other in zip(first, again, strict=True))
    with pytest.raises(HydraException):
        parse_overrides(["a.b=1", "]="])
