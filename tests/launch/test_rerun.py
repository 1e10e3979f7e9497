"""Rerun the same command after the end or while the run is active, with a fake Slurm."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import SMALL, Commands

from launch import job_records
from nano3.config import PretrainConfig
from nano3.training.run import record

SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.ntasks_per_node=1"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    commands = Commands(tmp_path_factory.mktemp("again"))
    commands("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data")
    commands("-m", "nano3.pretrain", *SMALL, "run.name=one", "train.exit_iteration=1")
    return commands


@pytest.fixture
def finished_run(cli: Commands, recorder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the finished run, with a fake Slurm on PATH."""
    monkeypatch.setitem(cli.env, "PATH", f"{recorder}:{cli.env['PATH']}")
    return cli.run_dir("one")


def one(cli: Commands, *words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    base = ["run.name=one", "train.exit_iteration=1"]
    return cli("-m", "nano3.pretrain", *SMALL, *base, *SLURM, *words, code=code)


def files(run: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_finished_run_is_not_submitted_again_with_another_cluster(cli: Commands, finished_run: Path) -> None:
    before = files(finished_run)
    for words in ([], ["cluster.time=9", "cluster.nodes=2", "run.env.container=x", "run.wandb.mode=offline"]):
        assert "has finished: nothing to do" in one(cli, *words).stderr
    assert files(finished_run) == before


@pytest.mark.slow
def test_a_finished_point_is_not_run_again_with_another_cluster(cli: Commands, finished_run: Path) -> None:
    done = cli(
        "-m", "nano3.pretrain", "-m", *SMALL, "run.name=sweep", "optimizer.lr=1e-3,2e-3",
        "train.exit_iteration=1",
    )  # fmt: skip
    assert "2 of 2 points finished" in done.stderr
    before = files(cli.run_dir("sweep"))
    rest = ["optimizer.lr=1e-3,2e-3", "train.exit_iteration=1", "cluster.time=9"]
    done = cli("-m", "nano3.pretrain", "-m", *SMALL, "run.name=sweep", *rest, *SLURM)
    assert "submitted 0 of 2 points" in done.stderr and "finished before" in done.stdout
    dry = cli("-m", "nano3.pretrain", "-m", *SMALL, "run.name=sweep", *rest, *SLURM, "dry_run=true")
    assert "all 2 points have finished" in dry.stderr
    assert files(cli.run_dir("sweep")) == before


def test_a_refused_start_changes_no_file_of_the_active_job(cli: Commands, finished_run: Path) -> None:
    """For the fake scontrol every job is running."""
    job_records.add_record(
        finished_run, job_records.JobRecord("1", "one", "2026-01-01T00:00:00+00:00", "/log", "/script")
    )
    before = files(finished_run)
    try:
        refused = one(cli, "optimizer.lr=1e-4", "train.exit_iteration=2", code=2)
        assert "job 1 of this run is RUNNING" in refused.stderr
        here = cli("-m", "nano3.pretrain", *SMALL, "run.name=one", "optimizer.lr=1e-4", code=2)
        assert "job 1 of this run is RUNNING" in here.stderr
        assert files(finished_run) == before
    finally:
        (finished_run / job_records.FILE).unlink()


SEED = "is a checkpoint of a different run: train.seed: 1234 in"
LOAD = ["run.name=new", "checkpoint.load=/nope"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["train.seed=5"], SEED, id="seed here"),
        pytest.param(["train.seed=5", *SLURM], SEED, id="seed on Slurm"),
        pytest.param([*LOAD, "dry_run=true"], "checkpoint.load=/nope", id="load in a dry run"),
        pytest.param([*LOAD, *SLURM], "checkpoint.load=/nope", id="load on Slurm"),
        pytest.param(["run.output_dir=/proc/nope"], "run.output_dir=/proc/nope: cannot be written", id="run folder"),
    ],
)
def test_problems_of_the_ranks_are_found_before_anything_is_written(
    cli: Commands, finished_run: Path, words: list[str], expected: str
) -> None:
    before = files(finished_run.parent)
    done = cli("-m", "nano3.pretrain", *SMALL, "run.name=one", "train.exit_iteration=1", *words, code=2)
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert files(finished_run.parent) == before
    assert not cli.run_dir("new").exists()


def test_a_resume_with_other_data_is_told_which_the_run_has(cli: Commands, finished_run: Path) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "sample=30", "output_dir=other", "alias=other")
    words = ["-m", "nano3.pretrain", *SMALL, "run.name=one"]
    refused = cli(*words, "run.data=other", code=2).stderr
    assert "is a checkpoint of a different run: data: " in refused
    assert f"Restore these values (run.data={cli.folder}/data), or" in refused and "was trained on what" not in refused
    (cli.folder / "data").rename(cli.folder / "moved")
    try:
        refused = cli(*words, "run.data=other", code=2).stderr
    finally:
        (cli.folder / "moved").rename(cli.folder / "data")
    assert f"The run was trained on what {cli.folder}/data held when it started." in refused
    assert "was trained on what" not in cli(*words, "run.data=data", "train.seed=5", code=2).stderr


def test_two_runs_do_not_save_into_one_folder(cli: Commands, finished_run: Path) -> None:
    shared = f"checkpoint.save={finished_run}/checkpoints"
    for words in (["run.name=two"], ["run.name=two", "dry_run=true"]):
        done = cli("-m", "nano3.pretrain", *SMALL, *words, shared, code=2)
        assert f"holds the checkpoints of another run, {finished_run}. Choose another checkpoint.save" in done.stderr
    assert not cli.run_dir("two").exists()


def test_a_finished_run_without_its_checkpoints_trains_again(cli: Commands, finished_run: Path) -> None:
    words = ["-m", "nano3.pretrain", *SMALL, "run.name=lost", "train.exit_iteration=1"]
    cli(*words)
    shutil.rmtree(cli.run_dir("lost") / "checkpoints")
    done = cli(*words)
    assert "iter_0000001, the last checkpoint of" in done.stdout and "fresh start" in done.stdout
    assert "is kept as metrics.1.jsonl" in done.stdout
    assert json.loads((cli.run_dir("lost") / "finished.json").read_text())["iteration"] == 1
    assert [p.name for p in sorted((cli.run_dir("lost") / "starts").iterdir())] == ["0001", "0002"]
    before = files(cli.run_dir("lost"))
    assert "already finished: iteration 1 is in" in cli(*words).stdout
    assert files(cli.run_dir("lost")) == before


@pytest.mark.slow
def test_points_get_their_own_folder_in_a_shared_folder(cli: Commands, finished_run: Path) -> None:
    sweep = ["-m", "nano3.pretrain", "-m", *SMALL, "run.name=shared", "optimizer.lr=1e-3,2e-3", "checkpoint.save=save"]
    sweep += ["train.exit_iteration=1", "logger.tensorboard_dir=board"]
    assert "2 of 2 points finished" in cli(*sweep).stderr
    labels = sorted(p.parent.name for p in cli.run_dir("shared").glob("*/finished.json"))
    for folder in ("save", "board"):
        assert sorted(p.name for p in (cli.folder / folder).iterdir()) == labels
    assert all((p / "iter_0000001" / "checkpoint.json").is_file() for p in (cli.folder / "save").iterdir())
    assert cli(*sweep).stdout.count("finished before") == 2


def test_changed_run(cli: Commands, finished_run: Path) -> None:
    config = record.load_run_config(finished_run / "config.yaml")
    reference = json.loads((finished_run / "starts" / "0001" / "start.json").read_text())["data"]
    data = record.DataReference(**reference)
    assert not record.run_changed(finished_run, config, data)
    assert record.run_changed(finished_run, config, record.DataReference(data.reference, data.folder, "other data"))
    config.cluster.nodes, config.data_blend.num_shards = 7, 5
    assert not record.run_changed(finished_run, config, data)
    config.optimizer.lr = 9
    assert not record.run_changed(finished_run, config, data), "nothing is left to train with it"
    config.train.exit_iteration = 2
    assert record.run_changed(finished_run, config, data)
    assert not record.run_changed(finished_run.parent / "new", config, data)


def test_uncommitted_edits_of_any_encoding_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "commit_of", lambda root: "1" * 40)
    monkeypatch.setattr(record, "git_bytes", lambda *words: b"+caf\xe9\n")
    monkeypatch.setattr(record, "code_version", record.code_version.__wrapped__)  # without the cache of this process
    record.save_run_config(tmp_path, PretrainConfig(), record.DataReference("d", "/d", "f"), [])
    assert (tmp_path / "starts" / "0001" / "code.diff").read_bytes() == b"+caf\xe9\n"
