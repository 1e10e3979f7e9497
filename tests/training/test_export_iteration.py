"""`nano3 export --iteration N` of a run that trained here: the weights of exactly that checkpoint, or none."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from training_processes import Child, tiny_config

from nano3.training.export import export
from nano3.training.run.checkpoints import folder_name, read_checkpoint_info, write_checkpoint_info
from nano3.training.run.config_file import with_header
from nano3.training.run.record import run_config_text
from nano3.utils.errors import Failure
from nano3.utils.files import write_text


@pytest.fixture
def run(undisturbed: Path, data: Path, tmp_path: Path) -> Path:
    """The finished run of twelve iterations, with the config.yaml of `nano3.pretrain` and checkpoints 8 and 12."""
    shutil.copytree(undisturbed, tmp_path / "run")
    config = tiny_config(**{"run.data": str(data), "run.output_dir": str(tmp_path / "run")})
    config.recipe.per_split_data_args_path = str(data / "blend.json")
    write_text(tmp_path / "run" / "config.yaml", with_header(run_config_text(config)))
    return tmp_path / "run"


def same_as_state(run: Path, output: Path, iteration: int | None, compare_with: int) -> tuple[bool, int, int | None]:
    """Whether the export holds the weights of that checkpoint's state.pt; its tokenizer's size and its eos."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nano3.training.hf.checkpoints import load_state

    export(run, output, iteration)
    model = AutoModelForCausalLM.from_pretrained(output)
    state = load_state(run / "checkpoints" / folder_name(compare_with))["model"]
    found = model.state_dict()
    same = found.keys() == state.keys() and all(torch.equal(found[k].float(), state[k].float()) for k in found)
    return same, len(AutoTokenizer.from_pretrained(output)), model.config.eos_token_id


@pytest.mark.parametrize(
    ("asked", "weights", "same"),
    [
        pytest.param(8, 8, True, id="an older one"),
        pytest.param(8, 12, False, id="not the newest in its place"),
        pytest.param(12, 12, True, id="the last"),
        pytest.param(None, 12, True, id="the newest"),
    ],
)
def test_the_iteration_that_was_asked_for(
    run: Path, tmp_path: Path, asked: int | None, weights: int, same: bool
) -> None:
    child = Child(same_as_state, (run, tmp_path / "out", asked, weights), tmp_path / "log.txt")
    assert child.result() == (same, 4096, 2)
    assert "Writing model shards" not in child.output(), "no progress bar in a log"


def test_a_run_that_stopped_early_is_exported_too(run: Path, tmp_path: Path) -> None:
    """Its last checkpoint has no hf/."""
    shutil.rmtree(run / "checkpoints" / "iter_0000012")
    assert Child(same_as_state, (run, tmp_path / "out", None, 8), tmp_path / "log.txt").result()[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.share_embeddings_and_output_weights", {}),
        ("model.vocab_size", "x"),
        ("train.seq_length", None),
        ("model.hidden_size", 24),
    ],
)
def test_a_checkpoint_that_describes_another_model_is_named(run: Path, tmp_path: Path, key: str, value: object) -> None:
    """Also by a value of another type."""
    folder = run / "checkpoints" / folder_name(8)
    info = read_checkpoint_info(folder)
    write_checkpoint_info(folder, replace(info, run_identity=info.run_identity | {key: value}))
    with pytest.raises(Failure, match=r"iter_0000008: checkpoint\.json and state\.pt do not describe one model"):
        export(run, tmp_path / "out", 8)


@pytest.mark.parametrize("iteration", [8, 12])
def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path, iteration: int) -> None:
    state = run / "checkpoints" / folder_name(iteration) / "state.pt"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(Failure, match=r"state\.pt has changed"):
        export(run, tmp_path / "out", iteration)
    assert not (tmp_path / "out").exists()
