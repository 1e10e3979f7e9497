"""Memory by part: who holds what in which layout."""

from dataclasses import replace
from typing import Any

import pytest

from nano3.training.checks.model_stats import Architecture, count_kinds, count_layers, count_parameters
from nano3.training.checks.parallel_layout import ParallelLayout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.memory import FIXED_BYTES, LOGIT_BYTES, estimate_memory, graph_bytes, kept_bytes
from nano3.training.cost.workload import FULL, Workload

LAYERS = {"M": 4, "E": 4, "*": 4, "-": 4}


def workload(layout: ParallelLayout, layers: dict[str, int] | None = None, **changes: Any) -> Workload:
    model = Architecture(
        LAYERS if layers is None else layers, 64, 4096, 4, 2, 16, 128, mamba_num_heads=8, mamba_head_dim=16,
        mamba_state_dim=16, mamba_num_groups=2, num_moe_experts=8, moe_router_topk=2, moe_ffn_hidden_size=32,
        moe_shared_expert_intermediate_size=48,
    )  # fmt: skip
    return replace(Workload(model, layout, 1024, 1, 64), **changes)


ONE = ParallelLayout(1, 1, 1, 1, 1)


def test_one_gpu_holds_every_parameter() -> None:
    memory, count = estimate_memory(workload(ONE)), count_parameters(workload(ONE).model).total
    assert memory.weights == memory.gradients == pytest.approx(2 * count, rel=1e-3)
    assert memory.optimizer == pytest.approx(12 * count, rel=1e-3)
    assert memory.total == pytest.approx(memory.weights * 8 + memory.activations + memory.temporary + FIXED_BYTES)


def test_gradients_and_optimizer_as_the_recipe_keeps_them() -> None:
    memory = estimate_memory(workload(ONE, gradient_bytes=4, optimizer_bytes=8))
    assert (memory.gradients, memory.optimizer) == (2 * memory.weights, 4 * memory.weights)


def test_the_optimizer_is_divided_over_data_and_context_ranks() -> None:
    alone = estimate_memory(workload(ONE))
    for layout in (ParallelLayout(8, 1, 1, 1, 1), ParallelLayout(8, 1, 1, 8, 1)):
        assert estimate_memory(workload(layout)).optimizer == pytest.approx(alone.optimizer / 8)
        assert estimate_memory(workload(layout, sharded_optimizer=False)).optimizer == alone.optimizer


def test_experts_are_divided_and_their_state_over_the_ranks_that_repeat_them() -> None:
    model = workload(ONE).model
    experts, total = count_parameters(model).routed_experts, count_parameters(model).total
    divided = estimate_memory(workload(ParallelLayout(8, 1, 1, 1, 4)))
    assert divided.weights == pytest.approx(2 * (total - experts + experts / 4), rel=1e-3)
    assert divided.optimizer == pytest.approx(12 * ((total - experts) / 8 + experts / 4 / 2), rel=1e-3)


@pytest.mark.parametrize(("context", "micro"), [(1, 1), (1, 4), (4, 1)])
def test_the_graph_of_attention_takes_a_mask_of_length_squared(context: int, micro: int) -> None:
    """Seven graphed layers of attention kept 8.6 GB at a length of 32,768, 2.5 GB at 4,096 with as many tokens."""
    graphed = {"graph_impl": "transformer_engine", "graphs": ("attn",), "micro_batch_size": micro}
    w = workload(ParallelLayout(context, 1, 1, context, 1), seq_length=8192, **graphed)
    short = replace(w, seq_length=1024, micro_batch_size=8 * micro)
    expected = micro * (8192**2 - 8 * 1024**2) / context
    assert graph_bytes(w, "*") - graph_bytes(short, "*") == pytest.approx(expected)
    assert graph_bytes(replace(w, graphs=()), "*") == 0


@pytest.mark.parametrize(("tensor", "context"), [(1, 1), (2, 1), (8, 1), (1, 4), (2, 4)])
def test_logits_are_divided_once(tensor: int, context: int) -> None:
    """A rank has its share of the vocabulary for all tokens of its share of the sequence."""
    layout = ParallelLayout(tensor * context, tensor, 1, context, 1)
    w = workload(layout, {}, micro_batch_size=3, sequence_parallel=tensor > 1)
    tokens = 3 * 1024 / context
    assert estimate_memory(w).temporary == pytest.approx(tokens / tensor * (4096 * LOGIT_BYTES + 4 * 64))


@pytest.mark.parametrize(("pipeline", "batch", "held"), [(1, 4, 1), (4, 8, 4), (8, 8, 8), (8, 2, 2), (8, 16, 8)])
def test_the_first_stage_keeps_its_layers_for_the_micro_batches_in_flight(pipeline: int, batch: int, held: int) -> None:
    w = workload(ParallelLayout(pipeline, 1, pipeline, 1, 1), {"*": 64}, global_batch_size=batch, seq_length=2**16)
    first = estimate_memory(replace(w, model=replace(w.model, vocab_size=128)))  # else the last stage needs more
    assert first.activations == pytest.approx(64 * kept_bytes(w, "*") / pipeline * held)


def stages_of(pattern: str, pipeline: int, **changes: Any) -> Workload:
    layers, units = count_kinds(pattern), pattern.count("|") + 1 if "|" in pattern else count_layers(pattern)
    w = workload(ParallelLayout(pipeline, 1, pipeline, 1, 1), layers, **changes)
    return replace(w, model=replace(w.model, pattern=pattern, stage_units=units, vocab_size=0))


@pytest.mark.parametrize(("pattern", "pipeline", "heaviest"), [("M*EEM*", 3, 1), ("EE|M*|M", 3, 0), ("M*M*M-EE", 4, 3)])
def test_the_stage_with_the_largest_layers_counts(pattern: str, pipeline: int, heaviest: int) -> None:
    w = stages_of(pattern, pipeline, micro_batch_size=1, global_batch_size=1)
    alone = [
        stages_of("".join(kind * int(n) for kind, n in stage.items()), 1) for stage in w.model.stage_layers(pipeline)
    ]
    expected = [estimate_memory(one).weights for one in alone]
    assert estimate_memory(w).weights == pytest.approx(max(expected)) == pytest.approx(expected[heaviest])
    assert sum(expected) == pytest.approx(estimate_memory(replace(w, layout=ONE)).weights)


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"pattern": "MEM*"}, [{"M": 1, "E": 1}, {"M": 1, "*": 1}]),
        ({"pattern": "M|EM*"}, [{"M": 1}, {"E": 1, "M": 1, "*": 1}]),
        ({"pattern": ""}, [{"M": 1, "E": 0.5, "*": 0.5}] * 2),
        ({"pattern": "MEM*", "stage_units": 0}, [{"M": 1, "E": 0.5, "*": 0.5}] * 2),
    ],
    ids=["a pattern", "marked", "blocks of a dense model", "chosen otherwise"],
)
def test_the_layers_of_each_stage(changes: dict[str, Any], stages: list[dict[str, float]]) -> None:
    units = 2 if "|" in changes["pattern"] else 4
    model = replace(workload(ONE, {"M": 2, "E": 1, "*": 1}).model, **({"stage_units": units} | changes))
    assert model.stage_layers(2) == stages


@pytest.mark.parametrize("pipeline", [-(10**12), -1, 1, 3, 10**12])
@pytest.mark.parametrize("layers", [{"*": 10**12, "-": 10**12}, {"*": -1, "-": -1}, {}])
def test_absurd_numbers_have_estimates(pipeline: int, layers: dict[str, int]) -> None:
    """Other checks report them; until then nothing may fail or take all memory."""
    w = workload(ParallelLayout(8, 1, pipeline, 1, 1), layers)
    assert isinstance(estimate_memory(w).total, float) and len(w.model.stage_layers(pipeline)) <= 1024


@pytest.mark.parametrize("kind", LAYERS)
def test_recomputation_keeps_less_and_whole_layers_keep_their_input(kind: str) -> None:
    kept = kept_bytes(workload(ONE), kind)
    assert kept_bytes(workload(ONE, recompute=FULL), kind) == 2 * 64 * 1024
    modules = kept_bytes(workload(ONE, recompute=("moe", "layernorm")), kind)
    assert modules < kept if kind in "E*-" else modules == kept


@pytest.mark.parametrize("kind", LAYERS)
def test_activations_grow_with_tokens_and_fall_with_ranks_that_share_them(kind: str) -> None:
    kept = kept_bytes(workload(ONE), kind)
    assert kept_bytes(workload(ONE, micro_batch_size=4), kind) == 4 * kept
    assert kept_bytes(workload(ParallelLayout(4, 1, 1, 4, 1)), kind) == kept / 4
    split, whole = (
        kept_bytes(workload(ParallelLayout(4, 4, 1, 1, 1), sequence_parallel=sequence), kind)
        for sequence in (True, False)
    )
    assert kept / 4 == pytest.approx(split)
    assert split < whole < kept


def with_mtp(w: Workload, depths: int = 2) -> Workload:
    return replace(w, model=replace(w.model, mtp_depths=depths, mtp_layers={"*": 1}, mtp_shared=True))


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(("pipeline", "embeddings"), [(1, 0), (4, 1)])
def test_the_stage_of_multi_token_prediction_has_an_embedding_of_its_own(
    tensor: int, pipeline: int, embeddings: int
) -> None:
    """With one stage it is that of the model. What comes besides are a layer of attention and the projection."""
    w = workload(ParallelLayout(tensor * pipeline, tensor, pipeline, 1, 1), {"*": 8})
    w = replace(w, model=replace(w.model, vocab_size=2**20))  # so that the last stage needs most
    matrix = 2**20 * 64 / tensor
    before, after = (estimate_memory(each).weights / 2 for each in (w, with_mtp(w)))
    own = count_parameters(with_mtp(w).model).total - count_parameters(w.model).total
    assert after - before == pytest.approx(embeddings * matrix + own / tensor, rel=1e-3, abs=200)


@pytest.mark.parametrize(("tensor", "sequence", "context"), [(1, False, 1), (2, True, 1), (2, False, 1), (1, False, 4)])
def test_each_depth_of_multi_token_prediction_keeps_six_states(tensor: int, sequence: bool, context: int) -> None:
    layout = ParallelLayout(tensor * context, tensor, 1, context, 1)
    w = workload(layout, {"*": 2}, sequence_parallel=sequence, micro_batch_size=2)
    tokens = 2 * 1024 / context / (tensor if sequence else 1)
    for depths in (1, 2, 3):
        kept = estimate_memory(with_mtp(w, depths)).activations - estimate_memory(w).activations
        assert kept == pytest.approx(depths * (12 * tokens * 64 + kept_bytes(w, "*")))
    whole = replace(w, recompute=FULL)
    kept = estimate_memory(with_mtp(whole)).activations - estimate_memory(whole).activations
    assert kept == pytest.approx(2 * 6 * tokens * 64)


def test_a_gpu_needs_room_for_more_than_tensors() -> None:
    memory, gpu = estimate_memory(workload(ONE)), GPU_KINDS["h100"]
    assert memory.fits(gpu)
    assert not memory.fits(replace(gpu, memory=memory.total + 2**30))
    assert memory.fits(replace(gpu, memory=memory.total * 1.2 + 8 * 2**30))
