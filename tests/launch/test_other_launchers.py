"""Hydra's other launchers and sweepers: each point trains or prepares inside their job."""

import json
import re
from pathlib import Path

import pytest
import yaml
from commands import SMALL, Commands

LAUNCHERS = [
    "basic",
    pytest.param("submitit_local", marks=pytest.mark.slow),
    pytest.param("submitit_slurm", marks=pytest.mark.slurm),
]
TINY = [*SMALL, "train.train_iters=2", "train.eval_interval=1", "scheduler.lr_warmup_iters=1"]
TINY += ["scheduler.lr_wsd_decay_iters=1", "checkpoint.save_interval=2", "run.data=data"]


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")


@pytest.fixture
def cli(tmp_path: Path, request: pytest.FixtureRequest) -> Commands:
    commands = Commands(tmp_path)
    if request.node.get_closest_marker("slurm"):
        commands.env["SLURM_CONF"] = request.getfixturevalue("slurm_conf")
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "document {n}, a few words"}}\n' for n in range(400)))
    sets = [{"name": "a", "path": "text.jsonl", "weight": 1}]
    (tmp_path / "b.json").write_text(json.dumps({"datasets": sets}))
    return commands


def prep(cli: Commands, *words: str, code: int = 0) -> str:
    tokenizer = Path(__file__).parents[2] / "nano3/sample/tokenizer"
    own = ["-m", "nano3.data_prep", f"tokenizer_model={tokenizer}", "blend_path=b.json", "workers=1"]
    done = cli(*own, *words, code=code)
    return done.stdout + done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_points_are_prepared_in_the_job_of_another_launcher(cli: Commands, launcher: str) -> None:
    said = prep(cli, "-m", "output_dir=out", "num_shards=3,0,4", f"hydra/launcher={launcher}", code=2)
    assert "error: point num_shards=0: num_shards=0: must be at least 1." in said
    for shards in (3, 4):
        made = json.loads((cli.folder / f"out/num_shards={shards}/manifest.json").read_text())
        assert made["options"]["num_shards"] == shards
    assert "all points finished" in prep(cli, "-m", "output_dir=out", "num_shards=3,4", f"hydra/launcher={launcher}")


def test_a_point_is_not_submitted_again(cli: Commands) -> None:
    said = prep(cli, "-m", "output_dir=out", "num_shards=3,4", "cluster=slurm", "hydra/launcher=basic", code=2)
    assert "error: point num_shards=3: hydra/launcher runs each point in its own job" in said
    assert "error: point num_shards=4: hydra/launcher" in said, "all failed points are named"


def test_a_preparation_has_nothing_to_optimize(cli: Commands) -> None:
    said = prep(cli, "-m", "output_dir=out", "num_shards=choice(3,4)", "hydra/sweeper=optuna", code=2)
    assert "A preparation has no result to optimize" in said


def test_a_dry_run_of_any_launcher_and_sweeper_leaves_nothing(cli: Commands) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "sample=60", "output_dir=data", "workers=1")
    words = ["-m", "nano3.pretrain", "-m", *TINY, "run.name=dry", "dry_run=true"]
    shown = cli(*words, "hydra/launcher=basic", "optimizer.lr=1e-3,2e-3").stdout
    assert "lr: 0.001" in shown and "lr: 0.002" in shown
    study = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=choice(1e-3,2e-3)"]
    assert "# ---- point optimizer.lr=0.00" in cli(*words, *study).stdout
    assert not cli.run_dir("dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", ["basic", "submitit_local", pytest.param("submitit_slurm", marks=pytest.mark.slurm)]
)
def test_points_train_in_the_job_of_another_launcher(cli: Commands, launcher: str) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    words = ["-m", "nano3.pretrain", "-m", *TINY, "run.name=sweep"]
    done = cli(*words, "optimizer.lr=1e-3,-1", f"hydra/launcher={launcher}", code=2)
    assert "error: point optimizer.lr=-1: optimizer.lr=-1.0 must be at least 0." in done.stderr
    sweep = cli.run_dir("sweep")
    before = (sweep / "optimizer.lr=0.001/metrics.jsonl").read_text()
    assert json.loads((sweep / "optimizer.lr=0.001/finished.json").read_text())["iteration"] == 2
    again = cli(*words, "optimizer.lr=1e-3,3e-3")
    assert "optimizer.lr=0.001: finished before" in again.stderr, "nano3's own launcher finds the same folder"
    assert (sweep / "optimizer.lr=0.001/metrics.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_a_study_of_twelve_trials_with_two_failing(cli: Commands, cluster: str) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    study = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=12",
        "hydra.sweeper.n_jobs=6",
    ]
    study += ["hydra.sweeper.max_failure_rate=1", "objective=loss", "objective_take=min"]
    study += ["optimizer.lr=choice(1e-4,1e-3,3e-3,1e-2,3e-2,-1)", "train.seed=choice(1,2)", "run.name=study"]
    slurm = [
        "cluster=slurm",
        "cluster.gpus_per_node=0",
        "cluster.ntasks_per_node=1",
        "cluster.mem=3G",
        "cluster.time=20",
    ]
    here = slurm if cluster == "slurm" else []
    done = cli("-m", "nano3.pretrain", "-m", *TINY, *study, *here, OMP_NUM_THREADS="1")
    failures = re.findall(r"^Failed experiment: point (.*?): optimizer.lr=-1.0 must be at least 0", done.stderr, re.M)
    assert len(failures) >= 2, done.stderr
    best = yaml.safe_load((cli.run_dir("study") / "optimization_results.yaml").read_text())
    found = {}
    for folder in cli.run_dir("study").glob("optimizer.lr=*"):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[folder.name] = min(line["loss"] for line in lines if "loss" in line)
    assert len(found) >= 4 and not set(failures) & set(found), "a point that is suggested again is not trained again"
    assert best["best_value"] == min(found.values())
