"""Checkpoints under fault: killed while saving, full disk, truncated, changed, missing."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_processes import Child, losses, tiny_config, train_here

from nano3.config import PretrainConfig
from nano3.training.hf.backend import train
from nano3.training.hf.checkpoints import CheckpointWriter
from nano3.training.run import checkpoints
from nano3.training.run.checkpoints import CheckpointInfo
from nano3.training.run.metrics import read_metrics
from nano3.training.run.outcome import Outcome
from nano3.training.run.sound_checkpoints import DAMAGE_LOG, checkpoint_problems
from nano3.utils.errors import Failure, UserError


def info(iteration: int) -> CheckpointInfo:
    return CheckpointInfo(iteration, iteration * 4, iteration * 128, 1.5, 10, {"train.seed": 1}, {"threads": 1})


def write(root: Path, iterations: list[int], keep_last: int, die_before: str | None = None) -> None:
    """Save small checkpoints; with `die_before`, SIGKILL at that call of the last save."""
    writer = CheckpointWriter(root, keep_last, 0, lambda failed: failed)
    for iteration in iterations:
        if die_before and iteration == iterations[-1]:
            _die_at(die_before)
        writer.save(info(iteration), {"model": {"step": iteration}}, {"seed": iteration})


def _die_at(call: str) -> None:
    """End the process the moment Python raises the audit event of that operation."""
    import sys

    def hook(event: str, args: tuple) -> None:
        name, _, part = call.partition(" ")
        if event == name and part in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize(
    "moment",
    ["os.mkdir iter_0000003.tmp", "open rng_00000.pt", "open state.pt", "open .checkpoint.json", "os.rename .tmp"],
)
def test_kill_while_saving_leaves_the_one_before(tmp_path: Path, moment: str) -> None:
    """Wherever the save of iteration 3 is killed, iteration 2 is the newest, whole; the next start cleans up and
    resumes."""
    root = tmp_path / "checkpoints"
    child = Child(write, (root, [1, 2, 3], 2, moment), tmp_path / "log.txt")
    child.process.join(60)
    assert child.process.exitcode == -signal.SIGKILL
    newest = checkpoints.latest_checkpoint(root)
    assert newest is not None
    assert newest.name == "iter_0000002"
    assert checkpoint_problems(newest) == []
    CheckpointWriter(root, 2, 0, lambda failed: failed).clean()
    assert sorted(p.name for p in root.iterdir()) == ["iter_0000001", "iter_0000002"]
    Child(write, (root, [3], 2), tmp_path / "log.txt").result()
    assert [p.name for p in checkpoints.complete_checkpoints(root)] == ["iter_0000002", "iter_0000003"]


def test_kill_while_dropping_an_old_one(tmp_path: Path) -> None:
    """The third save is complete; the removal of the first was killed half way. No half checkpoint is taken for one."""
    root = tmp_path / "checkpoints"
    child = Child(write, (root, [1, 2, 3], 1, "os.remove"), tmp_path / "log.txt")
    child.process.join(60)
    assert child.process.exitcode == -signal.SIGKILL
    assert [p.name for p in checkpoints.complete_checkpoints(root)] == ["iter_0000003"]
    CheckpointWriter(root, 1, 0, lambda failed: failed).clean()
    assert [p.name for p in root.iterdir()] == ["iter_0000003"]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True).map(sorted), st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_retention_keeps_the_newest(tmp_path_factory: pytest.TempPathFactory, iterations: list[int], keep: int) -> None:
    """`keep_last` newest stay, 0 keeps all; only the renaming and removing is under test, so nothing is serialised."""
    root = tmp_path_factory.mktemp("keep")
    writer = CheckpointWriter(root, keep, 0, lambda failed: failed)
    for iteration in iterations:
        temp = root / f"{checkpoints.folder_name(iteration)}.tmp"
        temp.mkdir()
        (temp / "state.pt").write_bytes(b"x")
        writer._finish(temp, root / checkpoints.folder_name(iteration), info(iteration), {})
    kept = [checkpoints.iteration_of(p) for p in checkpoints.complete_checkpoints(root)]
    assert kept == (iterations[-keep:] if keep else iterations)


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    for _ in range(2):
        Child(write, (tmp_path / "c", [5], 2), tmp_path / "log.txt").result()
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["iter_0000005"]


def _fail_at(call: str, fault: int = errno.ENOSPC, times: int = 1) -> None:
    """Raise an error of the disk at the first `times` audit events of an operation."""
    import sys

    left = [times]

    def hook(event: str, args: tuple) -> None:
        name, _, part = call.partition(" ")
        if left[0] and event == name and part in str(args[0]):
            left[0] -= 1
            raise OSError(fault, os.strerror(fault), str(args[0]))

    sys.addaudithook(hook)


SAVE_STAGES = (
    "os.mkdir iter_0000008.tmp",
    "open rng_00000.pt",
    "open state.pt",
    "open .checkpoint.json",
    "os.rename iter_0000008.tmp",
)


def fail_in_save(config: PretrainConfig, data: Path, run_dir: Path, call: str, times: int) -> Outcome:
    """Train while the saves after the first one fail at that call."""
    armed: list[int] = []
    return train(config, data, run_dir, on_save=lambda *_: armed or armed.append(1) or _fail_at(call, times=times))


@pytest.mark.parametrize("call", SAVE_STAGES)
def test_a_full_disk_at_any_stage_of_a_save_loses_no_run(
    data: Path, undisturbed: Path, tmp_path: Path, call: str
) -> None:
    """The save of iteration 8 fails; the run reports it, goes on and saves iteration 12."""
    outcome = Child(fail_in_save, (tiny_config(), data, tmp_path, call, 1), tmp_path / "log.txt").result()
    assert (outcome.status, outcome.iteration) == ("finished", 12)
    log = " ".join((tmp_path / "log.txt").read_text().split())
    assert "SAVE FAILED (1 of 3 in a row end the run): Cannot write checkpoint" in log and "No space left" in log
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("iter_*"))
    assert kept == ["iter_0000004", "iter_0000012"]
    assert losses(tmp_path) == losses(undisturbed)


def test_a_disk_that_stays_full_ends_the_run(data: Path, tmp_path: Path) -> None:
    """The last save fails too: exit code 1, and the newest sound checkpoint is still there."""
    with pytest.raises(Failure, match=r"Cannot write checkpoint .*iter_0000012.*Then run the same command again"):
        Child(fail_in_save, (tiny_config(), data, tmp_path, "open state.pt", 9), tmp_path / "log.txt").result()
    assert [p.name for p in (tmp_path / "checkpoints").glob("iter_*")] == ["iter_0000004"]


def test_the_last_sound_checkpoint_is_never_removed(tmp_path: Path) -> None:
    """What the disk returns for the new one differs from what was written: the old one stays."""
    Child(write, (tmp_path, [1], 1), tmp_path / "log.txt").result()
    Child(write_damaged, (tmp_path, 2), tmp_path / "log.txt").result()
    assert [p.name for p in checkpoints.complete_checkpoints(tmp_path)] == ["iter_0000001", "iter_0000002"]
    assert "are damaged, so older ones are kept" in " ".join((tmp_path / "log.txt").read_text().split())
    Child(write, (tmp_path, [3], 1), tmp_path / "log.txt").result()
    assert [p.name for p in checkpoints.complete_checkpoints(tmp_path)] == ["iter_0000003"]


def write_damaged(root: Path, iteration: int) -> None:
    """Save with keep_last=1 while a bit of state.pt changes on its way to the disk."""
    writer = CheckpointWriter(root, 1, 0, lambda failed: failed)
    writer.save(info(iteration), {"step": 1}, {}, lambda folder: _flip(folder / "state.pt"))


def test_unwritable_folder_is_a_failure_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(Failure, match=r"Cannot write checkpoint .*iter_0000001.*Earlier checkpoints are untouched"):
        write(tmp_path / "checkpoints", [1], 2)


def test_only_folders_of_interrupted_saves_are_removed(tmp_path: Path) -> None:
    for name in ("iter_final.tmp", "iter_0000004.tmp", "iter_0000004.old.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "iter_0000008.tmp").write_text("a file")
    CheckpointWriter(tmp_path, 2, 0, lambda failed: failed).clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000008.tmp", "iter_final.tmp"]


def test_scan_ignores_everything_without_a_marker(tmp_path: Path) -> None:
    for name in ("iter_0000007", "iter_0000009.tmp", "iter_12", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "iter_0000009.tmp" / checkpoints.MARKER).write_text("{}")
    assert checkpoints.latest_checkpoint(tmp_path) is None
    assert checkpoints.latest_checkpoint(tmp_path / "missing") is None
    (tmp_path / "iter_0000007" / checkpoints.MARKER).write_text("{}")
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "iter_0000007"


def test_the_checkpoint_dir_follows_the_saved_configuration(tmp_path: Path) -> None:
    assert checkpoints.recorded_checkpoint_dir(tmp_path) == tmp_path / "checkpoints"
    (tmp_path / "config.yaml").write_text("checkpoint:\n  save: null\n")
    assert checkpoints.recorded_checkpoint_dir(tmp_path) == tmp_path / "checkpoints"
    (tmp_path / "config.yaml").write_text("checkpoint:\n  save: /elsewhere\n")
    assert checkpoints.recorded_checkpoint_dir(tmp_path) == Path("/elsewhere")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _rename_iteration(path: Path) -> None:
    path.write_text(path.read_text().replace('"iteration": 12', '"iteration": 14'))


DAMAGES = pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("state.pt", _truncate, "bytes instead of"),
        ("state.pt", _flip, "has changed"),
        ("state.pt", Path.unlink, "is missing"),
        ("rng_00000.pt", _flip, "has changed"),
        (
            "checkpoint.json",
            lambda p: p.write_text(p.read_text().replace('"iteration": 12', '"iteration": 14')),
            "differs",
        ),
        ("checkpoint.json", lambda p: p.write_text("{}"), "missing required field"),
    ],
    ids=["truncated", "one bit", "missing", "random state", "another iteration", "empty marker"],
)


@DAMAGES
def test_a_damaged_checkpoint_is_set_aside(
    data: Path, undisturbed: Path, tmp_path: Path, file: str, damage: Any, message: Any
) -> None:
    """The run falls back to iteration 8, loudly, and ends like the undisturbed one."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    damage(run_dir / "checkpoints" / "iter_0000012" / file)
    assert train_here(tiny_config(), data, run_dir).iteration == 12
    log = " ".join((run_dir / "log.txt").read_text().split())
    assert "CHECKPOINT DAMAGED" in log and message in log and "resuming from iteration 8" in log
    (line,) = [json.loads(text) for text in (run_dir / DAMAGE_LOG).read_text().splitlines()]
    assert line["set_aside"].endswith("iter_0000012.damaged") and Path(line["set_aside"]).is_dir()
    assert line["newest_sound"].endswith("iter_0000008")
    assert losses(run_dir) == losses(undisturbed)


@DAMAGES
def test_a_damaged_checkpoint_is_refused(
    data: Path, undisturbed: Path, tmp_path: Path, file: str, damage: Any, message: Any
) -> None:
    """On request, or if there is no other one: a run does not start from scratch by itself."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    damage(run_dir / "checkpoints" / "iter_0000012" / file)
    with pytest.raises(UserError, match=rf"(?s)iter_0000012/{file}.*{message}.*fallback resumes from iter_0000008"):
        train_here(tiny_config(**{"checkpoint.on_damage": "refuse"}), data, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "iter_0000008")
    with pytest.raises(UserError, match="No sound checkpoint is left"):
        train_here(tiny_config(), data, run_dir)
    assert [p.name for p in (run_dir / "checkpoints").glob("iter_*")] == ["iter_0000012"]


def test_newest_without_its_marker_is_passed_over(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """As if iteration 12 had been killed while saving: the run resumes from 8 and ends the same."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    (run_dir / "checkpoints" / "iter_0000012" / checkpoints.MARKER).unlink()
    assert train_here(tiny_config(), data, run_dir).iteration == 12
    assert "resuming from iteration 8" in (run_dir / "log.txt").read_text()
    assert losses(run_dir) == losses(undisturbed)


def test_a_start_that_cannot_read_its_checkpoint_records_its_end(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A marker of Megatron-like brevity: without a list of files, nothing is verified before it is loaded."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "iter_0000012")
    marker = run_dir / "checkpoints" / "iter_0000008" / checkpoints.MARKER
    values = {key: value for key, value in json.loads(marker.read_text()).items() if key != "checksum"}
    marker.write_text(json.dumps(values | {"files": {}}))
    marker.with_name("state.pt").write_bytes(b"no weights")
    with pytest.raises(Failure, match="not a file of torch"):
        train_here(tiny_config(), data, run_dir)
    assert read_metrics(run_dir)[-1]["exit_code"] == 1


def kill_in_save(config: PretrainConfig, data: Path, run_dir: Path) -> None:
    """Train and die while the second checkpoint's state is opened for writing."""
    train(config, data, run_dir, on_save=lambda *_: _die_at("open state.pt"))


def test_run_killed_while_saving_continues(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    child = Child(kill_in_save, (tiny_config(), data, tmp_path), tmp_path / "log.txt")
    child.process.join(100)
    assert child.process.exitcode == -signal.SIGKILL
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("iter_*")) == ["iter_0000004", "iter_0000008.tmp"]
    assert train_here(tiny_config(), data, tmp_path).iteration == 12
    assert losses(tmp_path) == losses(undisturbed)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_marker_is_plain_json(undisturbed: Path) -> None:
    marker = json.loads((undisturbed / "checkpoints" / "iter_0000012" / checkpoints.MARKER).read_text())
    assert (marker["iteration"], marker["consumed_samples"], marker["consumed_tokens"]) == (12, 48, 48 * 32)
    assert marker["mutable_settings"]["threads per rank"] == 1
    assert {"state.pt", "rng_00000.pt", "hf/model.safetensors", "hf/tokenizer.json"} <= set(marker["files"])
