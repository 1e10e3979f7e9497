"""ModelConfig as NemotronH: the mapping, its problems, the vocabulary, and that the exported model loads."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_processes import Child, losses, tiny_config

from nano3.config import ModelConfig
from nano3.config.model import MTP_KEYS
from nano3.training.checks.model_stats import padded_vocab_size
from nano3.training.hf import model as hf_model
from nano3.utils.errors import UserError

TINY = tiny_config().model


@given(st.integers(1, 300_000), st.integers(1, 8))
def test_padding_is_megatrons(vocab: int, tensor_parallel: int) -> None:
    """The smallest multiple of 128 x tensor-parallel size that holds the vocabulary."""
    padded, step = padded_vocab_size(vocab, tensor_parallel), 128 * tensor_parallel
    assert padded % step == 0
    assert vocab <= padded < vocab + step


def test_rows_of_the_embedding() -> None:
    assert hf_model.embedding_rows(TINY, 4000) == 4096
    assert hf_model.embedding_rows(replace(TINY, tensor_model_parallel_size=8), 4097) == 5120
    assert hf_model.embedding_rows(replace(TINY, vocab_size=5000), 4096) == 5000
    with pytest.raises(UserError, match=r"model.vocab_size=100 is less than the data's vocabulary of 4096"):
        hf_model.embedding_rows(replace(TINY, vocab_size=100), 4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None, "kv_channels": None}, ["not set: model.hidden_size, model.kv_channels"]),
        ({"hybrid_layer_pattern": None, "mamba_state_dim": None}, ["hybrid_layer_pattern, model.mamba_state_dim"]),
        ({"hybrid_layer_pattern": "MXM?"}, ["? X", "allowed: M Mamba-2"]),
        ({"num_attention_heads": 3, "num_query_groups": 2}, ["num_attention_heads=3 must be a multiple of"]),
        ({"mamba_num_heads": 3, "mamba_num_groups": 2}, ["mamba_num_heads=3 must be a multiple of"]),
        ({"moe_router_topk": 9}, ["num_moe_experts=4 must not be less than model.moe_router_topk=9"]),
        ({"num_moe_experts": 1, "moe_router_topk": 1}, ["at least 2 experts"]),
        ({"share_embeddings_and_output_weights": True}, ["does not tie"]),
        (
            {"mtp_num_layers": 2},
            ["model.mtp_num_layers=2: backend=transformers has no multi-token prediction", "model.mtp_num_layers=0"],
        ),
        (
            {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            ["model.tensor_model_parallel_size=2", "sequence"],
        ),
    ],
    ids=["missing", "no pattern", "letters", "heads", "mamba heads", "top-k", "one expert", "tied", "mtp", "parallel"],
)
def test_problems(changes: dict, message: list[str]) -> None:
    problems = "\n".join(hf_model.model_problems(replace(TINY, **changes)))
    assert all(text in problems for text in message), problems


def test_a_model_without_its_multi_token_prediction_is_built() -> None:
    assert hf_model.model_problems(replace(TINY, mtp_num_layers=0, mtp_hybrid_override_pattern="*E")) == []


def test_keys_of_absent_layers_are_not_needed() -> None:
    assert (
        hf_model.model_problems(replace(TINY, hybrid_layer_pattern="*-", mamba_num_heads=None, num_moe_experts=None))
        == []
    )


def test_every_architecture_key_is_mapped_or_named() -> None:
    """A key added to ModelConfig must be mapped, or stand in one of the lists of what is not architecture."""
    other = {"vocab_size", "moe_router_bias_update_rate", "sequence_parallel", *hf_model.PARALLEL, *MTP_KEYS}
    assert {f.name for f in fields(ModelConfig)} == set(hf_model.HF_NAMES) | other


def expected_parameters(m: dict, rows: int) -> int:
    """Trainable parameters of a NemotronH, layer by layer, from the paper's description of each block."""
    h = m["hidden_size"]
    inner = m["mamba_num_heads"] * m["mamba_head_dim"]
    conv = inner + 2 * m["mamba_num_groups"] * m["mamba_state_dim"]
    layers = {
        "M": h * (inner + conv + m["mamba_num_heads"]) + conv * 4 + conv + 3 * m["mamba_num_heads"] + inner + inner * h,
        "E": m["num_moe_experts"] * (2 * h * m["moe_ffn_hidden_size"] + h)
        + 2 * h * m["moe_shared_expert_intermediate_size"],
        "*": 2 * h * m["num_attention_heads"] * m["kv_channels"] + 2 * h * m["num_query_groups"] * m["kv_channels"],
        "-": 2 * h * m["ffn_hidden_size"],
    }
    return 2 * rows * h + h + sum(layers[kind] + h for kind in m["hybrid_layer_pattern"])


def describe(model: ModelConfig, rows: int) -> tuple[dict, int, float]:
    """The Hugging Face config, the parameter count and the first loss of a model on random tokens."""
    import torch

    torch.manual_seed(0)
    built = hf_model.build_model(model, rows, 32)
    x = torch.randint(0, rows, (2, 32))
    return (
        built.config.to_dict(),
        hf_model.parameter_count(built),
        float(built(input_ids=x, labels=x, shift_labels=x).loss),
    )


@pytest.mark.parametrize("pattern", ["ME*-", "MEM*EME", "*-", "M"])
def test_model_has_the_shape_that_was_asked_for(pattern: str, tmp_path: Path) -> None:
    model = replace(TINY, hybrid_layer_pattern=pattern)
    config, parameters, loss = Child(describe, (model, 256), tmp_path / "log.txt").result()
    for ours, theirs in hf_model.HF_NAMES.items():
        if theirs != "hybrid_override_pattern":
            assert config[theirs] == hf_model.value_or_default(model, ours), (ours, theirs)
    assert len(config["layers_block_type"]) == len(pattern)
    assert parameters == expected_parameters(vars(model), 256)
    assert loss == pytest.approx(5.545, abs=0.1)


def loss_of_export(folder: Path, data: Path) -> tuple[list[str], float, str]:
    """Keys that did not match, validation loss of the first docs sample batch, and a decoded token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder, collate

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    docs = next(
        v for v in DatasetBuilder(open_data(data), 32, 1234, folder.parent / "cache").valid(3, 4) if v.dataset == "docs"
    )
    with torch.no_grad():
        losses = [model(**collate(docs.samples, range(i, i + 2))).loss.item() for i in (0, 2)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bad = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    return bad, sum(losses) / 2, tokenizer.decode(tokenizer("def main").input_ids)


def test_exported_model_loads_and_gives_the_same_loss(undisturbed: Path, data: Path, tmp_path: Path) -> None:
    folder = undisturbed / "checkpoints" / "iter_0000012" / "hf"
    bad, loss, text = Child(loss_of_export, (folder, data), tmp_path / "log.txt").result()
    assert bad == []
    assert text == "def main"
    assert loss == pytest.approx(losses(undisturbed)[-1]["valid_loss/docs"], abs=1e-6)
