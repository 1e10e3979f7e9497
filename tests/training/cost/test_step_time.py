"""Time of a step: what makes it longer, and that the parts of a known case are right."""

from dataclasses import replace
from typing import Any

import pytest
from megatron_helpers import architecture_of

from nano3.training.checks.model_stats import flops_per_token
from nano3.training.checks.parallel_layout import ParallelLayout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.step_time import MEASURED, estimate_step, host_time
from nano3.training.cost.workload import FULL, Workload

H100, H200, GB200 = (GPU_KINDS[name] for name in ("h100", "h200", "gb200"))
LAYOUTS = {
    "tensor": ParallelLayout(16, 8, 1, 1, 8),
    "context": ParallelLayout(16, 1, 1, 8, 8),
    "pipeline": ParallelLayout(16, 1, 4, 1, 4),
    "experts": ParallelLayout(16, 1, 1, 1, 8),
    "experts over nodes": ParallelLayout(16, 1, 1, 1, 16),
}


def nano(layout: ParallelLayout, **changes: Any) -> Workload:
    model = architecture_of("nemotron_3_nano", 131072)
    w = Workload(model, layout, 8192, 1, 64, dispatcher="alltoall", graphs=("attn", "mamba"))
    return replace(w, **({"sequence_parallel": layout.tensor > 1} | changes))


def test_no_step_is_faster_than_the_peak() -> None:
    for layout in LAYOUTS.values():
        w = nano(layout)
        flops = flops_per_token(w.model, w.seq_length) * w.global_batch_size * w.seq_length
        assert estimate_step(w, H100).total > flops / (layout.world * H100.bf16)


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_are_positive_and_add_up(name: str) -> None:
    step = estimate_step(nano(LAYOUTS[name]), H100)
    parts = (step.gpu, step.host, step.exchange, step.bubble, step.gradients, step.optimizer)
    assert min(parts) >= 0 and step.total == pytest.approx(sum(parts))
    assert (step.bubble > 0) == (name == "pipeline")


def test_faster_hardware_is_faster() -> None:
    steps = [estimate_step(nano(LAYOUTS["experts"]), gpu).total for gpu in (H100, H200, GB200)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("recompute", [("moe", "layernorm"), FULL])
def test_recomputation_costs_at_most_another_forward_pass(recompute: tuple[str, ...]) -> None:
    kept, again = (estimate_step(nano(LAYOUTS["experts"], recompute=r), H100).gpu for r in ((), recompute))
    assert kept < again < kept * 4 / 3


def test_experts_on_other_nodes_cost_more_than_on_one_node() -> None:
    one, two = (estimate_step(nano(LAYOUTS[name]), H100).exchange for name in ("experts", "experts over nodes"))
    assert two > 1.5 * one


def test_the_bubble_shrinks_with_more_micro_batches() -> None:
    few, many = (estimate_step(nano(LAYOUTS["pipeline"], global_batch_size=batch), H100) for batch in (64, 1024))
    assert few.bubble == pytest.approx(many.bubble)
    assert many.bubble / many.total < few.bubble / few.total / 8


def test_every_stage_waits_for_the_slowest_one() -> None:
    w = nano(ParallelLayout(8, 1, 2, 1, 4))
    even, uneven = (
        replace(w, model=replace(w.model, pattern=pattern, stage_units=4, layers={"M": 2, "E": 2}))
        for pattern in ("MEME", "MMEE")
    )
    assert estimate_step(uneven, H100).total > 1.1 * estimate_step(even, H100).total


def test_multi_token_prediction_and_the_loss_are_on_the_last_stage() -> None:
    w = nano(ParallelLayout(8, 1, 2, 1, 4))
    predicting = replace(w.model, mtp_depths=2, mtp_layers={"*": 1, "E": 1}, mtp_shared=True)
    added = estimate_step(replace(w, model=predicting), H100).gpu - estimate_step(w, H100).gpu
    alone = replace(w, layout=ParallelLayout(4, 1, 1, 1, 4))
    whole = estimate_step(replace(alone, model=predicting), H100).gpu - estimate_step(alone, H100).gpu
    assert added * alone.layout.data / w.layout.data == pytest.approx(whole, rel=0.1), "not shared by the stages"


def test_small_micro_batches_wait_for_the_host() -> None:
    small = replace(nano(LAYOUTS["experts"], graphs=()), seq_length=256)
    graphs = replace(small, graphs=("attn", "mamba"))
    assert estimate_step(small, H100).host > estimate_step(graphs, H100).host > 0


def test_recomputation_does_not_repeat_what_the_host_does_for_each_expert() -> None:
    w = nano(LAYOUTS["experts"])
    again = replace(w, recompute=("moe",))
    free = replace(MEASURED, host_expert=0.0)
    for one in (w, again):
        share = MEASURED.host_expert * w.local_experts
        assert host_time(one, "E", MEASURED) == pytest.approx(host_time(one, "E", free) + share)
    assert host_time(again, "E", free) == pytest.approx(host_time(w, "E", free) * 4 / 3)


def test_fp8_products_are_faster_and_casts_take_time() -> None:
    w = nano(LAYOUTS["experts"])
    free = replace(MEASURED, casts=0.0)
    assert estimate_step(replace(w, precision="fp8"), H100, free).gpu < estimate_step(w, H100).gpu
    assert (
        estimate_step(replace(w, precision="fp8"), H100, free).gpu
        < estimate_step(replace(w, precision="fp8"), H100).gpu
    )
    a100 = GPU_KINDS["a100"]
    assert estimate_step(replace(w, precision="fp8"), a100) == estimate_step(w, a100)


def test_constants_can_be_replaced() -> None:
    w = nano(LAYOUTS["experts"])
    slower = replace(MEASURED, products=MEASURED.products / 2)
    assert estimate_step(w, H100, slower).gpu > estimate_step(w, H100).gpu
