"""Export: which checkpoint, how a model is described to transformers, and that only a whole model is kept."""

import json
import re
import shutil
from pathlib import Path

import pytest
from megatron_helpers import LIGHTNING, NANO, QWEN, ROOT, architecture_of, model

from nano3.training import export
from nano3.training.checks.model_stats import count_parameters
from nano3.training.megatron.schema import load_bundled
from nano3.training.run.checkpoints import MARKER, folder_name
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import write_json

TOKENIZER = ROOT / "nano3" / "sample" / "tokenizer"


def trained(recipe: str, **changes: object) -> dict:
    """The model section of run_config.yaml: the recipe's values with a run's on top."""
    return {**load_bundled(recipe).values["model"], "vocab_size": 4000, "should_pad_vocab": True} | changes


def micro() -> dict:
    return trained(
        NANO, **{k: v for k, v in vars(model("nemotron_3_nano_micro")).items() if v is not None}, num_layers=8
    )


def micro_lightning(**changes: object) -> dict:
    """After finalize() the pattern has the layers of multi-token prediction."""
    sizes = {k: v for k, v in vars(model("nemotron_3_5_lightning_micro")).items() if v is not None}
    return trained(LIGHTNING, **sizes, num_layers=8) | {"hybrid_layer_pattern": "MEM*EMEM/*E/*E"} | changes


def small_qwen() -> dict:
    return trained(
        QWEN,
        hidden_size=64,
        ffn_hidden_size=128,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=16,
        num_layers=2,
    )


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        (micro(), "nemotron_h"),
        (micro() | {"hybrid_layer_pattern": "MEM*|EMEM"}, "nemotron_h"),
        (micro_lightning(), "nemotron_h"),
        (small_qwen(), "qwen3"),
    ],
    ids=["hybrid", "stages", "lightning", "dense"],
)
def test_description_builds_the_model(section: dict, kind: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    described = export.hf_description(section, eod_id=2)
    assert described.pop("model_type") == kind
    assert described["vocab_size"] == 4096, "padded to a multiple of 128, as Megatron did"
    config = AutoConfig.for_model(kind, **described)
    assert config.eos_token_id == 2
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert built.get_input_embeddings().weight.shape == (4096, section["hidden_size"])
    assert built.config.num_hidden_layers == section["num_layers"]


@pytest.mark.parametrize("shared", [True, False])
def test_multi_token_prediction_is_described_and_counted(tmp_path: Path, shared: bool) -> None:
    """As Megatron-Bridge's NemotronHBridge reads it, also from the saved file."""
    from transformers import AutoConfig

    described = export.hf_description(micro_lightning(mtp_use_repeated_layer=shared), eod_id=2)
    AutoConfig.for_model(described.pop("model_type"), **described).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_nextn_predict_layers, config.mtp_hybrid_override_pattern) == (2, "*E")
    assert (config.mtp_use_repeated_layer, config.mtp_loss_scaling_factor) == (shared, 0.3)
    assert config.hybrid_override_pattern == "MEM*EMEM"
    both, one = architecture_of("nemotron_3_5_lightning_micro", 4096), architecture_of("nemotron_3_nano_micro", 4096)
    own = count_parameters(both).total - count_parameters(one).total + 8  # and the router's biases
    assert export.mtp_size(config) == own * (1 if shared else 2)


def lightning_run(tmp_path: Path, leave_out: str | None = None) -> Path:
    """A finished run whose hf/ folder has tensors of multi-token prediction, without those named `leave_out`."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = run_folder(tmp_path, (20,)) / "checkpoints" / folder_name(20) / "hf"
    shutil.rmtree(folder)
    described = export.hf_description(micro_lightning(), 2)
    config = AutoConfig.for_model(described.pop("model_type"), **described)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    h = config.hidden_size
    rest = export.mtp_size(config) - 2 * h * h
    further = {"mtp.layers.0.eh_proj.weight": torch.zeros(h, 2 * h), "mtp.layers.0.rest": torch.zeros(rest)}
    save_file({**weights, **{k: v for k, v in further.items() if k != leave_out}}, folder / "model.safetensors")
    return tmp_path / "run"


def test_an_export_without_its_multi_token_prediction_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="parameters of multi-token prediction; config"):
        export.export(lightning_run(tmp_path, "mtp.layers.0.eh_proj.weight"), tmp_path / "out")


def test_transformers_loads_the_model_without_its_multi_token_prediction(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = export.export(lightning_run(tmp_path), tmp_path / "out")
    _, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="knows hybrid"):
        export.hf_description({"vocab_size": 10, "seq_length": 8}, None)


def test_the_tokenizers_own_end_of_document() -> None:
    assert export._eod_id(TOKENIZER) == 2


def run_folder(tmp_path: Path, iterations: tuple[int, ...] = (10, 20)) -> Path:
    """A finished run of backend=transformers, whose last checkpoint has its hf/ folder with a real (tiny) model."""
    pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    for iteration in iterations:
        folder = tmp_path / "run" / "checkpoints" / folder_name(iteration)
        folder.mkdir(parents=True)
        info = {"iteration": iteration, "consumed_samples": 0, "consumed_tokens": 0, "elapsed_s": 0.0, "parameters": 1}
        write_json(
            folder / MARKER, info | {"run_identity": {"backend": "transformers"}, "mutable_settings": {}, "files": {}}
        )
    described = export.hf_description(small_qwen(), 2)
    config = AutoConfig.for_model(described.pop("model_type"), **described)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "hf")
    return tmp_path / "run"


def test_a_transformers_run_is_copied_and_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = export.export(run_folder(tmp_path), tmp_path / "out" / "hf")
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 4096
    assert [p.name for p in out.parent.iterdir()] == ["hf"], "no temporary folder stays"


def test_a_broken_export_leaves_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    config = run / "checkpoints" / "iter_0000020" / "hf" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3})
    )
    with pytest.raises(Failure, match="The incomplete export was removed"):
        export.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_an_existing_output_is_not_touched(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (tmp_path / "out").mkdir()
    for asked, chosen in ((10, 10), (None, 20)):
        with pytest.raises(UserError, match=f"out exists already. Choose another --output for iteration {chosen}, or"):
            export.export(run, tmp_path / "out", asked)
    with pytest.raises(UserError, match="no checkpoint of iteration 15; it has 10, 20"):
        export.export(run, tmp_path / "out", 15)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("output", ["/proc/nope", "file/hf"])
def test_an_output_that_cannot_be_written(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output=.*: cannot be written: .*Choose another --output"):
        export.export(run_folder(tmp_path), tmp_path / output)


def test_the_right_checkpoint_is_found(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    assert export.find_checkpoint(run, None).name == "iter_0000020"
    assert export.find_checkpoint(run, 10).name == "iter_0000010"
    assert export.find_checkpoint(run / "checkpoints" / "iter_0000010", None).name == "iter_0000010"
    with pytest.raises(UserError, match="no checkpoint of iteration 15; it has 10, 20"):
        export.find_checkpoint(run, 15)
    with pytest.raises(UserError, match="iter_0000010 has no checkpoint of iteration 20; it has 10"):
        export.find_checkpoint(run / "checkpoints" / "iter_0000010", 20)
    with pytest.raises(UserError, match="no complete checkpoint"):
        export.find_checkpoint(tmp_path / "nowhere", None)


def test_a_megatron_checkpoint_without_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"run_config\.yaml is missing"):
        export.model_section(tmp_path)


@pytest.mark.parametrize("how", ["folder", "name"])
def test_the_tool_writes_beside_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = run_folder(tmp_path / "output/nano3/runs")
    monkeypatch.chdir(tmp_path)
    assert command(str(run) if how == "folder" else "run") == 0
    assert (run / "hf" / "config.json").is_file()
    assert re.fullmatch(r".*/run/hf: iteration 20; load it with .*from_pretrained.*\n", capsys.readouterr().out)
    shutil.rmtree(run)


def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no run 'rnu'"):
        command("rnu")


def command(*words: str) -> int:
    """`nano3 export WORDS`."""
    import argparse

    from nano3.tools import export as tool

    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))
