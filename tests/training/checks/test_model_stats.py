"""Counts of a model against published figures, Hugging Face modules, and sums by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import LIGHTNING, NANO, NANO_4B, QWEN, ROOT, architecture_of, config_without_data, model

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.checks.model_stats import (
    Architecture,
    architecture_from_config,
    count_layers,
    count_parameters,
    divisibility_problems,
    embedding_rows_for,
    flops_per_token,
)
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.megatron.schema import load_bundled


def test_nano_has_the_published_numbers() -> None:
    """31.6 B parameters, 3.2 B active without and 3.6 B with embeddings (Nemotron 3 Nano technical report, table 1)."""
    nano = architecture_of("nemotron_3_nano", 131072)
    counts = count_parameters(nano)
    assert counts.total / 1e9 == pytest.approx(31.6, abs=0.05)
    assert counts.active / 1e9 == pytest.approx(3.6, abs=0.05)
    assert (counts.active - nano.vocab_size * nano.hidden_size) / 1e9 == pytest.approx(3.2, abs=0.05)


def test_qwen3_8b_has_the_published_number() -> None:
    config = PretrainConfig()
    config.recipe._target_ = QWEN
    counts = count_parameters(architecture_from_config(config, load_bundled(QWEN), 151936))
    assert counts.total == counts.active
    assert counts.total / 1e9 == pytest.approx(8.19, abs=0.005)


@pytest.mark.parametrize("name", ["quickstart", "nemotron_3_nano_micro", "nemotron_3_nano"])
def test_hybrids_equal_transformers_count(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from nano3.training.hf.model import hf_config

    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(hf_config(model(name), 4096, 256))
    assert count_parameters(architecture_of(name, 4096)).total == sum(p.numel() for p in hf.parameters())


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
    assert count_parameters(architecture_from_config(config, load_bundled(QWEN), 4096)).total == sum(
        p.numel() for p in built.parameters()
    )


@pytest.mark.parametrize("name", ["nemotron_3_nano", "nemotron_3_nano_micro"])
def test_flops_are_near_six_per_active_parameter(name: str) -> None:
    """The rule of thumb without the input embedding; scan and attention add to it."""
    a = architecture_of(name, 131072)
    matrices = count_parameters(a).active - a.vocab_size * a.hidden_size
    assert flops_per_token(a, 512) / (6 * matrices) == pytest.approx(1.04, abs=0.04)


@given(st.integers(1, 8), st.integers(1, 64))
def test_longer_samples_cost_more_and_more_experts_only_memory(scale: int, experts: int) -> None:
    a = architecture_of("nemotron_3_nano_micro", 4096)
    assert flops_per_token(a, 1024 * (scale + 1)) > flops_per_token(a, 1024 * scale)
    more = replace(a, num_moe_experts=a.num_moe_experts + experts)
    assert count_parameters(more).total > count_parameters(a).total
    router = experts * a.hidden_size * a.layers["E"]
    assert count_parameters(more).active == count_parameters(a).active + router


# Small odd numbers, so that no two of them can be mixed up.
EVEN = 27720  # a multiple of 1 to 12
SMALL = Architecture(
    layers={},
    hidden_size=4,
    vocab_size=10,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=3,
    ffn_hidden_size=5,
    mamba_num_heads=2,
    mamba_head_dim=3,
    mamba_state_dim=5,
    mamba_num_groups=1,
    num_moe_experts=3,
    moe_router_topk=2,
    moe_ffn_hidden_size=7,
    moe_shared_expert_intermediate_size=2,
)


EMBEDDINGS, NORM = 2 * 10 * 4, 4


ATTENTION = 4 * 6 + 2 * 4 * 3 + 6 * 4  # queries of 2 heads of 3; keys and values of 1; out


MLP = 4 * 5 + 5 * 4


# x and z of 6, B and C of 5, a step for 2 heads; convolution of x, B, C with bias; A, D, bias of the step; norm; out
MAMBA = 4 * (6 + 6 + 2 * 5 + 2) + 16 * 4 + 16 + 3 * 2 + 6 + 6 * 4


EXPERT, SHARED, ROUTER = 4 * 7 + 7 * 4, 4 * 2 + 2 * 4, 4 * 3


SUMS = {
    "nothing": ({}, {}, EMBEDDINGS + NORM, 0),
    "attention": ({"*": 1}, {}, EMBEDDINGS + 2 * NORM + ATTENTION, 0),
    "norms-of-queries-and-keys": ({"*": 1}, {"qk_norm": True}, EMBEDDINGS + 2 * NORM + ATTENTION + 2 * 3, 0),
    "mlp": ({"-": 3}, {}, EMBEDDINGS + 4 * NORM + 3 * MLP, 0),
    "gated": ({"-": 1}, {"gated": True}, EMBEDDINGS + 2 * NORM + 3 * 4 * 5, 0),
    "tied": ({"-": 1}, {"tied": True}, EMBEDDINGS // 2 + 2 * NORM + MLP, 0),
    "mamba": ({"M": 2}, {}, EMBEDDINGS + 3 * NORM + 2 * MAMBA, 0),
    "experts": ({"E": 2}, {}, EMBEDDINGS + 3 * NORM + 2 * (3 * EXPERT + SHARED + ROUTER), 2 * EXPERT),
    "no-shared-expert": (
        {"E": 1}, {"moe_shared_expert_intermediate_size": 0}, EMBEDDINGS + 2 * NORM + 3 * EXPERT + ROUTER, EXPERT,
    ),
    "all": (
        {"M": 1, "*": 1, "E": 1, "-": 1}, {},
        EMBEDDINGS + 5 * NORM + MAMBA + ATTENTION + MLP + 3 * EXPERT + SHARED + ROUTER, EXPERT,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "changes", "total", "idle"), SUMS.values(), ids=SUMS)
def test_parameters_are_the_sum_by_hand(layers: dict, changes: dict, total: int, idle: int) -> None:
    """`idle` counts the parameters of experts that a token does not use."""
    counts = count_parameters(replace(SMALL, layers=layers, **changes))
    assert (counts.total, counts.total - counts.active) == (total, idle)
    assert counts.routed_experts == 3 * EXPERT * layers.get("E", 0)


HEAD = 2 * 4 * 10  # the product with the output matrix


FLOPS = {
    "nothing": ({}, {}, 16, HEAD),
    "mlp": ({"-": 1}, {}, 16, 2 * MLP + HEAD),
    "gated": ({"-": 1}, {"gated": True}, 16, 2 * 60 + HEAD),
    "attention": ({"*": 1}, {}, 16, 2 * ATTENTION + 2 * 6 * 16 + HEAD),
    "longer": ({"*": 1}, {}, 32, 2 * ATTENTION + 2 * 6 * 32 + HEAD),
    "experts": ({"E": 1}, {}, 16, 2 * (2 * EXPERT + SHARED + ROUTER) + HEAD),
    "tied": ({"-": 1}, {"tied": True}, 16, 2 * MLP + HEAD),
}


@pytest.mark.parametrize(("layers", "changes", "seq_length", "forward"), FLOPS.values(), ids=FLOPS)
def test_work_is_the_sum_by_hand(layers: dict, changes: dict, seq_length: int, forward: int) -> None:
    """The backward pass costs twice the forward one."""
    assert flops_per_token(replace(SMALL, layers=layers, **changes), seq_length) == 3 * forward


@pytest.mark.parametrize(("shared", "copies"), [(True, 1), (False, 2)])
def test_multi_token_prediction_is_counted_by_hand(shared: bool, copies: int) -> None:
    """Two depths of one MLP: each passes projection, layer and output matrix; shared weights are held once."""
    mtp = replace(SMALL, layers={}, mtp_depths=2, mtp_layers={"-": 1}, mtp_shared=shared)
    h = SMALL.hidden_size
    layer = 2 * h * SMALL.ffn_hidden_size + h
    own = copies * (layer + 2 * h * h + 3 * h)
    assert count_parameters(mtp).total == count_parameters(replace(SMALL, layers={})).total + own
    head = 2 * h * SMALL.vocab_size
    assert flops_per_token(mtp, 16) == 3 * (head + 2 * (2 * (layer - h) + 4 * h * h + head))


KEYS = {"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*E", "mtp_use_repeated_layer": True}


@pytest.mark.parametrize(
    ("recipe", "model", "megatron"),
    [
        (NANO, {"hybrid_layer_pattern": "ME/*E/*E"}, {"mtp_use_repeated_layer": True}),
        (LIGHTNING, {"hybrid_layer_pattern": "ME/*E/*E"}, {}),
        (NANO, {"hybrid_layer_pattern": "ME"}, KEYS),
        (NANO, {"hybrid_layer_pattern": "ME", **KEYS}, {}),
        (LIGHTNING, {"hybrid_layer_pattern": "ME"}, {}),
    ],
    ids=["pattern", "pattern-over-recipe", "earlier-keys", "keys", "recipe"],
)
def test_where_multi_token_prediction_is_read(recipe: str, model: dict, megatron: dict) -> None:
    config, known = PretrainConfig(model=ModelConfig(**model)), load_bundled(recipe)
    config.megatron = {"model": megatron}
    found = architecture_from_config(config, known, 1000)
    assert found is not None
    assert (found.mtp_depths, found.mtp_layers, found.mtp_shared) == (2, {"*": 1, "E": 1}, True)
    assert found.held_layers == {"M": 1, "E": 2, "*": 1} and found.run_layers == {"M": 1, "E": 3, "*": 2}


@pytest.mark.parametrize("keys", [{"mtp_num_layers": 0}, {"mtp_num_layers": 0, "mtp_hybrid_override_pattern": "*E"}])
def test_multi_token_prediction_of_a_recipe_is_turned_off(keys: dict) -> None:
    config = PretrainConfig(model=ModelConfig(**keys))
    found = architecture_from_config(config, load_bundled(LIGHTNING), 131072)
    assert found is not None and (found.mtp_depths, found.mtp_layers) == (0, {})
    assert count_parameters(found) == count_parameters(architecture_of("nemotron_3_nano", 131072))


# FLOPs per token of the forward and backward pass according to num_floating_point_operations of Megatron-Bridge 0.6.2,
# after finalize() of the recipe's model with the values of conf/model.
THEIRS = {
    "nemotron_3_nano": (NANO, 8192, 131072, 22278094848),
    "nemotron_3_5_lightning": (LIGHTNING, 8192, 131072, 28147236864),
    "nemotron_3_5_lightning_micro": (LIGHTNING, 1024, 4096, 164560896),
    "nemotron_3_nano_micro": (NANO, 1024, 4096, 112656384),
    "nemotron_3_nano_4b": (NANO_4B, 8192, 131072, 21058768896),
}


@pytest.mark.parametrize("name", THEIRS)
def test_work_agrees_with_megatron_bridge(name: str) -> None:
    """Its formula takes the width of a Mamba layer as twice the hidden size, and leaves out MTP's projection."""
    recipe, seq_length, vocabulary, theirs = THEIRS[name]
    found = architecture_from_config(PretrainConfig(model=model(name)), load_bundled(recipe), vocabulary)
    assert found is not None
    assert flops_per_token(found, seq_length) == pytest.approx(theirs, rel=0.1)


@given(st.integers(1, 64), st.integers(64, 4096))
def test_a_scan_costs_the_same_for_every_length_beyond_its_chunk(chunk: int, length: int) -> None:
    a = replace(SMALL, layers={"M": 1}, mamba_chunk_size=chunk)
    assert flops_per_token(a, length) == flops_per_token(a, 2 * length)
    assert flops_per_token(a, chunk) > flops_per_token(replace(a, mamba_chunk_size=1), chunk) or chunk == 1


@given(st.dictionaries(st.sampled_from("M*E-"), st.integers(0, 9)), st.sampled_from("M*E-"))
def test_one_layer_more_costs_the_same_wherever_it_is_added(layers: dict[str, int], kind: str) -> None:
    more = {**layers, kind: layers.get(kind, 0) + 1}
    alone, none = (count_parameters(replace(SMALL, layers=c)).total for c in ({kind: 1}, {}))
    added = count_parameters(replace(SMALL, layers=more)).total - count_parameters(replace(SMALL, layers=layers)).total
    assert added == alone - none


@pytest.mark.parametrize("target", [NANO, QWEN], ids=["hybrid", "dense"])
def test_model_overrides_the_megatron_dict_which_overrides_the_recipe(target: str) -> None:
    config, known = PretrainConfig(), load_bundled(target)
    config.recipe._target_ = target
    own = known.value("model.num_attention_heads")
    for typed, free, expected in ((None, None, own), (None, 64, 64), (16, 64, 16), (16, None, 16)):
        config.model.num_attention_heads = typed
        config.megatron = {"model": {"num_attention_heads": free}}
        found = architecture_from_config(config, known, 1000)
        assert found is not None and found.num_attention_heads == expected


@pytest.mark.parametrize(
    ("pattern", "stages", "units"),
    [("*-*-", 0, 4), ("*-|*-", 2, 2), ("*|-|*-/*-", 3, 3), ("*-*-/*|-", 0, 4), ("*-|*-/*|-|*", 2, 2)],
)
def test_a_cut_after_the_main_stack_is_no_stage(pattern: str, stages: int, units: int) -> None:
    config = PretrainConfig(model=ModelConfig(hybrid_layer_pattern=pattern, hidden_size=64, num_attention_heads=4))
    found = architecture_from_config(config, None, 1000)
    assert found and (found.stages, found.stage_units) == (stages, units)


def test_missing_sizes_follow_from_the_others() -> None:
    config = PretrainConfig(model=ModelConfig(hybrid_layer_pattern="*-|-/*-", hidden_size=64, num_attention_heads=4))
    found = architecture_from_config(config, None, 1000)
    assert found is not None
    assert found.layers == {"*": 1, "-": 2}, "what follows / is no layer of the main stack"
    assert (found.kv_channels, found.num_query_groups, found.ffn_hidden_size) == (16, 4, 256)
    assert found.vocab_size == 1024
    for name in ("hidden_size", "num_attention_heads", "hybrid_layer_pattern"):
        unknown = replace(config, model=replace(config.model, **{name: None}))
        assert architecture_from_config(unknown, None, 1000) is None, "guessing would be worse than no number"


@given(st.integers(1, 300_000), st.sampled_from([None, 1, 2, 3, 8]), st.sampled_from([None, NANO, QWEN]))
def test_an_embedding_has_room_for_every_id_and_little_more(size: int, tensor: int | None, recipe: str | None) -> None:
    config = PretrainConfig(model=ModelConfig(tensor_model_parallel_size=tensor))
    rows = embedding_rows_for(config, load_bundled(recipe) if recipe else None, size)
    assert size <= rows
    assert rows % (tensor or 1) == 0 or recipe is None
    config.model.vocab_size = size
    assert embedding_rows_for(config, None, 1) == size


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_attention_is_rejected_exactly_when_it_cannot_be_divided(heads: int, groups: int, tensor: int) -> None:
    a = replace(SMALL, layers={"*": 1}, num_attention_heads=heads, num_query_groups=groups, vocab_size=EVEN)
    apart = groups % tensor > 0 and tensor % groups > 0
    assert len(divisibility_problems(a, tensor)) == (heads % groups > 0) + (heads % tensor > 0) + apart
    dense = replace(a, layers={"-": 1}, ffn_hidden_size=EVEN)
    assert divisibility_problems(dense, tensor) == [], "without attention its sizes mean nothing"


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 8))
def test_experts_and_scans_are_rejected_exactly_when_megatron_asserts(
    experts: int, groups: int, tensor: int, expert: int
) -> None:
    """MoELayer needs equally many experts on every rank, and MambaMixer equally many groups."""
    sizes = {"num_moe_experts": experts, "moe_router_topk": 1, "moe_shared_expert_intermediate_size": EVEN}
    a = replace(SMALL, layers={"E": 1}, vocab_size=EVEN, **sizes)
    problems = divisibility_problems(a, tensor, expert)
    assert problems == (
        [f"model.num_moe_experts={experts} must be a multiple of model.expert_model_parallel_size={expert}."]
        if experts % expert
        else []
    )
    a = replace(a, layers={"M": 1}, mamba_num_heads=groups * tensor, mamba_num_groups=groups)
    assert len(divisibility_problems(a, tensor)) == (groups % tensor > 0)


@pytest.mark.parametrize(
    ("layers", "changes", "expert", "problem"),
    [
        pytest.param("-", {"ffn_hidden_size": 513}, 1, "model.ffn_hidden_size=513", id="width"),
        pytest.param("E", {"moe_shared_expert_intermediate_size": 33}, 1, "intermediate_size=33", id="shared-expert"),
        pytest.param("M", {"vocab_size": 8193}, 1, "model.vocab_size=8193 must be a multiple of", id="vocabulary"),
        pytest.param("M", {}, 2, "expert_model_parallel_size=2 needs a model with experts", id="no-experts"),
    ],
)
def test_what_two_tensor_parallel_ranks_cannot_divide(
    layers: str, changes: dict[str, int], expert: int, problem: str
) -> None:
    a = replace(SMALL, layers={layers: 1})
    good = {
        "vocab_size": 8192,
        "mamba_num_groups": 2,
        "ffn_hidden_size": 512,
        "moe_shared_expert_intermediate_size": 32,
    }
    assert divisibility_problems(replace(a, **good), 2) == []
    (found,) = divisibility_problems(replace(a, **{**good, **changes}), 2, expert)
    assert problem in found


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "conf/model").glob("*.yaml") if p.stem != "ladder"])
def test_the_models_of_conf_are_divisible_by_their_parallel_sizes(name: str) -> None:
    config = config_without_data("megatron", NANO)
    config.model = model(name)
    layout = parallel_layout(config, load_bundled(NANO))
    found = architecture_from_config(config, load_bundled(NANO), 131072)
    assert found is not None and divisibility_problems(found, layout.tensor, layout.expert) == []


@given(st.text("M*E-|/", max_size=12))
def test_count_layers_agrees_with_the_architecture(pattern: str) -> None:
    config = PretrainConfig(model=ModelConfig(hybrid_layer_pattern=pattern, hidden_size=8, num_attention_heads=2))
    found = architecture_from_config(config, None, 10)
    assert (found is None) == (pattern == "")
    assert found is None or sum(found.layers.values()) == count_layers(pattern)
