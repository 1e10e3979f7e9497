"""The folders of a run: ~ is the home folder, and points of a sweep do not share any."""

from dataclasses import replace
from pathlib import Path

import pytest

from nano3.config import PretrainConfig
from nano3.pretrain import absolute_path, resolve_paths
from nano3.training.run.record import DataReference

DATA = DataReference("data", "/data", "f")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "label", "save", "load"),
    [
        pytest.param({}, "", "/run/checkpoints", "/run/checkpoints", id="nothing given"),
        pytest.param({}, "lr=1", "/run/checkpoints", "/run/checkpoints", id="a point of its own folder"),
        pytest.param({"save": "~/s"}, "", "/home/me/s", "/home/me/s", id="home"),
        pytest.param({"save": "/s"}, "lr=1", "/s/lr=1", "/s/lr=1", id="a point"),
        pytest.param({"save": "/s", "load": "/s"}, "lr=1", "/s/lr=1", "/s/lr=1", id="both alike"),
        pytest.param({"save": "/s", "load": "~/o"}, "lr=1", "/s/lr=1", "/home/me/o", id="another run's weights"),
        pytest.param({"load": "/o"}, "lr=1", "/run/checkpoints", "/o", id="only those"),
    ],
)
def test_where_checkpoints_are(given: dict, label: str, save: str, load: str) -> None:
    config = PretrainConfig()
    pinned = resolve_paths(replace(config, checkpoint=replace(config.checkpoint, **given)), DATA, Path("/run"), label)
    assert (pinned.checkpoint.save, pinned.checkpoint.load) == (save, load)


@pytest.mark.parametrize(
    ("given", "label", "expected"),
    [(None, "lr=1", None), ("~/board", "", "/home/me/board"), ("/board", "lr=1", "/board/lr=1")],
    ids=["nothing given", "home", "a point"],
)
def test_where_tensorboard_is(given: str | None, label: str, expected: str | None) -> None:
    config = PretrainConfig()
    config.logger.tensorboard_dir = given
    assert resolve_paths(config, DATA, Path("/run"), label).logger.tensorboard_dir == expected


@pytest.mark.parametrize(("place", "expected"), [("~/x", "/home/me/x"), ("/x", "/x")])
def test_home(place: str, expected: str) -> None:
    assert str(absolute_path(place)) == expected


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    assert absolute_path("~nobody-of-that-name/x") == tmp_path / "~nobody-of-that-name" / "x"
