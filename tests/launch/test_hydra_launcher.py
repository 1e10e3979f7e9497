"""launch.hydra_launcher on this machine; on Slurm in test_sweeps_on_slurm.py."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import run_command

APP = """
import sys
from pathlib import Path
import hydra
import launch
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import UserError

def make_job(cfg, run_dir, label):
    assert "hydra" not in cfg
    if cfg.steps > 100:
        raise UserError("too many steps")
    args = (str(run_dir), f"steps={cfg.steps}", f"fail_rank={cfg.fail}", "fail_code=6")
    preview = f"steps {cfg.steps}"
    return launch.Job("app", run_dir, "launch_entries:count", args, ClusterConfig(), label=label, preview=preview)

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    sys.exit(launch.run([make_job(cfg, Path(cfg.dir).absolute(), "")], dry_run=cfg.dry_run))

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [_self_, {override hydra/launcher: nano3}, {override hydra/job_logging: none}]
steps: 2
fail: 9
name: base
dir: runs/${name}
dry_run: false
hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: "${dir}"}, launcher: {job_factory: app.make_job}}
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def app(tmp_path: Path) -> Run:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG)

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(words, *run_command(["app.py", *words], tmp_path, os.environ))

    return run


def test_points_have_folders_named_after_their_varying_keys(app: Run, tmp_path: Path) -> None:
    done = app("-m", "steps=1,2", "fail=8", "name=s")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "runs" / "s").iterdir()) == ["steps=1", "steps=2"]
    finished = tmp_path / "runs" / "s" / "steps=2" / "finished.json"
    assert json.loads(finished.read_text()) == {"step": 2}
    assert not (tmp_path / "runs" / "base").exists(), "Hydra's own record of the sweep is removed"
    again = app("-m", "steps=1,2,3", "fail=8", "name=s")
    assert again.returncode == 0 and again.stdout.count("finished before") == 2


def test_a_failed_point_gives_its_exit_code(app: Run, tmp_path: Path) -> None:
    done = app("-m", "fail=9,0")
    assert done.returncode == 6 and "1 of 2 points finished, 1 failed" in done.stderr
    assert (tmp_path / "runs" / "base" / "fail=9" / "finished.json").exists()


def test_dry_run_leaves_nothing(app: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = app("-m", "steps=1,2", "dry_run=true")
    assert done.returncode == 0 and "steps 1" in done.stdout and "steps 2" in done.stdout, done.stderr
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before


def test_user_errors_start_nothing(app: Run, tmp_path: Path) -> None:
    done = app("-m", "steps=1,200")
    assert done.returncode != 0 and "too many steps" in done.stderr
    assert not (tmp_path / "runs" / "base" / "steps=1" / "progress.json").exists()


def test_a_sweep_needs_multirun(app: Run) -> None:
    done = app("steps=1,2")
    assert done.returncode != 0 and "--multirun" in done.stderr


STUDY = """
import hydra
from launch.hydra_launcher import PointEnd

class Task:
    def __call__(self, cfg):
        raise AssertionError("the launcher runs the points")

    def run_points(self, points, learns):
        print("points", [point.label for point in points], learns, flush=True)
        bad = PointEnd(3, reason="too large")
        return [bad if p.config.x > 3 else PointEnd(0, (p.config.x - 2) ** 2) for p in points]

hydra.main(version_base="1.3", config_path=".", config_name="app")(Task())()
"""
STUDY_CONFIG = """
defaults: [_self_, {override hydra/launcher: nano3}, {override hydra/job_logging: none}]
x: 1
y: 1
dry_run: false
hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: runs}}
"""
OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=3")


@pytest.fixture
def study(tmp_path: Path) -> Run:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (tmp_path / "app.py").write_text(STUDY)
    (tmp_path / "app.yaml").write_text(STUDY_CONFIG)

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(words, *run_command(["app.py", *words], tmp_path, os.environ))

    return run


def test_a_study_gets_the_value_of_each_point_and_its_failures(study: Run, tmp_path: Path) -> None:
    done = study("-m", *OPTUNA, "hydra.sweeper.max_failure_rate=1", "y=5", "x=choice(1,2,3,4)")
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((tmp_path / "runs/optimization_results.yaml").read_text())
    assert best["best_value"] == 0 and best["best_params"]["x"] == 2
    batches = re.findall(r"^points \[(.*)\] True$", done.stdout, re.MULTILINE)
    labels = [label for batch in batches for label in batch.split(", ")]
    assert len(batches) == 4 and set(labels) == {f"'x={x}'" for x in (1, 2, 3, 4)}
    assert len(labels) < 12, "a point that is suggested twice at once runs once"
    assert "too large" in done.stdout + done.stderr
    assert "Error executing job" not in done.stderr, "one line for a failed trial, not all its overrides too"


def test_a_study_ends_at_a_failure_unless_failures_are_allowed(study: Run) -> None:
    done = study("-m", *OPTUNA, "x=choice(4,5)")
    assert done.returncode != 0 and "too large" in done.stderr


def test_a_dry_run_of_a_study_shows_its_first_points(study: Run) -> None:
    done = study("-m", *OPTUNA, "x=choice(1,2,3)", "dry_run=true")
    assert done.returncode == 0 and done.stdout.count("points") == 1, done.stderr


def test_batches_of_a_grid_have_the_labels_of_the_whole(study: Run) -> None:
    done = study("-m", "x=1,2,3", "y=7", "hydra.sweeper.max_batch_size=2")
    assert re.findall(r"'(.*?)'", done.stdout) == ["x=1", "x=2", "x=3"], done.stderr
