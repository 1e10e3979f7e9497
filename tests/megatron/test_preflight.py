"""Preflight: counts against Hugging Face's own modules and published figures, and every problem at once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import NANO, QWEN, model

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.architecture import Architecture, flops_per_token, from_config, parameters
from nano3.training.preflight import Layout, layout_problems, memory_per_gpu, preflight
from nano3.training.schema import recorded


def shape(name: str, vocab: int) -> Architecture:
    found = from_config(PretrainConfig(model=model(name)), recorded(NANO), vocab)
    assert found is not None
    return found


def test_nano_has_the_published_numbers() -> None:
    """31.6 B parameters, 3.2 B active without and 3.6 B with embeddings (Nemotron 3 Nano technical report, table 1)."""
    nano = shape("nemotron_3_nano", 131072)
    counts = parameters(nano)
    assert counts.total / 1e9 == pytest.approx(31.6, abs=0.05)
    assert counts.active / 1e9 == pytest.approx(3.6, abs=0.05)
    assert (counts.active - nano.vocab_size * nano.hidden_size) / 1e9 == pytest.approx(3.2, abs=0.05)


def test_qwen3_8b_has_the_published_number() -> None:
    config = PretrainConfig()
    config.recipe._target_ = QWEN
    counts = parameters(from_config(config, recorded(QWEN), 151936))
    assert counts.total == counts.active
    assert counts.total / 1e9 == pytest.approx(8.19, abs=0.005)


@pytest.mark.parametrize("name", ["quickstart", "nemotron_3_nano_micro", "nemotron_3_nano"])
def test_hybrids_equal_transformers_count(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from nano3.training.hf_model import hf_config

    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(hf_config(model(name), 4096, 256))
    assert parameters(shape(name, 4096)).total == sum(p.numel() for p in hf.parameters())


def test_a_dense_model_equals_transformers_count() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = PretrainConfig(
        model=ModelConfig(
            hidden_size=512, ffn_hidden_size=1536, num_attention_heads=8, num_query_groups=2, kv_channels=64
        )
    )
    config.recipe._target_, config.megatron = QWEN, {"model": {"num_layers": 6}}
    hf = AutoConfig.for_model("qwen3", vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=6,
    num_attention_heads=8,
                              num_key_value_heads=2, head_dim=64, tie_word_embeddings=False)  # fmt: skip
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(hf)
    assert parameters(from_config(config, recorded(QWEN), 4096)).total == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("name", ["nemotron_3_nano", "nemotron_3_nano_micro"])
def test_flops_are_near_six_per_active_parameter(name: str) -> None:
    """The rule of thumb, without the embedding that is only looked up; scan and attention add to it."""
    a = shape(name, 131072)
    matrices = parameters(a).active - a.vocab_size * a.hidden_size
    assert flops_per_token(a, 512) / (6 * matrices) == pytest.approx(1.04, abs=0.04)


@given(st.integers(1, 8), st.integers(1, 64))
def test_longer_samples_cost_more_and_more_experts_only_memory(scale: int, experts: int) -> None:
    a = shape("nemotron_3_nano_micro", 4096)
    assert flops_per_token(a, 1024 * (scale + 1)) > flops_per_token(a, 1024 * scale)
    more = replace(a, num_moe_experts=a.num_moe_experts + experts)
    assert parameters(more).total > parameters(a).total
    router = experts * a.hidden_size * a.layers["E"]
    assert parameters(more).active == parameters(a).active + router


def test_a_good_configuration_has_no_problem_and_a_full_table(config: PretrainConfig) -> None:
    plan = preflight(config)
    assert plan.problems == []
    names = [row[0] for row in plan.rows]
    for name in (
        "recipe",
        "backend",
        "ranks",
        "parameters",
        "FLOPs per token",
        "memory per GPU",
        "batch",
        "iterations",
        "time",
        "data",
        "checkpoints",
    ):
        assert name in names
    assert dict(plan.rows)["  docs"].startswith("75.0% of the samples, 20 k tokens")


def test_all_problems_come_at_once(config: PretrainConfig) -> None:
    config.train.global_batch_size = 6
    config.scheduler.lr_wsd_decay_iters = None
    config.megatron = {"trian": {"x": 1}}
    config.recipe._target_ = "os.system"
    config.train.seq_length = 100_000
    words = " ".join(preflight(config).problems)
    for part in (
        "train.global_batch_size=6",
        "lr_wsd_decay_iters",
        "Did you mean 'train'?",
        "recipe._target_=os.system",
        "one sample of train.seq_length=100000",
    ):
        assert part in words


LAYOUT = Layout(world=16, tensor=2, pipeline=2, context=1, expert=4)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        pytest.param(replace(LAYOUT, world=6), {}, "6 ranks cannot be divided into model replicas of 4", id="world"),
        pytest.param(replace(LAYOUT, expert=16), {}, "does not divide the 8 ranks of a pipeline stage", id="experts"),
        pytest.param(LAYOUT, {"global_batch_size": 10}, "use 8 or 16", id="batch"),
        pytest.param(LAYOUT, {"global_batch_size": 3}, "use 16, or another", id="batch-below-one-step"),
        pytest.param(LAYOUT, {"micro_batch_size": 0}, "train.micro_batch_size=0 must be at least 1", id="zero"),
        pytest.param(
            replace(LAYOUT, tensor=1, context=2, expert=1),
            {"seq_length": 258},
            "multiple of 2 x model.context",
            id="context",
        ),
    ],
)
def test_layouts_that_cannot_work(config: PretrainConfig, layout: Layout, changes: dict, words: str) -> None:
    config.train.global_batch_size, config.train.micro_batch_size = 16, 4
    if layout.context == 1 and "global_batch_size" in changes:
        config.train.micro_batch_size = 2 if changes["global_batch_size"] == 10 else 4
    for key, value in changes.items():
        setattr(config.train, key, value)
    assert any(words in p for p in layout_problems(config, layout)), layout_problems(config, layout)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 6), st.integers(1, 4))
def test_a_layout_without_problems_divides_evenly(
    tensor: int, pipeline: int, data: int, micro: int, steps: int
) -> None:
    config = PretrainConfig()
    layout = Layout(tensor * pipeline * data, tensor, pipeline, 1, 1)
    config.train.micro_batch_size, config.train.global_batch_size = micro, micro * data * steps
    assert layout.data == data
    assert layout_problems(config, layout) == []


def test_memory_falls_with_more_ranks(config: PretrainConfig) -> None:
    config.train.seq_length = 8192
    nano = shape("nemotron_3_nano", 131072)
    needs = [memory_per_gpu(nano, Layout(world, 1, 1, 1, 8), config) for world in (8, 16, 64)]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 31.6e9 / 8 * 6


def test_missing_data_is_not_a_problem_of_the_preflight_alone(config: PretrainConfig) -> None:
    config.run.data = "DataBlendsArtifact-pretrain:math"
    plan = preflight(
        config, json.loads((Path(config.recipe.per_split_data_args_path).parent / "manifest.json").read_text())
    )
    assert plan.problems == []
    assert "epochs" in dict(plan.rows)["data"]


def test_repetition_is_told(config: PretrainConfig) -> None:
    config.train.train_iters = 1000
    config.scheduler.lr_wsd_decay_iters = 200
    assert any("docs is repeated" in w for w in preflight(config).warnings)


def test_the_transformers_backend_needs_no_recipe(config: PretrainConfig) -> None:
    config.backend, config.model = "transformers", model("quickstart")
    config.recipe._target_ = "nonsense"
    plan = preflight(config)
    assert plan.problems == []
    config.megatron = {"model": {}}
    assert any("backend=megatron only" in p for p in preflight(config).problems)


def test_an_unknown_recipe_is_told_not_guessed(config: PretrainConfig) -> None:
    config.recipe._target_, config.model = (
        "megatron.bridge.recipes.llama.llama3.llama3_8b_pretrain_config",
        ModelConfig(),
    )
    plan = preflight(config)
    assert any("is not recorded" in w for w in plan.warnings)
    assert "parameters" not in dict(plan.rows)


def test_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "megatron", "hydra")
    script = f"import sys, nano3.training.preflight; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
