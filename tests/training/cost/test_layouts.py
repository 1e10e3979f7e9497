"""Every layout once, its rules, and words that lead back to it."""

from dataclasses import replace

import pytest
from megatron_helpers import NANO, architecture_of
from omegaconf import OmegaConf

from nano3.config import PretrainConfig
from nano3.training.checks.parallel_layout import ParallelLayout, layout_problems, parallel_layout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.layouts import Plan, make_plan, override_words, rule_problems
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


def test_stages_of_a_pattern_with_bars_are_counted_by_its_bars() -> None:
    model = replace(architecture_of("nemotron_3_nano", 131072), stage_units=6)
    w = replace(base(), model=model, layout=ParallelLayout(24, 1, 3, 1, 8))
    assert not any("must divide" in problem for problem in rule_problems(w))


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


def test_without_experts_there_is_nothing_to_dispatch() -> None:
    dense = replace(base(), model=replace(base().model, layers={"*": 8, "-": 8}, stage_units=8, num_moe_experts=0))
    choices = make_plan(dense, 4, H100).choices
    assert choices and {choice.workload.layout.expert for choice in choices} == {1}
    assert not any("expert" in word or "moe" in word for c in choices for word in override_words(c.workload, dense, ""))
