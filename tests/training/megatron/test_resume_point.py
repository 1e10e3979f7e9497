"""Preflight reports what the ranks would refuse about where a run starts; both backends."""

from pathlib import Path

import pytest
from megatron_helpers import checkpoint, model

from nano3.config import PretrainConfig
from nano3.training import backend as backends
from nano3.training.dataset import open_data
from nano3.training.preflight import preflight
from nano3.training.run.checkpoint_owner import OWNER_FILE
from nano3.training.run.resume import ResumePreview, preview_resume_point
from nano3.utils.files import write_json

BACKENDS = pytest.mark.parametrize("backend", ["megatron", "transformers"])


@pytest.fixture
def own(config: PretrainConfig, tmp_path: Path) -> Path:
    """Where the run saves."""
    return tmp_path / "run" / "checkpoints"


def choose(config: PretrainConfig, backend: str) -> PretrainConfig:
    """The same configuration for a backend, with the folders pinned as `nano3.pretrain` does it."""
    config.backend = backend
    if backend == "transformers":
        config.model = model("quickstart")
    config.checkpoint.save = config.checkpoint.load = f"{config.run.output_dir}/checkpoints"
    return config


def saved(config: PretrainConfig, root: Path, iteration: int) -> Path:
    """A checkpoint of that configuration's run."""
    identity = backends.load(config.backend).run_identity(config, open_data(Path(config.run.data)))
    return checkpoint(root, iteration, identity=identity)


def preview(config: PretrainConfig, prepared: bool = True) -> ResumePreview:
    """Return the resume point as preflight sees it, with or without the data."""
    data = open_data(Path(config.run.data)) if prepared else None
    return preview_resume_point(config, data, backends.load(config.backend).find_resume_point)


def summary(found: ResumePreview) -> tuple[int, bool, tuple[str, ...], tuple[str, ...]]:
    return found.point.iteration, found.point.own, found.problems, found.warnings


@BACKENDS
def test_a_fresh_start_and_a_resume(config: PretrainConfig, own: Path, backend: str) -> None:
    choose(config, backend)
    assert summary(preview(config)) == (0, True, (), ())
    saved(config, own, 5)
    assert summary(preview(config)) == (5, True, (), ())


@BACKENDS
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param("train.seed", 5, "train.seed: 1234 in the checkpoint, now 5", id="seed"),
        pytest.param("model.hidden_size", 192, "in the checkpoint, now 192", id="width"),
    ],
)
def test_another_run_in_its_place_is_refused(
    config: PretrainConfig, own: Path, backend: str, key: str, value: int, message: str
) -> None:
    folder = saved(choose(config, backend), own, 5)
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    problems = preflight(config).problems
    assert any(message in p and str(folder) in p for p in problems), problems


@BACKENDS
@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_load_that_holds_nothing_is_refused(config: PretrainConfig, tmp_path: Path, backend: str, kind: str) -> None:
    choose(config, backend).cluster.kind = kind
    config.checkpoint.load = str(tmp_path / "nope")
    assert any(f"checkpoint.load={tmp_path / 'nope'}" in p for p in preflight(config).problems)


@BACKENDS
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"container_runtime": "pyxis"}, "not there on this machine", id="in the container only"),
        pytest.param({"sbatch_args": ["--dependency=afterok:7"]}, "waits for another one", id="a job before it"),
    ],
)
def test_a_load_that_only_the_job_can_see_is_left_to_it(
    config: PretrainConfig, tmp_path: Path, backend: str, changes: dict, why: str
) -> None:
    choose(config, backend).cluster.kind = "slurm"
    config.checkpoint.load = str(tmp_path / "later")
    for name, value in changes.items():
        setattr(config.cluster, name, value)
    found = preview(config)
    assert found.problems == () and why in found.warnings[0]


@BACKENDS
def test_another_runs_folder_is_refused(config: PretrainConfig, tmp_path: Path, backend: str) -> None:
    choose(config, backend).checkpoint.save = str(tmp_path / "shared")
    saved(config, tmp_path / "shared", 5)
    write_json(tmp_path / "shared" / OWNER_FILE, {"run_dir": str(tmp_path / "other")})
    (problem,) = preview(config).problems
    assert f"holds the checkpoints of another run, {tmp_path / 'other'}" in problem


@BACKENDS
def test_another_runs_weights_may_be_loaded(config: PretrainConfig, tmp_path: Path, backend: str) -> None:
    """Deliberately: a new phase, or the rest of its schedule."""
    saved(choose(config, backend), tmp_path / "other", 5)
    write_json(tmp_path / "other" / OWNER_FILE, {"run_dir": str(tmp_path / "elsewhere")})
    config.checkpoint.load = str(tmp_path / "other")
    assert (preview(config).point.iteration, preview(config).problems) == (0, ())
    config.checkpoint.keep_iteration = True
    assert summary(preview(config)) == (5, False, (), ())
    config.train.train_iters = 5
    assert "has 5 iterations already" in preview(config).problems[0]


@BACKENDS
def test_data_that_is_still_in_preparation(config: PretrainConfig, own: Path, backend: str) -> None:
    saved(choose(config, backend), own, 5)
    config.train.seed = 9
    assert summary(preview(config, prepared=False)) == (5, True, (), ())


@BACKENDS
@pytest.mark.parametrize(
    ("done", "exit_at", "row", "epochs"),
    [
        pytest.param(0, None, "20 = 41 k tokens", 1.0, id="all"),
        pytest.param(0, 5, "5 (from 0 to 5 of 20) = 10.2 k tokens", 0.25, id="exit"),
        pytest.param(5, None, "15 (from 5 to 20 of 20) = 30.7 k tokens", 0.75, id="resume"),
        pytest.param(5, 10, "5 (from 5 to 10 of 20) = 10.2 k tokens", 0.25, id="both"),
        pytest.param(20, None, "0 (from 20 to 20 of 20) = 0 tokens", 0.0, id="finished"),
    ],
)
def test_the_table_is_of_what_this_command_trains(
    config: PretrainConfig, own: Path, backend: str, done: int, exit_at: int | None, row: str, epochs: float
) -> None:
    choose(config, backend).train.exit_iteration = exit_at
    if done:
        saved(config, own, done)
    plan = preflight(config)
    assert plan.problems == []
    rows = dict(plan.rows)
    assert rows["iterations"] == row
    # 20 x 8 x 256 tokens are 1.54 epochs of the 20,000 that are three quarters of the blend.
    assert rows["  docs"].endswith(f"{epochs * 1.536:.2f} epochs")
