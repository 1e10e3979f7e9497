"""Sizes of a model against sums done by hand, and a preflight that answers whatever it is asked."""

import dataclasses
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from megatron_helpers import NANO, QWEN, ROOT, model

from nano3.config import ModelConfig, PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.checks.model_stats import (
    Architecture,
    architecture_from_config,
    count_parameters,
    divisibility_problems,
    embedding_rows_for,
    flops_per_token,
)
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, parallel_layout
from nano3.training.checks.value_checks import initial_weights_problems
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import count_layers, pattern_problems
from nano3.training.preflight import (
    IterationRange,
    preflight,
    short_number,
)

# Small odd numbers, so that no two of them can be mixed up.
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
    """`idle`: those of experts that a token does not visit."""
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
    a, b = (replace(SMALL, layers=c).activation_bytes_per_token for c in (layers, more))
    assert b > a >= 0


@pytest.mark.parametrize("target", [NANO, QWEN], ids=["hybrid", "dense"])
def test_a_typed_key_stands_above_a_free_one_above_the_recipe(target: str) -> None:
    config, known = PretrainConfig(), load_bundled(target)
    config.recipe._target_ = target
    own = known.value("model.num_attention_heads")
    for typed, free, expected in ((None, None, own), (None, 64, 64), (16, 64, 16), (16, None, 16)):
        config.model.num_attention_heads = typed
        config.megatron = {"model": {"num_attention_heads": free}}
        found = architecture_from_config(config, known, 1000)
        assert found is not None and found.num_attention_heads == expected


def test_what_is_left_out_follows_from_the_rest() -> None:
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
def test_attention_is_refused_exactly_when_it_cannot_be_divided(heads: int, groups: int, tensor: int) -> None:
    a = replace(SMALL, layers={"*": 1}, num_attention_heads=heads, num_query_groups=groups)
    apart = groups % tensor > 0 and tensor % groups > 0
    assert len(divisibility_problems(a, tensor)) == (heads % groups > 0) + (heads % tensor > 0) + apart
    assert divisibility_problems(replace(a, layers={"-": 1}), tensor) == [], "without attention its sizes mean nothing"


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 8))
def test_experts_and_scans_are_refused_exactly_when_megatron_asserts(
    experts: int, groups: int, tensor: int, expert: int
) -> None:
    """MoELayer wants as many experts on every rank, MambaMixer as many groups; a job would find out in its queue."""
    a = replace(SMALL, layers={"E": 1}, num_moe_experts=experts, moe_router_topk=1)
    told = divisibility_problems(a, tensor, expert)
    assert told == (
        [f"model.num_moe_experts={experts} must be a multiple of model.expert_model_parallel_size={expert}."]
        if experts % expert
        else []
    )
    a = replace(SMALL, layers={"M": 1}, mamba_num_heads=groups * tensor, mamba_num_groups=groups)
    assert len(divisibility_problems(a, tensor, expert)) == (groups % tensor > 0)


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "conf/model").glob("*.yaml")])
def test_the_models_of_conf_can_be_divided_as_they_say(name: str) -> None:
    config = nowhere("megatron", NANO)
    config.model = model(name)
    layout = parallel_layout(config, load_bundled(NANO))
    found = architecture_from_config(config, load_bundled(NANO), 131072)
    assert found is not None and divisibility_problems(found, layout.tensor, layout.expert) == []


PATTERNS = {
    "hybrid": ("MEM*E-", None),
    "stages": ("ME|M*", None),
    "more-after-the-stack": ("ME/*E", None),
    "null": (None, None),
    "empty": ("", "model.hybrid_layer_pattern= has no layer; allowed: M Mamba-2"),
    "only-a-cut": ("|/M", "has no layer"),
    "small-letters": ("me*", "model.hybrid_layer_pattern=me* has e m; allowed: M Mamba-2, E experts"),
    "commas": ("M,E,M", "has ,; allowed"),
}


@pytest.mark.parametrize(("pattern", "told"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_that_megatron_would_refuse_is_told_before_the_job(pattern: str | None, told: str | None) -> None:
    problems = pattern_problems(pattern)
    assert len(problems) == (told is not None)
    assert told is None or told in problems[0]
    config = nowhere("megatron", NANO)
    config.model.hybrid_layer_pattern = pattern
    assert [p for p in preflight(config).problems if "hybrid_layer_pattern" in p] == problems


@given(st.text("M*E-|/", max_size=12))
def test_layers_are_counted_as_the_sizes_count_them(pattern: str) -> None:
    config = PretrainConfig(model=ModelConfig(hybrid_layer_pattern=pattern, hidden_size=8, num_attention_heads=2))
    found = architecture_from_config(config, None, 10)
    assert (found is None) == (pattern == "")
    assert found is None or sum(found.layers.values()) == count_layers(pattern)


def nowhere(backend: str, target: str) -> PretrainConfig:
    """A run on data that is not there, so that a preflight takes milliseconds."""
    config = PretrainConfig(backend=backend)
    config.recipe._target_, config.run.name = target, "a"
    config.run.data, config.run.output_dir = "/nowhere/data", "/nowhere/run"
    config.scheduler.lr_wsd_decay_iters = 100
    return config


SECTIONS = ("model", "train", "optimizer", "scheduler", "checkpoint", "logger")
NUMBERS = [
    (section, f.name, "float" in str(f.type))
    for section in SECTIONS
    for f in dataclasses.fields(getattr(PretrainConfig(), section))
    if str(f.type).startswith(("int", "float", "<class 'int'>", "<class 'float'>"))
]
WHOLE = st.sampled_from([-(10**12), -2, -1, 0, 1, 2, 3, 7, 10**12])
ANY = st.sampled_from([float("nan"), float("inf"), -0.5, 0.0, 1e-300, 1.0, 1e300])


def test_there_are_numbers_to_try() -> None:
    assert {("train", "seq_length", False), ("optimizer", "lr", True), ("model", "kv_channels", False)} <= set(NUMBERS)


@given(
    st.sampled_from(["megatron", "transformers"]),
    st.sampled_from([NANO, QWEN, "megatron.bridge.recipes.x.y"]),
    st.sampled_from([None, "quickstart", "nemotron_3_nano"]),
    st.lists(st.sampled_from(NUMBERS).flatmap(lambda n: st.tuples(st.just(n), ANY if n[2] else WHOLE)), max_size=3),
    st.integers(1, 9),
)
@example("megatron", NANO, None, [(("train", "micro_batch_size", False), 0)], 1)
def test_a_preflight_answers_whatever_numbers_it_is_given(
    backend: str, target: str, name: str | None, changes: list, ranks: int
) -> None:
    config = nowhere(backend, target)
    config.model = model(name) if name else ModelConfig()
    config.cluster.nproc_per_node = ranks
    for (section, key, _), value in changes:
        setattr(getattr(config, section), key, value)
    plan = preflight(config)
    assert all(isinstance(text, str) and text for row in plan.rows for text in row)
    assert all(problem.strip().endswith((".", ")", "?")) for problem in plan.problems), plan.problems


ODD = st.sampled_from(["abc", "64", "", None, 2.5, True, [1], {"a": 1}, -1, 0, 8])
FREE = st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Architecture)] + ["num_layers"]), ODD)


@given(st.sampled_from([NANO, QWEN]), st.one_of(ODD, FREE), st.one_of(ODD, st.just({"pretrained_checkpoint": "x"})))
def test_a_preflight_answers_whatever_stands_in_the_megatron_section(
    target: str, of_model: Any, checkpoint: Any
) -> None:
    """`+megatron.model=x` and `+megatron.model.num_layers=abc` are told, not met with a traceback."""
    config = nowhere("megatron", target)
    config.megatron = {"model": of_model, "checkpoint": checkpoint}
    problems = preflight(config).problems
    for name, value in config.megatron.items():
        if value is not None and not isinstance(value, dict):
            assert any(problem.startswith(f"megatron.{name}={value}: ") for problem in problems), problems


@pytest.mark.parametrize("value", ["abc", 2.5, [1]], ids=str)
def test_a_size_of_the_wrong_type_is_told_and_not_used(value: Any) -> None:
    config = nowhere("megatron", QWEN)
    config.megatron = {"model": {"num_layers": value}}
    plan = preflight(config)
    assert any(p.startswith(f"megatron.model.num_layers={value}: ") for p in plan.problems)
    plain = preflight(nowhere("megatron", QWEN))
    assert dict(plan.rows)["parameters"] == dict(plain.rows)["parameters"], "the recipe's own number of layers"


@pytest.mark.parametrize("section", ["x", None, 3, [], {}], ids=str)
def test_a_section_that_is_none_is_empty(section: Any) -> None:
    config = PretrainConfig(megatron={"checkpoint": section})
    assert megatron_section(config, "checkpoint") == megatron_section(config, "model") == {}
    assert initial_weights_problems(config) == []


@given(st.floats(1, 9e20) | st.integers(1, 9 * 10**20))
def test_a_number_in_words_has_three_digits_and_is_near(number: float) -> None:
    text = short_number(number)
    digits, _, unit = text.partition(" ")
    assert re.fullmatch(r"\d{1,3}(\.\d{1,2})?", digits), text
    size = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}[unit]
    assert float(digits) * size == pytest.approx(number, rel=0.006)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (999_499, "999 k"), (999_999, "1 M"), (-5e6, "-5 M"), (31.6e9, "31.6 B")],
)
def test_numbers_in_words(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("span", "words", "iterations"),
    [
        (IterationRange(0, 1700, 1700, 0), "1,700", 1700),
        (IterationRange(0, 100, 1700, 0), "100 (from 0 to 100 of 1,700)", 100),
        (IterationRange(1000, 1700, 1700, 1000), "700 (from 1,000 to 1,700 of 1,700)", 700),
        (IterationRange(1700, 1700, 1700, 1700), "0 (from 1,700 to 1,700 of 1,700)", 0),
        (IterationRange(200, 100, 1700, 200), "0 (from 200 to 100 of 1,700)", 0),
    ],
    ids=["whole", "a part", "the rest", "nothing", "beyond its exit"],
)
def test_the_iterations_of_one_command(span: IterationRange, words: str, iterations: int) -> None:
    assert (str(span), span.iterations) == (words, iterations)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 16))
def test_each_batch_size_that_is_advised_has_no_problem(size: int, micro: int, ranks: int) -> None:
    config = PretrainConfig()
    config.train.global_batch_size, config.train.micro_batch_size = size, micro
    layout = ParallelLayout(ranks, 1, 1, 1, 1)
    problems = layout_problems(config, layout)
    assert bool(problems) == (size % (micro * ranks) > 0)
    for advised in (
        re.findall(r"\d+", problems[0].partition("What fits: train.global_batch_size=")[2].partition(";")[0])
        if problems
        else ()
    ):
        config.train.global_batch_size = int(advised)
        assert layout_problems(config, layout) == []


@pytest.mark.parametrize(
    ("kind", "variable", "world"),
    [("local", None, 3), ("local", "4", 4), ("slurm", "4", 10)],
    ids=["this machine", "under torchrun", "asked of Slurm"],
)
def test_how_many_ranks_there_will_be(
    monkeypatch: pytest.MonkeyPatch, kind: str, variable: str | None, world: int
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if variable:
        monkeypatch.setenv("WORLD_SIZE", variable)
    config = PretrainConfig(model=ModelConfig(tensor_model_parallel_size=2))
    config.cluster.kind, config.cluster.nproc_per_node = kind, 3
    config.cluster.nodes, config.cluster.ntasks_per_node = 2, 5
    assert (parallel_layout(config, None).world, parallel_layout(config, None).tensor) == (world, 2)
    config.backend = "transformers"
    assert parallel_layout(config, None).tensor == 1, "told elsewhere; the table is of what would run"
