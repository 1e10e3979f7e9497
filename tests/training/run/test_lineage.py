"""The names of a run in the store and in W&B, and the artifact that its data is."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.artifacts import store
from nano3.artifacts.names import alias_problem
from nano3.config import PretrainConfig
from nano3.training.run.lineage import data_reference, display_name, find_artifact, model_alias


def named(name: str) -> PretrainConfig:
    config = PretrainConfig()
    config.run.name = name
    return config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that is version 1 and, with other content, version 2 of `d`."""
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "store"))
    for content in ("first", "second"):
        store.register("d", tmp_path / "data", content)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "start", "shown", "alias"),
    [
        ("tiny", {}, "tiny", "tiny"),
        ("tiny", {"label": ""}, "tiny", "tiny"),
        ("tiny", {"label": "optimizer.lr=0.1"}, "tiny optimizer.lr=0.1", "tiny-optimizer.lr-0.1"),
        ("v7", {}, "v7", None),
        ("latest", {"label": "seed=1"}, "latest seed=1", "latest-seed-1"),
    ],
    ids=["a run", "no label", "a point", "a version", "a point of latest"],
)
def test_what_a_run_is_called(name: str, start: dict[str, Any], shown: str, alias: str | None) -> None:
    assert display_name(named(name), start) == shown
    assert model_alias(named(name), start) == alias


@given(st.text(max_size=60), st.text(max_size=150))
def test_every_alias_is_one_that_the_store_takes(name: str, label: str) -> None:
    alias = model_alias(named(name), {"label": label})
    assert alias is None or alias_problem(alias) is None


@pytest.mark.parametrize(
    ("reference", "fingerprint", "found"),
    [
        ("d:v1", "anything", "d:v1"),
        ("team/project/d:v12", "anything", "team/project/d:v12"),
        ("{folder}", "second", "d:v2"),
        ("d:latest", "second", "d:v2"),
        ("{folder}", "first", None),
        ("{folder}", "never registered", None),
    ],
    ids=["pinned", "pinned elsewhere", "its folder", "an alias", "replaced since", "other content"],
)
def test_which_artifact_the_data_is(folder: Path, reference: str, fingerprint: str, found: str | None) -> None:
    """A folder whose content has changed since the run is not the run's data."""
    data = {"reference": reference.format(folder=folder), "folder": str(folder), "fingerprint": fingerprint}
    assert data_reference({"data": data}) == found


@pytest.mark.parametrize(
    ("reference", "version"),
    [("d:v1", 1), ("d:v2", 2), ("d:v3", None), ("e:v1", None), ("team/project/d:v1", None)],
    ids=["old", "new", "no such version", "no such artifact", "of W&B"],
)
def test_a_reference_of_this_store_is_found(reference: str, version: int | None) -> None:
    found = find_artifact(reference)
    assert (found.version if found else None) == version
