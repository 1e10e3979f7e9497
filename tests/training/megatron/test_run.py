"""Where a run starts, what it refuses, what it leaves behind: everything of the backend that happens before or "
"around a GPU."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from megatron_helpers import checkpoint

from nano3.config import PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.megatron import backend
from nano3.training.megatron.checkpoints import CheckpointFinisher
from nano3.training.megatron.guard_hooks import RolledBack
from nano3.training.run import parent_checkpoint
from nano3.training.run.checkpoints import read_checkpoint_info
from nano3.training.run.metrics import Metrics, read_metrics
from nano3.training.run.resume import ResumePoint
from nano3.utils.errors import Failure, UserError


def test_a_finished_run_does_nothing(
    config: PretrainConfig, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = backend.run_identity(config, open_data(data_dir))
    folder = checkpoint(tmp_path / "run" / "checkpoints", config.train.train_iters, identity=identity)
    outcome = backend.train(config, data_dir, tmp_path / "run")
    assert (outcome.status, outcome.iteration, outcome.checkpoint, outcome.exit_code()) == ("finished", 20, folder, 0)
    assert capsys.readouterr().out.startswith("finished: iteration 20 of 20")


def test_a_run_that_reached_its_exit_iteration_is_finished_too(
    config: PretrainConfig, data_dir: Path, tmp_path: Path
) -> None:
    config.train.exit_iteration = 10
    checkpoint(tmp_path / "run" / "checkpoints", 10, identity=backend.run_identity(config, open_data(data_dir)))
    assert backend.train(config, data_dir, tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        pytest.param(lambda d: (d / "blend.json").unlink(), "blend.json is missing", id="no-blend"),
        pytest.param(
            lambda d: (d / "blend.json").write_text('{"train": ["1", "train/data_00000"], "valid": []}'),
            "valid split",
            id="no-valid",
        ),
        pytest.param(
            lambda d: (d / "train/data_00000.bin").write_bytes(b""), ": 0 bytes, but the manifest", id="cut-shard"
        ),
        pytest.param(lambda d: (d / "tokenizer/tokenizer.json").write_text("{}"), "not the tokenizer", id="tokenizer"),
    ],
)
def test_bad_data_is_refused_before_anything_starts(
    config: PretrainConfig, data_dir: Path, tmp_path: Path, break_it: Any, words: str
) -> None:
    break_it(data_dir)
    with pytest.raises(UserError, match=words):
        backend.train(config, data_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
def test_only_the_datas_own_tokenizer_may_be_named(data_dir: Path, tmp_path: Path, same: bool) -> None:
    from nano3.training.megatron.settings import Setting

    data, folder = open_data(data_dir), tmp_path / "tokenizer"
    folder.mkdir()
    text = (data.tokenizer / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text if same else text + "\n")
    found = backend.tokenizer_problems([Setting("tokenizer.tokenizer_model", str(folder), "megatron.x")], data)
    assert bool(found) is not same


def test_a_tokenizer_that_is_no_folder(data_dir: Path) -> None:
    from nano3.training.megatron.settings import Setting

    setting = Setting("tokenizer.tokenizer_model", "nvidia/some-model", "megatron.tokenizer.tokenizer_model")
    assert "not a folder with a tokenizer.json" in backend.tokenizer_problems([setting], open_data(data_dir))[0]


@pytest.mark.parametrize(
    ("key", "value", "fixed"),
    [
        pytest.param("model.hidden_size", 256, True, id="architecture"),
        pytest.param("model.expert_model_parallel_size", 2, True, id="cut-of-the-optimizer-state"),
        pytest.param("train.seed", 1, True, id="seed"),
        pytest.param("train.seq_length", 128, True, id="sample"),
        pytest.param("recipe._target_", "megatron.bridge.recipes.x.y", True, id="recipe"),
        pytest.param("train.micro_batch_size", 1, False, id="micro-batch"),
        pytest.param("train.train_iters", 40, False, id="length"),
        pytest.param("optimizer.lr", 1e-4, False, id="rate"),
        pytest.param("model.context_parallel_size", 2, False, id="context-parallel"),
        pytest.param("model.mtp_num_layers", 2, True, id="further-tokens"),
        pytest.param("model.mtp_loss_scaling_factor", 0.1, False, id="weight-of-further-tokens"),
    ],
)
def test_what_a_resume_may_change(config: PretrainConfig, data_dir: Path, key: str, value: object, fixed: bool) -> None:
    data = open_data(data_dir)
    before = backend.run_identity(config, data), backend.mutable_settings(config)
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    after = backend.run_identity(config, data), backend.mutable_settings(config)
    assert (before[0] != after[0]) is fixed
    assert (before[1] != after[1]) is not fixed


def test_keys_of_multi_token_prediction_that_are_not_set_are_not_compared(
    config: PretrainConfig, data_dir: Path
) -> None:
    """Checkpoints of earlier versions do not have them."""
    identity = backend.run_identity(config, open_data(data_dir))
    assert not [key for key in identity if "mtp" in key]


@pytest.mark.parametrize(("saved", "now", "other"), [(2, "1", True), (2, "2", False), (None, "2", False)])
def test_another_number_of_ranks_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int | None, now: str, other: bool
) -> None:
    settings = {} if saved is None else {"world size": saved}
    monkeypatch.setenv("WORLD_SIZE", now)
    folder = checkpoint(tmp_path, 10, settings=settings)
    assert backend.other_world_size(ResumePoint(10, folder, info=read_checkpoint_info(folder))) is other


@pytest.mark.parametrize("left", [{}, {"MASTER_ADDR": "node7", "MASTER_PORT": "29500", "LOCAL_RANK": "3"}])
def test_a_plain_process_becomes_a_run_of_one(monkeypatch: pytest.MonkeyPatch, left: dict[str, str]) -> None:
    """Without RANK, no launcher has started it, and what one has left in the shell would make it wait for others."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    backend.set_environment()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and os.environ["MASTER_PORT"] != "29500"


def test_a_launchers_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared")
    backend.set_environment()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["TRITON_CACHE_DIR"]) == ("3", "8", "/shared")


def test_the_caches_are_named_before_torch_is_imported() -> None:
    """Triton and Inductor read them when they are imported."""
    script = """
import sys
from nano3.training.megatron import backend
backend.set_environment()
print([m for m in ("torch", "triton") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def phase_one(config: PretrainConfig, data_dir: Path, tmp_path: Path) -> Path:
    """Iteration 20 of a run with `config`, in a folder of another run."""
    identity = backend.run_identity(config, open_data(data_dir))
    return checkpoint(tmp_path / "one", 20, identity=identity, settings=backend.mutable_settings(config))


def decided(config: PretrainConfig, data_dir: Path, phase_one: Path, **checkpoint_keys: object) -> ResumePoint:
    config.checkpoint.load = str(phase_one.parent)
    for key, value in checkpoint_keys.items():
        setattr(config.checkpoint, key, value)
    return backend.agree_on_resume_point(config, Path(config.run.output_dir), open_data(data_dir))


def test_a_new_phase_may_change_samples_batch_cut_and_data(
    config: PretrainConfig, data_dir: Path, phase_one: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What train=long_context changes; the checkpoint has more iterations than this run wants."""
    config.train.seq_length, config.train.global_batch_size, config.train.train_iters = 512, 16, 10
    config.train.seed = 9
    config.model.tensor_model_parallel_size, config.model.pipeline_model_parallel_size = 2, 2
    start = decided(config, data_dir, phase_one)
    assert start == ResumePoint(0, phase_one, own=False, new_phase=True)
    assert start.sentence("weights") == f"new phase: iteration 0 with the weights of {phase_one}"
    assert capsys.readouterr().err == ""
    run_dir = Path(config.run.output_dir)
    assert parent_checkpoint.read_parent(run_dir) == parent_checkpoint.ParentCheckpoint(phase_one, new_phase=True)
    own = checkpoint(run_dir / "checkpoints", 5, identity=backend.run_identity(config, open_data(data_dir)))
    assert decided(config, data_dir, phase_one) == ResumePoint(5, own, own=True)
    assert "is not used" not in capsys.readouterr().err
    elsewhere = checkpoint(run_dir.parent / "two", 7)
    assert decided(config, data_dir, elsewhere).folder == own
    assert f"The run started from {phase_one}" in capsys.readouterr().err


def test_a_new_phase_may_mark_other_pipeline_stages(config: PretrainConfig, data_dir: Path, phase_one: Path) -> None:
    whole = config.model.hybrid_layer_pattern
    assert whole and "|" not in whole
    config.model.hybrid_layer_pattern = f"{whole[:3]}|{whole[3:]}"
    config.model.pipeline_model_parallel_size = 2
    assert decided(config, data_dir, phase_one).new_phase
    config.model.hybrid_layer_pattern = f"{whole[:3]}|{whole[3:]}M"
    with pytest.raises(UserError, match=r"holds another model: model\.hybrid_layer_pattern"):
        decided(config, data_dir, phase_one)


def test_a_new_phase_needs_the_same_model(config: PretrainConfig, data_dir: Path, phase_one: Path) -> None:
    config.model.hidden_size = 256
    with pytest.raises(UserError, match=r"holds another model: model\.hidden_size: 512 in the checkpoint, now 256"):
        decided(config, data_dir, phase_one)


def test_the_rest_of_a_schedule_keeps_its_iteration(config: PretrainConfig, data_dir: Path, phase_one: Path) -> None:
    config.train.train_iters = 40
    assert decided(config, data_dir, phase_one, keep_iteration=True) == ResumePoint(20, phase_one, own=False)
    parent = parent_checkpoint.read_parent(Path(config.run.output_dir))
    assert parent is not None and parent.iteration == 20
    config.train.seq_length = 512
    with pytest.raises(UserError, match=r"train\.seq_length: 256 in the checkpoint, now 512"):
        decided(config, data_dir, phase_one)
    config.train.seq_length, config.train.train_iters = 256, 20
    with pytest.raises(UserError, match="has 20 iterations already"):
        decided(config, data_dir, phase_one)


def test_beside_somebody_elses_checkpoints_none_is_dropped(config: PretrainConfig, data_dir: Path) -> None:
    save = Path(config.run.output_dir) / "checkpoints"
    newest = checkpoint(save, 10, marked=False)
    decide, run_dir = backend.agree_on_resume_point, Path(config.run.output_dir)
    assert decide(config, run_dir, open_data(data_dir)) == ResumePoint(10, newest, may_prune=False)
    config.checkpoint.keep_last = 0
    assert decide(config, run_dir, open_data(data_dir)).may_prune


def test_load_from_sets_megatron_bridges_checkpoint_section(tmp_path: Path) -> None:
    from types import SimpleNamespace

    section = SimpleNamespace(load="x", pretrained_checkpoint="/hf", finetune=False, load_rng=True)
    backend.load_from(section, ResumePoint(0, tmp_path, own=False, new_phase=True))
    assert (section.load, section.pretrained_checkpoint, section.finetune) == (None, str(tmp_path), True)
    section = SimpleNamespace(load="x", pretrained_checkpoint="/hf", finetune=False, load_rng=True)
    backend.load_from(section, ResumePoint(10, tmp_path, own=True))
    assert (section.load, section.pretrained_checkpoint, section.finetune) == (str(tmp_path), "/hf", False)
    backend.load_from(section, ResumePoint(0, None, own=True))
    assert section.load is None


@pytest.mark.parametrize("failure", [None, Failure("diverged")], ids=["finished", "failed"])
def test_a_process_group_that_cannot_be_destroyed_does_not_change_the_end(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Failure | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As after a failure of a GPU or of the network. Here there is no group at all."""
    hooks = SimpleNamespace(iteration=20, saved=None, reason="", finisher=CheckpointFinisher(tmp_path, 0))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)

    def pretrain() -> None:
        if failure:
            raise failure

    with pytest.raises(Failure, match="diverged") if failure else contextlib.nullcontext():
        assert backend._outcome(pretrain, config, hooks, Metrics(tmp_path, 1)).status == "finished"
    assert "warning: the process group could not be destroyed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exit_iteration", "reason", "end", "status", "code"),
    [
        pytest.param(None, "", None, "finished", 0, id="finished"),
        pytest.param(None, "signal SIGTERM", SystemExit(0), "stopped", 75, id="signal"),
        pytest.param(20, "train.exit_iteration=20", SystemExit(0), "stopped", 0, id="exit-iteration"),
        pytest.param(None, "", RolledBack(), "rolled back", 77, id="rolled-back"),
        pytest.param(None, "", Failure("diverged"), None, 1, id="failure"),
        pytest.param(None, "", UserError("wrong"), None, 2, id="error-of-the-user"),
        pytest.param(None, "", KeyboardInterrupt(), None, 130, id="second-ctrl-c"),
        pytest.param(None, "", SystemExit(0), None, 1, id="silent-exit"),
    ],
)
def test_the_recorded_exit_code_is_that_of_the_process(
    config: PretrainConfig, tmp_path: Path, exit_iteration: int | None, reason: str, end: BaseException | None,
    status: str | None, code: int,
) -> None:  # fmt: skip
    """Megatron-Bridge leaves its loop with SystemExit(0) after an agreed stop."""
    config.train.exit_iteration = exit_iteration
    hooks = SimpleNamespace(iteration=20, saved=None, reason=reason, finisher=CheckpointFinisher(tmp_path, 0))

    def pretrain() -> None:
        if end:
            raise end

    with contextlib.nullcontext() if status else pytest.raises((Failure, UserError, KeyboardInterrupt)):
        outcome = backend._outcome(pretrain, config, hooks, Metrics(tmp_path, 0))
        assert (outcome.status, outcome.exit_code(exit_iteration)) == (status, code)
    assert read_metrics(tmp_path)[-1]["exit_code"] == code
