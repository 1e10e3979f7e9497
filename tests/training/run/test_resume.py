"""What may change between two starts of a run, and where a start finds its checkpoint. No torch needed."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from training_processes import tiny_config

from nano3.config import PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.hf.backend import mutable_settings, run_identity, thread_count, validate_inputs
from nano3.training.run import checkpoints
from nano3.training.run.checkpoints import CheckpointInfo
from nano3.training.run.outcome import Outcome
from nano3.training.run.resume import (
    BOUNDARIES,
    EOD_MASK,
    CheckpointSearch,
    check_resume,
    check_run_identity,
    find_resume_point,
)
from nano3.utils.errors import UserError
from nano3.utils.files import write_json

FOLDER = Path("runs/a/checkpoints/iter_0000004")


def saved(data: Path) -> CheckpointInfo:
    """What iteration 4 of the tiny run recorded."""
    config = tiny_config()
    return CheckpointInfo(4, 16, 512, 1.0, 10, run_identity(config, open_data(data)), mutable_settings(config))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("model.hidden_size", 32, "model.hidden_size: 16 in the checkpoint, now 32"),
        ("model.hybrid_layer_pattern", "ME*", "model.hybrid_layer_pattern: ME*- in the checkpoint, now ME*"),
        ("model.moe_router_bias_update_rate", 0.1, "model.moe_router_bias_update_rate: 0.001 in the checkpoint"),
        ("model.vocab_size", 5000, "model.vocab_size: 4096 in the checkpoint, now 5000"),
        ("train.seed", 7, "train.seed: 1234 in the checkpoint, now 7"),
        ("train.seq_length", 64, "train.seq_length: 32 in the checkpoint, now 64"),
        ("train.global_batch_size", 8, "train.global_batch_size: 4 in the checkpoint, now 8"),
        ("train.document_boundaries", "isolate", "train.document_boundaries: cross in the checkpoint, now isolate"),
        ("train.loss_mask.eod", True, "train.loss_mask.eod: False in the checkpoint, now True"),
    ],
)
def test_another_identity_is_refused(data: Path, key: str, value: object, shown: str) -> None:
    config = tiny_config(**{key: value})
    with pytest.raises(UserError) as caught:
        check_resume(saved(data), FOLDER, run_identity(config, open_data(data)), mutable_settings(config), True)
    assert shown in str(caught.value)
    assert str(caught.value).count(" in the checkpoint") == 1
    before = shown.partition(": ")[2].split()[0]
    assert f"Restore these values ({shlex.quote(f'{key}={before}')})" in str(caught.value)


def test_spelling_out_a_default_changes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """null and the value that null stands for are the same run."""
    config = tiny_config(**{"model.vocab_size": 4096, "model.init_method_std": 0.02, "model.layernorm_epsilon": 1e-5})
    check_resume(saved(data), FOLDER, run_identity(config, open_data(data)), mutable_settings(config), True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "ranks", "shown"),
    [
        ({"train.train_iters": 24}, 1, ["train.train_iters was 12", "is 24 now", "may come again"]),
        ({"optimizer.lr": 0.5}, 1, ["optimizer.lr was 0.01", "continues with the new value"]),
        ({"scheduler.lr_wsd_decay_iters": 3}, 1, ["scheduler.lr_wsd_decay_iters was 4"]),
        ({"train.micro_batch_size": 1}, 1, ["train.micro_batch_size was 2", "last digits"]),
        ({"model.mamba_chunk_size": 8}, 1, ["model.mamba_chunk_size was 16", "last digits"]),
        ({}, 2, ["world size was 1", "is 2 now", "last digits"]),
        ({"train.threads": 4}, 1, ["threads per rank was 1", "is 4 now", "last digits"]),
    ],
    ids=["length", "rate", "decay", "micro batch", "chunk", "ranks", "threads"],
)
def test_a_changed_setting_is_logged(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    ranks: int,
    shown: list[str],
) -> None:
    before = saved(data)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    config = tiny_config(**changes)
    check_resume(before, FOLDER, run_identity(config, open_data(data)), mutable_settings(config), True)
    printed = " ".join(capsys.readouterr().err.split())
    assert all(text in printed for text in shown), printed
    assert printed.count("warning:") == 1


@pytest.mark.parametrize(
    "key",
    [
        "train.eval_interval",
        "train.eval_iters",
        "train.exit_iteration",
        "logger.log_interval",
        "checkpoint.save_interval",
    ],
)
def test_other_keys_are_not_logged(data: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    config = tiny_config(**{key: 3})
    check_resume(saved(data), FOLDER, run_identity(config, open_data(data)), mutable_settings(config), True)
    assert capsys.readouterr().err == ""


def test_another_version_is_logged(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = saved(data)
    old = replace(info, mutable_settings={**info.mutable_settings, "version of torch": "2.0"})
    check_resume(old, FOLDER, info.run_identity, info.mutable_settings, True)
    assert "version of torch was 2.0" in capsys.readouterr().err


def test_another_runs_checkpoint_may_bring_other_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = saved(data)
    other = {**info.run_identity, "data": "f" * 64, "train.seed": 9}
    check_resume(info, FOLDER, other, info.mutable_settings, own=False)
    assert "another value of data" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data: \w{12}… in the checkpoint, now f{12}…"):
        check_resume(info, FOLDER, other, info.mutable_settings, own=True)


def without_boundaries(info: CheckpointInfo, **settings: str) -> CheckpointInfo:
    """What an earlier version wrote, which could only cross documents."""
    identity = {k: v for k, v in info.run_identity.items() if k not in (BOUNDARIES, EOD_MASK)}
    assert len(identity) == len(info.run_identity) - 2
    return replace(info, run_identity=identity, mutable_settings={**info.mutable_settings, **settings})


def test_a_checkpoint_of_an_earlier_version_crosses_documents(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = saved(data)
    old = without_boundaries(info)
    check_resume(old, FOLDER, info.run_identity, info.mutable_settings, True)
    check_resume(old, FOLDER, info.run_identity, info.mutable_settings, False)
    assert capsys.readouterr().err == ""
    isolated = {**info.run_identity, BOUNDARIES: "isolate"}
    with pytest.raises(UserError, match=r"train\.document_boundaries: cross in the checkpoint, now isolate"):
        check_resume(old, FOLDER, isolated, info.mutable_settings, True)
    check_resume(old, FOLDER, isolated, info.mutable_settings, False)
    assert "another value of train.document_boundaries" in capsys.readouterr().err


def test_megatrons_name_of_the_loss_mask_is_the_same_run(data: Path) -> None:
    """`megatron.dataset.eod_mask_loss` of an earlier version may stay, or be replaced by the new key."""
    info = saved(data)
    old = without_boundaries(info, megatron="{'dataset': {'eod_mask_loss': True}}")
    config = tiny_config()
    config.megatron = {"dataset": {"eod_mask_loss": True}}
    for one in (config, tiny_config(**{"train.loss_mask.eod": True})):
        identity = run_identity(one, open_data(data))
        check_run_identity(old, FOLDER, identity, True)
    with pytest.raises(UserError, match=r"train\.loss_mask\.eod: True in the checkpoint, now False"):
        check_run_identity(old, FOLDER, info.run_identity, True)


def make(root: Path, iteration: int) -> Path:
    folder = root / checkpoints.folder_name(iteration)
    folder.mkdir(parents=True)
    write_json(folder / checkpoints.MARKER, asdict(CheckpointInfo(iteration, 0, 0, 0.0, 1, {}, {})))
    return folder


def resume_folder(config: PretrainConfig, run_dir: Path) -> Path | None:
    return find_resume_point(config, run_dir, CheckpointSearch(), None).folder


def test_own_checkpoint_comes_before_the_loaded_one(tmp_path: Path) -> None:
    config = tiny_config(**{"checkpoint.load": str(tmp_path / "other")})
    other = make(tmp_path / "other", 9)
    assert resume_folder(config, tmp_path / "run") == other
    own = make(tmp_path / "run" / "checkpoints", 3)
    assert resume_folder(config, tmp_path / "run") == own


def test_load_may_name_one_checkpoint(tmp_path: Path) -> None:
    first, _ = make(tmp_path / "other", 4), make(tmp_path / "other", 9)
    assert resume_folder(tiny_config(**{"checkpoint.load": str(first)}), tmp_path / "run") == first


def test_empty_load_is_an_error_but_empty_save_is_not(tmp_path: Path) -> None:
    assert resume_folder(tiny_config(), tmp_path) is None
    same = {"checkpoint.save": str(tmp_path / "c"), "checkpoint.load": str(tmp_path / "c")}
    assert resume_folder(tiny_config(**same), tmp_path) is None
    with pytest.raises(UserError, match=r"checkpoint.load=.*nowhere holds no complete checkpoint"):
        resume_folder(tiny_config(**{"checkpoint.load": str(tmp_path / "nowhere")}), tmp_path)


def test_all_problems_at_once(data: Path, tmp_path: Path) -> None:
    """Model, schedule, numbers, batch and data are reported together, before torch is imported."""
    changes = {
        "model.hidden_size": None,
        "scheduler.lr_decay_style": "none",
        "logger.log_interval": 0,
        "train.micro_batch_size": 3,
        "optimizer.clip_grad": -1.0,
    }
    with pytest.raises(UserError) as caught:
        validate_inputs(tiny_config(**changes), tmp_path / "nothing", 1)
    message = [
        "model.hidden_size",
        "lr_decay_style=none",
        "log_interval=0",
        "clip_grad=-1",
        "is not a multiple of train.micro_batch_size",
        "nothing does",
    ]
    assert all(text in str(caught.value) for text in message), str(caught.value)
    assert len(caught.value.problems) == len(message)


def test_megatron_keys_are_not_silently_ignored(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config()
    config.megatron = {"ddp": {"overlap_grad_reduce": True}}
    validate_inputs(config, data, 1)
    assert "megatron.ddp: read by backend=megatron only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cores", "ranks", "asked", "threads"),
    [(2, 1, None, 1), (8, 1, None, 4), (8, 2, None, 2), (1, 1, None, 1), (4, 8, None, 1), (8, 2, 7, 7)],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, asked: int | None, threads: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert thread_count(tiny_config(**{"train.threads": asked})) == threads


@pytest.mark.parametrize(
    ("status", "exit_iteration", "code"),
    [
        ("finished", None, 0),
        ("stopped", None, 75),
        ("stopped", 11, 75),
        ("stopped", 10, 0),
        ("rolled back", None, 77),
        ("rolled back", 10, 77),
    ],
)
def test_the_exit_code_after_iteration_10(status: Any, exit_iteration: int | None, code: int) -> None:
    outcome = Outcome(status, 10, None)
    assert outcome.exit_code(exit_iteration) == code
    assert outcome.is_complete(exit_iteration) is (code == 0)
