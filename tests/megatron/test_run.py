"""Where a run starts, what it refuses, what it leaves behind: everything of the backend that happens before or "
"around a GPU."""

import os
from pathlib import Path

import pytest

from nano3.config import PretrainConfig
from nano3.errors import UserError
from nano3.files import write_json
from nano3.training import megatron
from nano3.training.checkpoints import MARKER, folder_name
from nano3.training.data import open_data
from nano3.training.megatron import Start, find_start


def checkpoint(root: Path, iteration: int, marked: bool = True, bridge: bool = True, **told: object) -> Path:
    """A checkpoint folder as Megatron-Bridge writes it, with or without nano3's mark."""
    folder = root / folder_name(iteration)
    folder.mkdir(parents=True)
    if bridge:
        (folder / ".metadata").write_bytes(b"x")
        (folder / "run_config.yaml").write_text("model: {}\n")
    if marked:
        info = {"iteration": iteration, "consumed_samples": 0, "consumed_tokens": 0, "elapsed_s": 0.0, "parameters": 1}
        write_json(folder / MARKER, info | {"fixed": {}, "told": told, "files": {}})
    return folder


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert find_start(tmp_path / "save", None) == Start(0, None, own=True)
    assert find_start(tmp_path / "save", str(tmp_path / "save")) == Start(0, None, own=True)


def test_the_newest_marked_checkpoint_wins(tmp_path: Path) -> None:
    checkpoint(tmp_path, 20)
    newest = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 120, marked=False, bridge=False)
    assert find_start(tmp_path, str(tmp_path)) == Start(100, newest, own=True)


def test_another_runs_checkpoint_is_taken_only_while_there_is_no_own(tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "phase1", 50)
    assert find_start(tmp_path / "phase2", str(tmp_path / "phase1")) == Start(50, other, own=False)
    own = checkpoint(tmp_path / "phase2", 60)
    assert find_start(tmp_path / "phase2", str(tmp_path / "phase1")) == Start(60, own, own=True)


def test_one_iterations_folder_may_be_named(tmp_path: Path) -> None:
    older = checkpoint(tmp_path / "a", 10)
    checkpoint(tmp_path / "a", 20)
    assert find_start(tmp_path / "b", str(older)) == Start(10, older, own=False)


def test_a_checkpoint_of_megatron_bridge_itself_is_taken(tmp_path: Path) -> None:
    foreign = checkpoint(tmp_path / "a", 30, marked=False)
    checkpoint(tmp_path / "a", 40, marked=False, bridge=False)
    assert find_start(tmp_path / "b", str(tmp_path / "a")) == Start(30, foreign, own=False)


def test_a_load_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint in it"):
        find_start(tmp_path / "b", str(tmp_path / "nothing"))


def test_only_newer_unmarked_folders_are_removed(tmp_path: Path) -> None:
    foreign = checkpoint(tmp_path, 5, marked=False)
    kept = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, marked=False, bridge=False)
    megatron.remove_unfinished(tmp_path)
    assert sorted(tmp_path.glob("iter_*")) == [foreign, kept]


def test_without_any_mark_nothing_is_removed(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 5, marked=False)
    megatron.remove_unfinished(tmp_path)
    assert folder.exists()


def test_a_finished_run_does_nothing(config: PretrainConfig, data_dir: Path, tmp_path: Path, capsys) -> None:
    folder = checkpoint(tmp_path / "run" / "checkpoints", config.train.train_iters)
    outcome = megatron.train(config, data_dir, tmp_path / "run")
    assert (outcome.status, outcome.iteration, outcome.checkpoint, outcome.exit_code) == ("finished", 20, folder, 0)
    assert capsys.readouterr().out.startswith("finished: iteration 20 of 20")


def test_a_run_that_reached_its_exit_iteration_is_finished_too(
    config: PretrainConfig, data_dir: Path, tmp_path: Path
) -> None:
    config.train.exit_iteration = 10
    checkpoint(tmp_path / "run" / "checkpoints", 10)
    assert megatron.train(config, data_dir, tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        pytest.param(lambda d: (d / "blend.json").unlink(), "blend.json is missing", id="no-blend"),
        pytest.param(
            lambda d: (d / "blend.json").write_text('{"train": ["1", "train/data_00000"], "valid": []}'),
            "valid split",
            id="no-valid",
        ),
        pytest.param(lambda d: (d / "train/data_00000.bin").write_bytes(b""), "has 0 bytes", id="cut-shard"),
        pytest.param(lambda d: (d / "tokenizer/tokenizer.json").write_text("{}"), "not the tokenizer", id="tokenizer"),
    ],
)
def test_bad_data_is_refused_before_anything_starts(
    config: PretrainConfig, data_dir: Path, tmp_path: Path, break_it, words: str
) -> None:
    break_it(data_dir)
    with pytest.raises(UserError, match=words):
        megatron.train(config, data_dir, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
def test_only_the_datas_own_tokenizer_may_be_named(data_dir: Path, tmp_path: Path, same: bool) -> None:
    from nano3.training.overrides import Setting

    data, folder = open_data(data_dir), tmp_path / "tokenizer"
    folder.mkdir()
    text = (data.tokenizer / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text if same else text + "\n")
    found = megatron.tokenizer_problems([Setting("tokenizer.tokenizer_model", str(folder), "megatron.x")], data)
    assert bool(found) is not same


def test_a_tokenizer_that_is_no_folder(data_dir: Path) -> None:
    from nano3.training.overrides import Setting

    setting = Setting("tokenizer.tokenizer_model", "nvidia/some-model", "megatron.tokenizer.tokenizer_model")
    assert "not a folder with a tokenizer.json" in megatron.tokenizer_problems([setting], open_data(data_dir))[0]


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
    ],
)
def test_what_a_resume_may_change(
    config: PretrainConfig, data_dir: Path, key: str, value: object, fixed: bool, monkeypatch
) -> None:
    monkeypatch.setattr(megatron, "version", lambda package: "1")
    data = open_data(data_dir)
    before = megatron.fixed_keys(config, data), megatron.told_keys(config)
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    after = megatron.fixed_keys(config, data), megatron.told_keys(config)
    assert (before[0] != after[0]) is fixed
    assert (before[1] != after[1]) is not fixed


@pytest.mark.parametrize(("saved", "now", "other"), [(2, "1", True), (2, "2", False), (None, "2", False)])
def test_another_number_of_ranks_is_noticed(
    tmp_path: Path, monkeypatch, saved: int | None, now: str, other: bool
) -> None:
    told = {} if saved is None else {"world size": saved}
    monkeypatch.setenv("WORLD_SIZE", now)
    assert megatron.other_world_size(Start(10, checkpoint(tmp_path, 10, **told), own=True)) is other


def test_a_plain_process_becomes_a_run_of_one(monkeypatch, tmp_path: Path) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TRITON_CACHE_DIR",
        "TRITON_CACHE_AUTOTUNING",
    ):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NANO3_CACHE", str(tmp_path))
    megatron.set_environment()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_a_launchers_environment_is_kept(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared")
    megatron.set_environment()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["TRITON_CACHE_DIR"]) == ("3", "8", "/shared")
