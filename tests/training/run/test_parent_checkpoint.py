"""The checkpoint that a run started from: recorded once, reused by a rerun, part of the lineage."""

import json
import shutil
from pathlib import Path

import pytest
from commands import SMALL, Commands, losses

from nano3.cli.config_file_errors import member_values
from nano3.config import PretrainConfig
from nano3.config.train import CheckpointConfig
from nano3.tools.rerun import checkpoint_to_load, drop_keys, train_member_keys
from nano3.training.run import parent_checkpoint
from nano3.utils.errors import UserError
from nano3.utils.records import DamagedRecordError

QUICK = [*SMALL, "train.eval_interval=0", "logger.sample_prompts=[]"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A run `a` of 6 iterations, and `b`, a new phase from it of which 2 were done."""
    cli = Commands(tmp_path_factory.mktemp("began"))
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", "workers=1")
    cli("-m", "nano3.pretrain", *QUICK, "run.name=a")
    done = pretrain(cli, "b", "a", "train.exit_iteration=2")
    assert (
        f"new phase: iteration 0 with the weights and optimizer of {cli.run_dir('a')}/checkpoints/iter_0000006" in done
    )
    assert "stopped at iteration 2 with a checkpoint; a larger train.exit_iteration, or none, resumes from" in done
    return cli


def pretrain(cli: Commands, name: str, load: str | Path, *words: str) -> str:
    folder = cli.run_dir(load) / "checkpoints" if isinstance(load, str) else load
    done = cli("-m", "nano3.pretrain", *QUICK, f"run.name={name}", f"checkpoint.load={folder}", *words)
    return done.stdout + done.stderr


def test_it_is_written_down(cli: Commands) -> None:
    parent = parent_checkpoint.read_parent(cli.run_dir("b"))
    assert parent == parent_checkpoint.ParentCheckpoint(cli.run_dir("a") / "checkpoints/iter_0000006", new_phase=True)
    assert parent.iteration == 0
    assert json.loads((cli.run_dir("a") / "began.json").read_text())["checkpoint"] is None
    assert parent_checkpoint.read_parent(cli.run_dir("a")) is None


def test_lineage_goes_back_to_the_first_model(cli: Commands) -> None:
    alone = cli("-m", "nano3", "artifacts", "lineage", "ModelArtifact-pretrain:a").stdout
    shown = cli("-m", "nano3", "artifacts", "lineage", "ModelArtifact-pretrain:b").stdout
    assert f"{cli.run_dir('a')}/checkpoints/iter_0000006" in alone
    assert f"{cli.run_dir('a')}/checkpoints/iter_0000006" in shown
    assert f"{cli.run_dir('b')}/checkpoints/iter_0000002" in shown


def test_a_resume_warns_about_an_unused_load(cli: Commands) -> None:
    shutil.copytree(cli.run_dir("a"), cli.run_dir("c"))
    message = pretrain(cli, "b", cli.run_dir("c") / "checkpoints", "train.exit_iteration=3")
    assert "warning: checkpoint.load=" in message and "is not used: this run resumes from" in message
    assert f"The run started from {cli.run_dir('a')}/checkpoints/iter_0000006" in message
    shutil.rmtree(cli.run_dir("c"))
    assert sorted(losses(cli.run_dir("b"))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("began_with", "load", "message"),
    [
        ("/a/iter_0000006", None, ""),
        ("/a/iter_0000006", "/a", ""),
        ("/a/iter_0000006", "/a/iter_0000006", ""),
        ("/a/iter_0000006", "/run/checkpoints", ""),
        ("/a/iter_0000006", "/c", "The run started from /a/iter_0000006; use another run.name"),
        (None, "/c", "The run started from no checkpoint; use another run.name"),
        (None, "/run/checkpoints/iter_0000002", "To go back to it, move the newer checkpoints out of /run/checkpoints"),
        ("not noted", "/c", ""),
    ],
    ids=["none", "its folder", "itself", "own folder", "another", "fresh", "back", "an older run"],
)
def test_which_loads_are_unused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], began_with: str | None, load: str | None, message: str
) -> None:
    if began_with != "not noted":
        parent_checkpoint.record_parent(tmp_path, Path(began_with) if began_with else None, new_phase=True)
    config = PretrainConfig(checkpoint=CheckpointConfig(load=load))
    parent_checkpoint.warn_unused_load(tmp_path, config, Path("/run/checkpoints/iter_0000004"))
    shown = capsys.readouterr().err
    assert message in shown and bool(shown) == bool(message)


def test_a_rerun_begins_with_the_same_checkpoint(cli: Commands) -> None:
    """Also when the other run has gone on since."""
    newer = cli.run_dir("a") / "checkpoints/iter_0000007"
    shutil.copytree(cli.run_dir("a") / "checkpoints/iter_0000006", newer)
    try:
        shown = cli("-m", "nano3", "rerun", "b", "dry_run=true").stdout
    finally:
        shutil.rmtree(newer)
    assert f"load: {cli.run_dir('a')}/checkpoints/iter_0000006" in shown


def test_a_rerun_of_a_run_whose_beginning_is_gone() -> None:
    parent = parent_checkpoint.ParentCheckpoint(Path("/gone/iter_0000006"), new_phase=True)
    with pytest.raises(UserError, match="started from /gone/iter_0000006, which no longer exists"):
        checkpoint_to_load(Path("b"), parent, [])
    assert checkpoint_to_load(Path("b"), parent, ["checkpoint.load=null"])


def test_trace_knows_where_a_run_started(cli: Commands) -> None:
    words = ["checkpoint.keep_iteration=true", "train.seed=5"]
    pretrain(cli, "kept", cli.run_dir("a") / "checkpoints/iter_0000003", *words)
    done = cli("-m", "nano3", "trace", "kept", "--iteration", "2", "--no-sources", code=2)
    assert "this run has iterations 4 to 6; earlier ones belong to the run of" in done.stderr
    assert "iter_0000003" in done.stderr
    cli("-m", "nano3", "trace", "kept", "--iteration", "4", "--no-sources")
    message = cli("-m", "nano3", "trace", "b", "--iteration", "6", "--no-sources").stderr
    assert "nothing after iteration 3. It may not have read this batch." in message


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / parent_checkpoint.PARENT_FILE).write_text("{")
    with pytest.raises(DamagedRecordError, match=r"began.json: damaged .*Remove it"):
        parent_checkpoint.read_parent(tmp_path)


@pytest.mark.parametrize(
    ("member", "has", "has_not"),
    [
        (
            "train/long_context",
            ["optimizer.lr", "scheduler.lr_wsd_decay_iters", "model.sequence_parallel"],
            "train.seed",
        ),
        ("train/phase2", ["train.exit_iteration", "checkpoint.keep_iteration", "optimizer.lr"], "train.threads"),
        ("train/one_hopper", ["megatron.model.recompute_modules"], "megatron.model"),
        ("model/nemotron_3_nano_micro", ["model.hidden_size"], "hidden_size"),
        ("train/default", [], "train.seed"),
        ("train/nowhere", [], "train.seed"),
    ],
)
def test_the_keys_that_a_member_sets(member: str, has: list[str], has_not: str) -> None:
    keys = member_values(member)
    assert set(has) <= set(keys) and has_not not in keys


def test_a_rerun_with_another_train_member_takes_what_that_sets() -> None:
    record = {"train": {"seq_length": 64, "seed": 7}, "scheduler": {"lr_decay_style": "WSD"}, "megatron": {"x": 1}}
    left = drop_keys(record, train_member_keys(["train=long_context", "run.name=x"]))
    assert left == {"train": {"seed": 7}, "scheduler": {}, "megatron": {"x": 1}}
    assert record["train"] == {"seq_length": 64, "seed": 7}
