"""Exports that a run writes in the background: which ones, what keep_last may remove meanwhile, failures and kills."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_processes import Child, tiny_config, wait_for_iteration

from nano3.config import PretrainConfig
from nano3.training import rank_main
from nano3.training.run.checkpoints import CheckpointInfo, folder_name, write_checkpoint_info
from nano3.training.run.exports import (
    BackgroundExports,
    complete_exports,
    exports_dir,
    read_export_info,
    set_aside_exports,
)
from nano3.training.run.record import DataReference, save_run_config
from nano3.training.run.sound_checkpoints import describe_files


def settings(run_dir: Path, **changes: Any) -> PretrainConfig:
    changes = {"checkpoint.save": str(run_dir / "checkpoints"), "checkpoint.export_every": 2, **changes}
    return tiny_config(**{"run.output_dir": str(run_dir), **changes})


def damaged_checkpoint(run_dir: Path, iteration: int) -> Path:
    """A checkpoint whose export fails before torch is imported."""
    folder = run_dir / "checkpoints" / folder_name(iteration)
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"weights")
    info = CheckpointInfo(iteration, 1, 1, 1.0, 1, {}, {}, describe_files(folder))
    write_checkpoint_info(folder, info)
    (folder / "state.pt").write_bytes(b"changed")
    return folder


def leftovers(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob(".*"))


def logs(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "logs").glob("*"))


@pytest.mark.parametrize(
    ("every", "exported"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(2, [8, 12], id="every second and the last"),
        pytest.param(5, [12], id="only the last"),
    ],
)
def test_which_checkpoints_are_exported_and_failures_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int, exported: list[int]
) -> None:
    with BackgroundExports(settings(tmp_path, **{"checkpoint.export_every": every}), tmp_path) as exports:
        for iteration in (4, 8, 12):
            exports.request(iteration, damaged_checkpoint(tmp_path, iteration))
        exports.finish(lambda: False)
    assert logs(tmp_path) == [f"export_{iteration:07d}.log" for iteration in exported]
    told = capsys.readouterr().err
    for iteration in exported:
        assert f"EXPORT FAILED at iteration {iteration}: Checkpoint damaged" in told
        assert f"nano3 export {tmp_path} --iteration {iteration} --output" in told
    assert told.count("EXPORT FAILED") == len(exported)
    assert leftovers(tmp_path) == [] and complete_exports(tmp_path) == []


def test_what_is_not_complete_is_kept_for_the_next_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if keep_last has removed the checkpoint since."""
    eight = damaged_checkpoint(tmp_path, 8)
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(8, eight)
    shutil.rmtree(eight)
    assert leftovers(tmp_path) == [".export_0000008"]
    assert "EXPORT FAILED" not in capsys.readouterr().err
    (tmp_path / "checkpoints" / "..export_0000004.0123456789ab.tmp").mkdir()
    (exports_dir(tmp_path) / ".iter_0000008.0123456789ab.tmp").mkdir()
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(12, damaged_checkpoint(tmp_path, 12))
        exports.finish(lambda: False)
    told = capsys.readouterr().err
    assert [f"at iteration {i}: Checkpoint damaged" in told for i in (8, 12)] == [True, True]
    assert leftovers(tmp_path) == [] and list(exports_dir(tmp_path).iterdir()) == []


def test_what_was_linked_before_a_roll_back_is_not_exported(tmp_path: Path) -> None:
    twelve = damaged_checkpoint(tmp_path, 12)
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(12, twelve)
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(8, damaged_checkpoint(tmp_path, 8))
        exports.finish(lambda: False)
    assert leftovers(tmp_path) == []


def test_a_signal_ends_the_wait_for_the_last_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(12, damaged_checkpoint(tmp_path, 12))
        exports.finish(lambda: True)
    assert "EXPORT FAILED at iteration 12: " in capsys.readouterr().err
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exports_dir(tmp_path).write_text("where the exports should be")
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(8, damaged_checkpoint(tmp_path, 8))
        exports.finish(lambda: False)
    told = capsys.readouterr().err
    assert "EXPORT FAILED at iteration 8: the checkpoint cannot be linked, or" in told and "File exists" in told
    assert f"EXPORT FAILED at iteration 12: {exports_dir(tmp_path)} cannot be written" in told


def without_links(source: str, target: str, **more: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", without_links)
    with BackgroundExports(settings(tmp_path), tmp_path) as exports:
        exports.request(8, damaged_checkpoint(tmp_path, 8))
        exports.finish(lambda: False)
    told = capsys.readouterr().err
    assert "EXPORT FAILED at iteration 8: the checkpoint cannot be linked" in told and "not permitted" in told
    assert leftovers(tmp_path) == []


def test_a_start_sets_aside_the_exports_of_iterations_that_it_repeats(tmp_path: Path) -> None:
    for iteration in (4, 8):
        (exports_dir(tmp_path) / folder_name(iteration)).mkdir(parents=True)
    set_aside_exports(tmp_path, 4)
    (exports_dir(tmp_path) / folder_name(8)).mkdir()
    set_aside_exports(tmp_path, 4)
    found = sorted(path.name for path in exports_dir(tmp_path).iterdir())
    assert found == ["iter_0000004", "iter_0000008.abandoned", "iter_0000008.abandoned.2"]


def same_as_last_state(run_dir: Path) -> bool:
    """Whether the last export has the weights of the last checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    from nano3.training.hf.checkpoints import load_state

    found = AutoModelForCausalLM.from_pretrained(complete_exports(run_dir)[-1]).state_dict()
    state = load_state(run_dir / "checkpoints" / folder_name(12))["model"]
    return found.keys() == state.keys() and all(torch.equal(found[k].float(), state[k].float()) for k in found)


def killed_while_exporting(run_dir: Path, child: Child) -> None:
    """Kill the training once its first export has begun."""
    wait_for_iteration(run_dir, 6, child)
    while not (run_dir / "logs" / "export_0000006.log").exists():
        assert child.process.is_alive(), child.output()
    child.process.kill()
    child.process.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("disturb", [None, killed_while_exporting], ids=["undisturbed", "killed while exporting"])
def test_exports_of_a_real_run_with_one_checkpoint_kept(
    data: Path, tmp_path: Path, disturb: Callable[[Path, Child], None] | None
) -> None:
    """The export of iteration 6 takes longer than the whole training, and its checkpoint is removed meanwhile."""
    run_dir = tmp_path / "run"
    changes = {
        "run.data": str(data),
        "checkpoint.keep_last": 1,
        "checkpoint.export_every": 1,
        "checkpoint.save_interval": 6,
    }
    config = settings(run_dir, **changes)
    save_run_config(run_dir, config, DataReference(str(data), str(data), "content"), [])
    child = Child(rank_main.train, (config, run_dir), tmp_path / "log.txt")
    if disturb:
        disturb(run_dir, child)
        child = Child(rank_main.train, (config, run_dir), tmp_path / "again.txt")
    assert child.result(800) == 0, child.output()
    assert [folder.name for folder in complete_exports(run_dir)] == [folder_name(i) for i in (6, 12)], child.output()
    assert [read_export_info(folder).iteration for folder in complete_exports(run_dir)] == [6, 12]
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir() if p.is_dir()) == ["iter_0000012"]
    assert sorted(p.name for p in exports_dir(run_dir).iterdir()) == [folder_name(i) for i in (6, 12)]
    assert Child(same_as_last_state, (run_dir,), tmp_path / "compare.txt").result()
