"""Moved run folders, data prepared again and other checkpoint folders never change the result."""

import json
import shutil
from pathlib import Path

import pytest
from commands import SMALL, Commands, losses

PRETRAIN = ["-m", "nano3.pretrain", *SMALL]
PREP = ["-m", "nano3.data_prep", "data_blend=sample", "workers=1", "num_shards=12"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def first(cli: Commands) -> Path:
    """A finished run on few documents."""
    cli(*PREP, "output_dir=data", "sample=60")
    cli(*PRETRAIN, "run.name=first", "run.data=data")
    return cli.run_dir("first")


def test_another_checkpoint_save_does_not_restart_silently(cli: Commands, first: Path) -> None:
    other = cli.folder / "elsewhere"
    words = [*PRETRAIN, "run.name=first", "run.data=data", f"checkpoint.save={other}"]
    done = cli(*words, "train.train_iters=9", code=2)
    assert "iter_0000006 and would restart at iteration 0" in done.stderr
    assert "checkpoint.keep_iteration=true" in done.stderr
    assert not other.exists()


@pytest.mark.slow
def test_a_moved_run_exports_its_own_model(cli: Commands, first: Path) -> None:
    moved = cli.folder / "moved"
    shutil.copytree(first, moved)
    model = "checkpoints/iter_0000006/hf/model.safetensors"
    mine = (moved / model).read_bytes()
    shutil.rmtree(first / "checkpoints")
    cli("-m", "nano3", "export", str(moved), "--output", "exported")
    assert (cli.folder / "exported/model.safetensors").read_bytes() == mine
    shutil.copytree(moved / "checkpoints", first / "checkpoints")
    (first / model).write_bytes(b"another run's model")
    cli("-m", "nano3", "export", str(moved), "--output", "exported2")
    assert (cli.folder / "exported2/model.safetensors").read_bytes() == mine
    (first / model).write_bytes(mine)


@pytest.mark.slow
def test_data_prepared_again_gets_a_new_sample_index(cli: Commands) -> None:
    """As after a kill before the first checkpoint: the folder has a sample index of other data."""
    run = cli.run_dir("second")
    cli(*PREP, "output_dir=again", "sample=60")
    cli(*PRETRAIN, "run.name=second", "run.data=again", "train.exit_iteration=1")
    before = losses(run)
    for file in ("checkpoints", "config.yaml", "finished.json"):
        shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink(missing_ok=True)
    cli(*PREP, "output_dir=again", "sample=100", "force=true")
    cli(*PRETRAIN, "run.name=second", "run.data=again")
    cli(*PRETRAIN, "run.name=third", "run.data=again")
    assert losses(run) == losses(cli.run_dir("third"))
    assert losses(run)[1] != before[1]
    (cache,) = (cli.run_dir("third") / "index_cache").iterdir()
    (cache / "whole").unlink()
    for file in cache.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])  # as a full disk or a power cut leaves it
    shutil.rmtree(cli.run_dir("third") / "checkpoints")
    cli(*PRETRAIN, "run.name=third", "run.data=again")
    assert losses(run) == losses(cli.run_dir("third"))


def test_iterations_after_the_last_checkpoint_are_not_reported(cli: Commands, first: Path) -> None:
    """A run killed at iteration 8 with its newest checkpoint at 6 is started again with train_iters=6."""
    metrics = first / "metrics.jsonl"
    whole = metrics.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    later = [{**line, "iteration": line["iteration"] + 2} for line in lines if line["iteration"] > 4]
    metrics.write_text(whole + "".join(json.dumps(line) + "\n" for line in later) + '{"iterat')
    (first / "finished.json").unlink()
    done = cli(*PRETRAIN, "run.name=first", "run.data=data")
    assert "already finished" in done.stdout
    assert metrics.read_text() == whole
