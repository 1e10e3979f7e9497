"""Counting the tokens of each expert, with megatron.core's own router on the CPU."""

from pathlib import Path
from typing import Any

import pytest
from training_processes import Child

pytest.importorskip("torch")


def routers(capacity: float | None = None, mtp: bool = False) -> tuple[Any, list[Any]]:
    """Return a module with the routers of layers 2 and 4 of a model, top-2 of 4 experts, and what they chose.

    With `mtp` there is a third one, of the second layer of multi-token prediction.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import TransformerConfig

    class CpuRouter(TopKRouter):
        def gating(self, input: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(input, self.weight)  # megatron.core's would move the weight to a GPU

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
    config = TransformerConfig(
        num_layers=4, hidden_size=8, num_attention_heads=1, num_moe_experts=4, moe_router_topk=2,
        moe_router_load_balancing_type="none", moe_expert_capacity_factor=capacity, use_cpu_initialization=True,
        add_bias_linear=False, bias_activation_fusion=False,
    )  # fmt: skip
    torch.manual_seed(0)
    chosen: list[Any] = []
    model = torch.nn.Module()
    for number, is_mtp in [(2, False), (4, False), *([(2, True)] if mtp else [])]:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        router = CpuRouter(config, pg_collection=groups, is_mtp_layer=is_mtp)
        router.set_layer_number(number)
        torch.nn.init.normal_(router.weight)
        router.register_forward_hook(lambda module, args, out: chosen.append(out[1].sum(dim=0)))
        model.add_module(f"{'mtp' if is_mtp else 'layer'}{number}", router)
    return model, chosen


def count_steps() -> dict[str, Any]:
    """Count one step of two micro batches between others; return the counts and what the routers chose."""
    import torch

    from nano3.training.megatron.expert_counts import ExpertCounts

    model, chosen = routers()
    counts = ExpertCounts.watch([model], 4, lambda values: values)
    assert counts is not None

    def forward() -> None:
        for router in model.children():
            router(torch.randn(16, 1, 8))

    forward()
    counts.start()
    chosen.clear()
    for _ in range(2):
        with torch.no_grad():
            forward()  # the first pass of a recomputed layer
        forward()
    model.eval()
    forward()
    model.train()
    metrics = counts.metrics()
    forward()
    wanted = {2: chosen[2] + chosen[6], 4: chosen[3] + chosen[7]}
    return {
        "metrics": metrics,
        "counts": counts._counts.tolist(),
        "wanted": {layer: counted.tolist() for layer, counted in wanted.items()},
    }


def test_only_training_passes_of_the_step_are_counted(tmp_path: Path) -> None:
    found = Child(count_steps, (), tmp_path / "log.txt").result()
    assert found["counts"] == [[0] * 4, found["wanted"][2], [0] * 4, found["wanted"][4]]
    assert sum(map(sum, found["counts"])) == 2 * 2 * 16 * 2
    largest = max(map(max, found["wanted"].values()))
    assert found["metrics"]["expert_imbalance"] == pytest.approx(largest / 16)
    assert found["metrics"]["expert_dropped"] == 0


def count_with_mtp() -> tuple[list[list[int]], list[list[int]]]:
    """Return the counts of a step of a model with multi-token prediction, and what its three routers chose."""
    import torch

    from nano3.training.megatron.expert_counts import ExpertCounts

    model, chosen = routers(mtp=True)
    counts = ExpertCounts.watch([model], 4, lambda values: values)
    assert counts is not None
    counts.start()
    for router in model.children():
        router(torch.randn(16, 1, 8))
    return counts._counts.tolist(), [one.tolist() for one in chosen]


def test_layers_of_multi_token_prediction_have_rows_of_their_own(tmp_path: Path) -> None:
    """They are numbered from 1 again."""
    counts, chosen = Child(count_with_mtp, (), tmp_path / "log.txt").result()
    none = [0] * 4
    assert counts == [none, chosen[0], none, chosen[1], none, chosen[2]]


def count_dropped() -> tuple[dict[str, float], int]:
    """Return the metrics of a step with a capacity, and the assignments that were kept."""
    import torch

    from nano3.training.megatron.expert_counts import ExpertCounts

    model, chosen = routers(capacity=0.5)
    counts = ExpertCounts.watch([model], 4, lambda values: values)
    assert counts is not None
    counts.start()
    for router in model.children():
        router(torch.randn(16, 1, 8))
    return counts.metrics(), int(sum(c.sum() for c in chosen))


def test_dropped_assignments_are_counted(tmp_path: Path) -> None:
    metrics, kept = Child(count_dropped, (), tmp_path / "log.txt").result()
    assert 0 < kept < 64
    assert metrics["expert_dropped"] == pytest.approx(1 - kept / 64)


def test_a_dense_model_has_no_counts() -> None:
    from nano3.training.megatron.expert_counts import ExpertCounts

    assert ExpertCounts.watch([], None, lambda values: values) is None
