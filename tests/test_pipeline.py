"""The whole pipeline from the command line: one run, torchrun, a sweep, and --then."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import SMALL, Commands, losses
from tracing import has_stack

from nano3.data.dataset.manifest import load_manifest
from nano3.utils.errors import HANG_EXIT_CODE


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def data(cli: Commands) -> Path:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    return cli.folder / "data"


@pytest.fixture(scope="module")
def trained(cli: Commands, data: Path) -> Path:
    cli("-m", "nano3.pretrain", *SMALL, "run.name=one")
    return cli.run_dir("one")


def test_a_run_records_its_inputs_and_results(trained: Path, data: Path) -> None:
    start = json.loads((trained / "starts/0001/start.json").read_text())
    assert start["data"]["reference"] == "DataBlendsArtifact-pretrain:v1"
    assert start["data"]["fingerprint"] == load_manifest(data).content
    assert start["overrides"] == [*SMALL, "run.name=one"]
    assert {"torch", "transformers", "megatron-core"} <= set(start["packages"])
    assert json.loads((trained / "finished.json").read_text())["iteration"] == 6
    assert sorted(losses(trained)) == [1, 2, 3, 4, 5, 6]
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (trained / "samples.txt").read_text().startswith("[The]")


def test_rerunning_a_finished_run_changes_nothing(cli: Commands, trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    out = cli("-m", "nano3.pretrain", *SMALL, "run.name=one").stdout
    assert "already finished" in out
    assert "validation loss" in out
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("iterations", [6, 9])
def test_a_dry_run_says_that_a_run_has_finished(cli: Commands, trained: Path, iterations: int) -> None:
    """Unless more iterations are asked for."""
    words = [*SMALL, "run.name=one", f"train.train_iters={iterations}", "dry_run=true", "cluster=local"]
    out = " ".join(cli("-m", "nano3.pretrain", *words).stdout.split())
    sentence = f"already finished iteration 6 is in {trained}/checkpoints/iter_0000006; nothing to do"
    assert (sentence in out) is (iterations == 6)


def test_lineage_of_the_model_names_its_data(cli: Commands, trained: Path) -> None:
    out = cli("-m", "nano3", "artifacts", "lineage", "ModelArtifact-pretrain:one").stdout
    assert "iter_0000006" in out
    assert "DataBlendsArtifact-pretrain:v1" in out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_stopped_at_exit_iteration_resumes(cli: Commands, trained: Path) -> None:
    half = cli("-m", "nano3.pretrain", *SMALL, "run.name=two", "train.exit_iteration=4")
    assert "stopped at iteration 4" in half.stdout
    rest = cli("-m", "nano3.pretrain", *SMALL, "run.name=two")
    assert "resuming from iteration 4" in rest.stdout
    assert losses(trained.parent / "two") == losses(trained)


def test_changing_the_run_identity_is_rejected(cli: Commands, trained: Path) -> None:
    done = cli("-m", "nano3.pretrain", *SMALL, "run.name=one", "model.hidden_size=64", "train.train_iters=9", code=2)
    assert "hidden_size" in done.stderr


def test_a_dry_run_writes_nothing(cli: Commands, data: Path) -> None:
    out = cli("-m", "nano3.pretrain", *SMALL, "run.name=dry", "dry_run=true").stdout
    assert "parameters" in out
    assert "hybrid_layer_pattern: M*E" in out
    assert not (cli.folder / "output/nano3/runs/dry").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_dry_run_under_torchrun(cli: Commands, data: Path, rank: str) -> None:
    done = cli("-m", "nano3.pretrain", *SMALL, "run.name=dry", "dry_run=true", RANK=rank, WORLD_SIZE="2")
    assert ("hybrid_layer_pattern: M*E" in done.stdout) == (rank == "0")
    assert not cli.run_dir("dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "nproc_per_node"])
def test_two_local_ranks_give_the_losses_of_one(cli: Commands, trained: Path, how: str) -> None:
    words = ["nano3.pretrain", *SMALL, f"run.name={how}"]
    if how == "torchrun":
        done = cli("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", *words)
    else:
        done = cli("-m", *words, "cluster.nproc_per_node=2")
    assert done.stdout.count("fresh start") == 1
    assert losses(trained.parent / how) == pytest.approx(losses(trained), abs=1e-5)
    assert [p.name for p in (trained.parent / how / "starts").iterdir()] == ["0001"]


@pytest.mark.slow
def test_a_stopped_rank_ends_the_run_and_is_named(cli: Commands, data: Path) -> None:
    """SIGSTOP stands for a hung driver or disk: the other rank waits for it, and both are ended."""
    words = ["-m", "nano3.pretrain", *SMALL, "run.name=hangs", "train.micro_batch_size=1", "cluster.nproc_per_node=2"]
    words += ["train.train_iters=3000", "train.eval_interval=0", "checkpoint.save_interval=10"]
    run = cli.run_dir("hangs")
    with subprocess.Popen(
        [sys.executable, *words, "train.hang_timeout_s=4"], cwd=cli.folder, env=cli.env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not ((run / "progress.json").exists() and len(losses(run)) > 12):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        pid = int((run / "logs" / "1.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == HANG_EXIT_CODE, output
    assert "error: hang: no progress for" in output
    assert f"rank 1 on {socket.gethostname()} (process {pid}) is behind and does not answer: it is stopped" in output
    assert "training/hf/loop.py" in (run / "hang" / "rank_0.txt").read_text()
    assert has_stack((run / "hang" / "rank_1.txt").read_text(), "training/hf/loop.py:")
    assert not psutil.pid_exists(pid)
    reached = max(losses(run))
    again = cli(*words, f"train.exit_iteration={reached + 5}", code=0)
    assert "resuming from iteration" in again.stdout
    assert max(losses(run)) == reached + 5


@pytest.mark.slow
def test_a_rank_that_leaves_a_collective_out_is_named(cli: Commands, data: Path) -> None:
    """It is not stopped: both ranks notice, and the one that never enters is named, with where it is."""
    words = ["-m", "nano3.pretrain", *SMALL, "run.name=absent", "train.micro_batch_size=1", "cluster.nproc_per_node=2"]
    words += ["train.train_iters=3000", "train.eval_interval=0", "checkpoint.save_interval=10"]
    run, trigger = cli.run_dir("absent"), cli.folder / "leave"
    path = f"{Path(__file__).parent / 'faults'}{os.pathsep}{cli.env['PYTHONPATH']}"
    with subprocess.Popen(
        [sys.executable, *words, "train.hang_timeout_s=4"], cwd=cli.folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**cli.env, "PYTHONPATH": path, "NANO3_FAULT": str(trigger)},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not ((run / "progress.json").exists() and len(losses(run)) > 12):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        trigger.touch()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == HANG_EXIT_CODE, output
    assert f"rank 1 on {socket.gethostname()} is behind, in " in output
    assert "in read_from_a_server_that_never_answers" in output
    assert "all_reduce" in (run / "hang" / "rank_0.txt").read_text()
    reached = max(losses(run))
    again = cli(*words, f"train.exit_iteration={reached + 5}", code=0)
    assert "resuming from iteration" in again.stdout


@pytest.mark.slow
def test_a_local_sweep_repeats_only_failed_points(cli: Commands, trained: Path) -> None:
    sweep = ["-m", "nano3.pretrain", "-m", *SMALL, "run.name=sweep", "optimizer.lr=1e-3,1e30"]
    assert cli(*sweep, code=1).returncode == 1
    points = {p.parent.name: losses(p.parent) for p in (trained.parent / "sweep").glob("*/finished.json")}
    assert len(points) == 1
    assert "sweep-optimizer.lr-0.001" in cli("-m", "nano3", "artifacts", "list").stdout
    again = cli(*sweep, code=1)
    assert "finished" in again.stdout + again.stderr
    assert {p.parent.name: losses(p.parent) for p in (trained.parent / "sweep").glob("*/finished.json")} == points


@pytest.mark.slow
def test_prepare_then_train(cli: Commands, data: Path) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "--then", *SMALL, "run.name=then")
    assert (cli.folder / "output/nano3/runs/then/finished.json").exists()
    assert (
        "DataBlendsArtifact-pretrain:v"
        in cli("-m", "nano3", "artifacts", "lineage", "ModelArtifact-pretrain:then").stdout
    )


def test_a_mistake_in_then_is_reported_before_any_work(cli: Commands) -> None:
    done = cli("-m", "nano3.data_prep", "output_dir=never", "--then", "+experiment=tiny", "train.itres=1", code=2)
    assert "then: no key 'train.itres'" in done.stderr
    assert not (cli.folder / "never").exists()
