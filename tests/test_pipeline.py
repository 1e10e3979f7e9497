"""The whole pipeline as it is typed: raw text to data to a trained model, here, under torchrun, swept and chained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A hybrid of one layer of each kind: seconds, not minutes.
SMALL = [
    "+experiment=quickstart",
    "model.hybrid_layer_pattern=M*E",
    "model.hidden_size=32",
    "model.mamba_num_heads=4",
    "model.mamba_head_dim=16",
    "model.num_moe_experts=4",
    "train.train_iters=6",
    "train.seq_length=64",
    "train.eval_iters=1",
    "train.eval_interval=3",
    "train.threads=1",
    "scheduler.lr_warmup_iters=2",
    "scheduler.lr_wsd_decay_iters=2",
    "logger.log_interval=1",
    "logger.sample_prompts=[The]",
    "checkpoint.save_interval=3",
]
Run = subprocess.CompletedProcess
Cli = Callable[..., Run]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def cli(place: Path) -> Cli:
    env = {**os.environ, "NANO3_HOME": str(place / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def call(*words: str, code: int = 0) -> Run:
        done = subprocess.run([sys.executable, *words], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def data(cli: Cli, place: Path) -> Path:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    return place / "data"


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def trained(cli: Cli, place: Path, data: Path) -> Path:
    cli("-m", "nano3.pretrain", *SMALL, "run.name=one")
    return place / "output/nano3/runs/one"


def test_a_run_leaves_everything_that_it_was(trained: Path, data: Path) -> None:
    start = json.loads((trained / "starts/0001/start.json").read_text())
    assert start["data"]["reference"] == "DataBlendsArtifact-pretrain:v1"
    assert start["data"]["fingerprint"] == json.loads((data / "manifest.json").read_text())["plan_hash"]
    assert start["overrides"] == [*SMALL, "run.name=one"]
    assert {"torch", "transformers", "megatron-core"} <= set(start["packages"])
    assert json.loads((trained / "finished.json").read_text())["iteration"] == 6
    assert sorted(losses(trained)) == [1, 2, 3, 4, 5, 6]
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (trained / "samples.txt").read_text().startswith("[The]")


def test_starting_a_finished_run_again_does_nothing(cli: Cli, trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    out = cli("-m", "nano3.pretrain", *SMALL, "run.name=one").stdout
    assert "already finished" in out
    assert "validation loss" in out
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


def test_the_model_knows_the_data_it_came_from(cli: Cli, trained: Path) -> None:
    out = cli("-m", "nano3", "artifacts", "lineage", "ModelArtifact-pretrain:one").stdout
    assert "iter_0000006" in out
    assert "DataBlendsArtifact-pretrain:v1" in out


def test_exit_iteration_stops_and_the_same_command_without_it_goes_on(cli: Cli, trained: Path) -> None:
    half = cli("-m", "nano3.pretrain", *SMALL, "run.name=two", "train.exit_iteration=4")
    assert "stopped at iteration 4" in half.stdout
    rest = cli("-m", "nano3.pretrain", *SMALL, "run.name=two")
    assert "resuming from iteration 4" in rest.stdout
    assert losses(trained.parent / "two") == losses(trained)


def test_changing_what_a_run_is_is_refused(cli: Cli, trained: Path) -> None:
    done = cli("-m", "nano3.pretrain", *SMALL, "run.name=one", "model.hidden_size=64", "train.train_iters=9", code=2)
    assert "hidden_size" in done.stderr


def test_dry_run_leaves_nothing(cli: Cli, place: Path, data: Path) -> None:
    out = cli("-m", "nano3.pretrain", *SMALL, "run.name=dry", "dry_run=true").stdout
    assert "parameters" in out
    assert "hybrid_layer_pattern: M*E" in out
    assert not (place / "output/nano3/runs/dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "nproc_per_node"])
def test_two_ranks_here_are_one_rank(cli: Cli, trained: Path, how: str) -> None:
    words = ["nano3.pretrain", *SMALL, f"run.name={how}"]
    if how == "torchrun":
        done = cli("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29741", "-m", *words)
    else:
        done = cli("-m", *words, "cluster.nproc_per_node=2")
    assert done.stdout.count("fresh start") == 1
    assert losses(trained.parent / how) == pytest.approx(losses(trained), abs=1e-5)
    assert [p.name for p in (trained.parent / how / "starts").iterdir()] == ["0001"]


@pytest.mark.slow
def test_a_local_sweep_shows_failures_and_repeats_only_those(cli: Cli, trained: Path) -> None:
    sweep = ["-m", "nano3.pretrain", "-m", *SMALL, "run.name=sweep", "optimizer.lr=1e-3,nan"]
    assert cli(*sweep, code=1).returncode == 1
    points = {p.parent.name: losses(p.parent) for p in (trained.parent / "sweep").glob("*/finished.json")}
    assert len(points) == 1
    again = cli(*sweep, code=1)
    assert "finished" in again.stdout + again.stderr
    assert {p.parent.name: losses(p.parent) for p in (trained.parent / "sweep").glob("*/finished.json")} == points


@pytest.mark.slow
def test_prepare_then_train_in_one_command(cli: Cli, place: Path, data: Path) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "--then", *SMALL, "run.name=then")
    assert (place / "output/nano3/runs/then/finished.json").exists()


def test_a_mistake_in_then_is_told_before_any_work(cli: Cli, place: Path) -> None:
    done = cli("-m", "nano3.data_prep", "output_dir=never", "--then", "+experiment=tiny", "train.itres=1", code=2)
    assert "then: no key 'train.itres'" in done.stderr
    assert not (place / "never").exists()
