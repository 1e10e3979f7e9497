"""Every layout once, its rules, and words that lead back to it."""

from dataclasses import replace

import pytest
from megatron_helpers import NANO, architecture_of, model
from omegaconf import OmegaConf

from nano3.config import PretrainConfig
from nano3.training.checks.model_stats import architecture_from_config
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, parallel_layout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.layouts import (
    Plan,
    make_plan,
    mask_warning,
    override_words,
    recompute_problems,
    rule_problems,
)
from nano3.training.cost.workload import FULL, Workload, workload_from_config
from nano3.training.megatron.schema import load_bundled

H100 = GPU_KINDS["h100"]
KNOWN = load_bundled(NANO)


def nano_config() -> PretrainConfig:
    config = PretrainConfig()
    config.data_blend.name, config.run.data = "test", "data"
    config.recipe.per_split_data_args_path = "data/blend.json"
    config.recipe._target_ = NANO
    config.train.seq_length, config.train.global_batch_size = 8192, 256
    return config


def base() -> Workload:
    config = nano_config()
    return workload_from_config(
        config, KNOWN, architecture_of("nemotron_3_nano", 131072), parallel_layout(config, KNOWN)
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(base(), 16, H100)


def test_the_recipe_is_read() -> None:
    w = base()
    assert (w.recompute, w.graphs) == (("moe", "layernorm"), ("attn", "mamba"))
    assert (w.gradient_bytes, w.optimizer_bytes, w.dispatcher, w.fp8) == (2, 12, "flex", False)
    config = nano_config()
    config.megatron = {
        "mixed_precision": "bf16_with_fp8_current_scaling_mixed",
        "model": {"recompute_granularity": "full", "cuda_graph_impl": "none", "moe_token_dispatcher_type": "alltoall"},
        "optimizer": {"use_precision_aware_optimizer": True, "exp_avg_dtype": "bf16", "exp_avg_sq_dtype": "bf16"},
    }
    w = workload_from_config(config, KNOWN, w.model, w.layout)
    assert (w.recompute, w.graphs, w.optimizer_bytes, w.dispatcher, w.fp8) == (FULL, (), 8, "alltoall", True)


def test_choices_fit_are_ranked_and_are_none_twice(plan: Plan) -> None:
    steps = [choice.step.total for choice in plan.choices]
    assert steps and steps == sorted(steps)
    assert len({str(choice.workload) for choice in plan.choices}) == len(plan.choices)
    assert all(choice.memory.fits(H100) and choice.workload.layout.world == 16 for choice in plan.choices)
    assert all(0 < choice.mfu < 0.7 for choice in plan.choices)


def test_choices_obey_the_rules_that_a_run_is_checked_by(plan: Plan) -> None:
    for choice in plan.choices:
        w, config = choice.workload, nano_config()
        config.train.micro_batch_size, config.cluster.nproc_per_node = w.micro_batch_size, 16
        assert rule_problems(w) == [] and layout_problems(config, w.layout) == []


def test_refused_layouts_have_reasons(plan: Plan) -> None:
    words = " ".join(plan.refused)
    assert "too large: at least" in words and "the H100 has 79 GB" in words
    assert "model.pipeline_model_parallel_size=8 must divide the model's 52 layers" in words


RULES = {
    "experts and tensor parallelism": (ParallelLayout(8, 2, 1, 1, 8), False, "needs model.sequence_parallel=true"),
    "layers": (ParallelLayout(24, 1, 3, 1, 8), False, "must divide the model's 52 layers"),
    "heads over tensor and context": (ParallelLayout(128, 8, 1, 16, 8), True, "x model.context_parallel_size = 8 x 16"),
    "groups over context": (ParallelLayout(12, 1, 1, 3, 4), False, "multiple or a divisor of model.context_parallel"),
    "experts": (ParallelLayout(24, 1, 1, 1, 3), False, "model.num_moe_experts=128 must be a multiple"),
}


@pytest.mark.parametrize(("layout", "sequence_parallel", "words"), RULES.values(), ids=RULES)
def test_a_rule_of_megatron(layout: ParallelLayout, sequence_parallel: bool, words: str) -> None:
    w = replace(base(), layout=layout, sequence_parallel=sequence_parallel)
    assert any(words in problem for problem in rule_problems(w)), rule_problems(w)


@pytest.mark.parametrize(("pipeline", "refused"), [(1, True), (2, True), (3, True), (4, False), (8, True)])
def test_a_pattern_with_bars_has_one_stage_for_each_rank(pipeline: int, refused: bool) -> None:
    """Megatron-Bridge has no virtual stages in hybrid models, and trained the first ones alone without a word."""
    config = nano_config()
    config.model.hybrid_layer_pattern = "MEM*E|MEM|MEME|MEME/*E/*E"
    model = architecture_from_config(config, KNOWN, 131072)
    assert model is not None and (model.stages, model.layers) == (4, {"M": 8, "E": 7, "*": 1})
    w = replace(base(), model=model, layout=ParallelLayout(8 * pipeline, 1, pipeline, 1, 8))
    problems = rule_problems(w)
    assert bool(problems) == refused
    assert not refused or "set model.pipeline_model_parallel_size=4" in problems[0]
    planned = make_plan(w, 32, GPU_KINDS["h200"]).choices
    assert {choice.workload.layout.pipeline for choice in planned} == {4}


def test_override_words_lead_back_to_the_choice(plan: Plan) -> None:
    seen = set()
    for choice in plan.choices:
        w = choice.workload
        kind = (w.recompute, w.dispatcher, w.layout.tensor > 1, w.layout.pipeline > 1, w.layout.context > 1)
        if kind in seen:
            continue
        seen.add(kind)
        words = [word.lstrip("+") for word in override_words(w, base(), "flex")]
        merged = OmegaConf.merge(OmegaConf.structured(nano_config()), OmegaConf.from_dotlist(words))
        config = OmegaConf.to_object(merged)
        assert isinstance(config, PretrainConfig)
        config.cluster.nproc_per_node = 16
        again = workload_from_config(config, KNOWN, w.model, parallel_layout(config, KNOWN))
        assert again == w, words
    assert len(seen) > 10


PERF_GRAPHS = ("attn", "mamba", "moe_router", "moe_preprocess")
# Changes of Nano's workload, and what the message says: what TransformerConfig of Megatron-Core 0.19 refuses.
RECOMPUTE = {
    "whole layers": ({"recompute": FULL}, "Set ++megatron.model.cuda_graph_impl=none ++megatron.model.cuda_graph_mod"),
    "router": ({"graphs": PERF_GRAPHS}, "with ++megatron.model.cuda_graph_modules=[attn,mamba]."),
    "only the router": ({"graphs": PERF_GRAPHS[2:]}, "with ++megatron.model.cuda_graph_impl=none."),
    "offloaded": ({"offloaded": ("expert_fc1",)}, "megatron.model.offload_modules has expert_fc1, which is a part of"),
    "delayed scaling": (
        {"precision": "fp8_delayed"},
        "recompute_modules has layernorm, which FP8 with delayed scaling",
    ),
}


@pytest.mark.parametrize(("changes", "words"), RECOMPUTE.values(), ids=RECOMPUTE)
def test_what_cannot_be_recomputed(changes: dict, words: str) -> None:
    w = base()
    assert recompute_problems(w) == []
    (problem,) = recompute_problems(replace(w, **changes))
    assert words in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs": PERF_GRAPHS, "graph_impl": "local"},
        {"graphs": (), "graph_impl": "full_iteration", "recompute": FULL},
        {"graphs": PERF_GRAPHS, "recompute": ("layernorm",)},
        {"precision": "fp8"},
        {"offloaded": ("core_attn",)},
    ],
)
def test_what_can_be_recomputed(changes: dict) -> None:
    assert recompute_problems(replace(base(), **changes)) == []


@pytest.mark.parametrize(
    "changes", [RECOMPUTE["router"][0], RECOMPUTE["offloaded"][0], RECOMPUTE["delayed scaling"][0]]
)
def test_no_plan_recomputes_what_megatron_refuses(changes: dict) -> None:
    w = replace(base(), **changes)
    choices = make_plan(w, 16, GPU_KINDS["h200"]).choices
    assert choices and not any(recompute_problems(choice.workload) for choice in choices)
    for choice in choices:
        words = override_words(choice.workload, w, "flex")
        graphs = [word for word in words if "cuda_graph_modules" in word]
        expected = [f"++megatron.model.cuda_graph_modules=[{','.join(choice.workload.graphs)}]"]
        assert graphs == (expected if choice.workload.graphs != w.graphs else [])


def test_a_run_that_recomputes_whole_layers_can_recompute_parts() -> None:
    w = replace(base(), recompute=FULL, graphs=(), graph_impl="none")
    choice = next(c.workload for c in make_plan(w, 16, GPU_KINDS["h200"]).choices if "moe" in c.workload.recompute)
    assert "++megatron.model.recompute_num_layers=null" in override_words(choice, w, "flex"), "Megatron refuses it"


@pytest.mark.parametrize(
    ("changes", "context", "size"),
    [
        ({"seq_length": 8192}, 1, None),
        ({"seq_length": 32768}, 1, None),
        (
            {"seq_length": 32768, "micro_batch_size": 2},
            1,
            "a mask of 2.0 GB",
        ),
        ({"seq_length": 524288}, 8, "a mask of 32.0 GB, and Megatron-Core makes each from tensors of 128.0 GB"),
        ({"seq_length": 524288, "graphs": ("mamba",)}, 8, None),
        ({"seq_length": 524288, "graphs": (), "graph_impl": "none"}, 8, None),
    ],
)
def test_graphs_of_attention_do_not_suit_long_samples(changes: dict, context: int, size: str | None) -> None:
    w = replace(base(), layout=ParallelLayout(8 * context, 1, 1, context, 8), **changes)
    found = mask_warning(w)
    assert found is None if size is None else found is not None and size in found
    assert size is None or (found or "").endswith("out of the graphs: ++megatron.model.cuda_graph_modules=[mamba]")


def test_one_layer_of_attention_in_many_stages_is_warned_of() -> None:
    w = replace(base(), seq_length=524288)
    attention = w.model.layers["*"]
    many = replace(w, layout=ParallelLayout(2 * attention, 1, 2 * attention, 1, 1))
    assert mask_warning(many)


@pytest.mark.parametrize("graphs", [("attn", "mamba"), ("attn",)])
def test_a_plan_for_long_samples_leaves_attention_out_of_the_graphs(graphs: tuple[str, ...]) -> None:
    w = replace(base(), seq_length=131072, global_batch_size=16, graphs=graphs)
    choices = [choice.workload for choice in make_plan(w, 32, GPU_KINDS["h200"]).choices]
    assert choices and not any(mask_warning(choice) for choice in choices)
    assert {"attn" in choice.graphs for choice in choices} == {True, False}, "with context parallelism it may stay"
    without = next(choice for choice in choices if "attn" not in choice.graphs)
    words = override_words(without, w, "flex")
    rest = "modules=[mamba]" if "mamba" in graphs else "impl=none"
    assert f"++megatron.model.cuda_graph_{rest}" in words


def test_a_plan_for_isolated_documents() -> None:
    config = nano_config()
    config.train.document_boundaries = "isolate"
    w = workload_from_config(config, KNOWN, base().model, base().layout)
    assert (w.graph_impl, w.graphs) == ("none", ()), "CUDA graphs are switched off"
    choices = [choice.workload for choice in make_plan(w, 16, GPU_KINDS["h200"]).choices]
    assert choices and {(c.layout.pipeline, c.layout.context) for c in choices} == {(1, 1)}
    assert {c.micro_batch_size for c in choices if c.sequence_parallel} == {1} != {c.micro_batch_size for c in choices}
    assert not any("cuda_graph" in word for c in choices for word in override_words(c, w, "flex"))


def test_without_experts_there_is_nothing_to_dispatch() -> None:
    dense = replace(
        base(), model=replace(base().model, layers={"*": 8, "-": 8}, stage_units=8, num_moe_experts=0, pattern="")
    )
    choices = make_plan(dense, 4, H100).choices
    assert choices and {choice.workload.layout.expert for choice in choices} == {1}
    assert not any("expert" in word or "moe" in word for c in choices for word in override_words(c.workload, dense, ""))


def with_pattern(pattern: str, pipeline: int) -> Workload:
    """Return four ranks that divide a micro model of these layers into pipeline stages."""
    config = nano_config()
    config.model = model("nemotron_3_nano_micro")
    config.model.hybrid_layer_pattern, config.model.pipeline_model_parallel_size = pattern, pipeline
    config.cluster.nproc_per_node = 4
    architecture = architecture_from_config(config, KNOWN, 4096)
    assert architecture is not None
    return workload_from_config(config, KNOWN, architecture, parallel_layout(config, KNOWN))


@pytest.mark.parametrize(
    ("pattern", "pipeline", "without"),
    [
        pytest.param("MEM*EMEM", 2, None, id="each-has-one"),
        pytest.param("MEM*EMEM", 4, "stage 2 has", id="attention-alone"),
        pytest.param("MM*|EMEME", 2, "stage 1 has", id="marked"),
        pytest.param("ME|M*|MM|ME", 4, "stages 2, 3 have", id="two"),
        pytest.param("M*M*", 2, None, id="no-experts-at-all"),
        pytest.param("MEM*EMEM", 1, None, id="one-stage"),
    ],
)
def test_every_stage_has_experts_or_none(pattern: str, pipeline: int, without: str | None) -> None:
    """Ranks with and without experts would wait for each other in the first step."""
    w = with_pattern(pattern, pipeline)
    found = [problem for problem in rule_problems(w) if "no layer of experts" in problem]
    assert len(found) == (without is not None) and all(f": {without} no layer" in problem for problem in found)
    planned = {choice.workload.layout.pipeline for choice in make_plan(w, 4, GPU_KINDS["h200"]).choices}
    assert (pipeline in planned) == (without is None)


def test_experts_of_multi_token_prediction_are_on_the_last_stage() -> None:
    w = with_pattern("ME|M*", 2)
    assert any("stage 2 has" in problem for problem in rule_problems(w))
    w = replace(w, model=replace(w.model, mtp_depths=1, mtp_layers={"*": 1, "E": 1}))
    assert not any("no layer of experts" in problem for problem in rule_problems(w))


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("tensor", 3, "model.tensor_model_parallel_size=3 does not divide the 16 ranks that are left of 16."),
        ("micro_batch_size", 7, "train.micro_batch_size=7 does not divide the 256 samples of a data-parallel rank."),
    ],
)
def test_a_fixed_size_that_fits_nowhere_is_a_reason(name: str, size: int, reason: str) -> None:
    plan = make_plan(base(), 16, H100, {name: size})
    assert not plan.choices and plan.refused[reason]
