"""What the ranks of a split model know together, with megatron.core's process groups, tracker and layers on CPUs."""

from pathlib import Path
from typing import Any

import pytest
from training_processes import Child

LAYERS, MICRO_BATCHES = 4, 2


def join(folder: str, rank: int, sizes: dict[str, int]) -> None:
    """Join four ranks that share out a model by `sizes`, arguments of initialize_model_parallel."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    parallel_state.initialize_model_parallel(**sizes)
    init_num_microbatches_calculator(0, None, MICRO_BATCHES, 1, 1)


def balance(rank: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the losses that nano3 finds and those that Megatron reports, for four layers of experts."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from nano3.training.megatron.over_ranks import moe_balance, sum_values_over_ranks

    tracker, stages = get_moe_metrics_tracker(), parallel_state.get_pipeline_model_parallel_world_size()
    own = range(LAYERS // stages * parallel_state.get_pipeline_model_parallel_rank(), LAYERS)[: LAYERS // stages]
    all_but_pipeline = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    groups = {
        "seq_load_balancing_loss": (parallel_state.get_tensor_and_context_parallel_group(), True),
        "global_load_balancing_loss": (all_but_pipeline, False),
    }
    torch.manual_seed(rank)
    for name, (group, averaged) in groups.items():
        for layer in own:
            for _ in range(MICRO_BATCHES):
                value = torch.rand(()) + 0.5
                tracker.record(name, value, layer + 1, LAYERS, reduce_group=group, needs_dp_avg=averaged)
    found = moe_balance(8, sum_values_over_ranks)
    reported: dict[str, Any] = {}
    tracker.report(1 / MICRO_BATCHES, 1, num_layers=LAYERS, total_loss_dict=reported)
    return found, {f"moe_{name}": float(value) for name, value in reported.items()}


def parameters() -> int:
    """Return the number of parameters of a model of two stages: two matrices, a norm, and experts."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from megatron.core.transformer.transformer_config import TransformerConfig

    from nano3.training.megatron.over_ranks import all_parameters

    config = TransformerConfig(num_layers=4, hidden_size=8, num_attention_heads=2, use_cpu_initialization=True)
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    model = torch.nn.Module()
    for stage in range(2):
        if stages == 1 or stage == parallel_state.get_pipeline_model_parallel_rank():
            matrix = ColumnParallelLinear(8, 16, config=config, init_method=torch.nn.init.zeros_, bias=False)
            model.add_module(f"matrix{stage}", matrix)
            model.add_module(f"norm{stage}", torch.nn.LayerNorm(8, bias=False))
            experts = 4 // parallel_state.get_expert_model_parallel_world_size()
            weights = torch.nn.Parameter(torch.zeros(experts, 8, 4))
            weights.allreduce = False  # so Megatron marks what belongs to the groups of experts
            model.register_parameter(f"experts{stage}", weights)
    return all_parameters([model])


SPLITS = {
    "tensor-data": {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1},
    "context-data": {"context_parallel_size": 2},
    "pipeline-tensor": {
        "pipeline_model_parallel_size": 2,
        "tensor_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
    "experts-pipeline": {"expert_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
}


def known(folder: str, rank: int, sizes: dict[str, int]) -> tuple[int, dict[str, float], dict[str, float]]:
    join(folder, rank, sizes)
    return parameters(), *balance(rank)


@pytest.mark.parametrize("split", SPLITS)
def test_every_rank_knows_the_whole_model(tmp_path: Path, split: str) -> None:
    """Every parameter is counted once, and the balancing losses are those that Megatron reports."""
    pytest.importorskip("megatron.core")
    ranks = [Child(known, (str(tmp_path), rank, SPLITS[split]), tmp_path / f"{rank}.txt") for rank in range(4)]
    for count, found, reported in [rank.result() for rank in ranks]:
        assert count == 2 * (8 * 16 + 8 + 4 * 8 * 4)
        assert found == pytest.approx(reported, rel=1e-5)
        assert sorted(found) == ["moe_global_load_balancing_loss", "moe_seq_load_balancing_loss"]


def tracked(depths: int | None, filled: bool) -> tuple[dict[str, float], list[list[float]]]:
    """Return the metrics of two micro batches in Megatron's tracker, and what was summed over the ranks."""
    import torch
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    from nano3.training.megatron.over_ranks import mtp_metrics

    init_num_microbatches_calculator(0, None, 8, 4, 1)
    if filled:
        MTPLossLoggingHelper.tracker |= {
            "loss_values": torch.tensor([6.0, 8.0]),
            "correct_values": torch.tensor([25.0, 0.0]),
            "total_values": torch.tensor([100.0, 0.0]),
        }
    seen: list[list[float]] = []

    def two_ranks_and_an_earlier_stage(values: list[float]) -> list[float]:
        seen.append(values)
        return [2 * value for value in values]

    return mtp_metrics(depths, two_ranks_and_an_earlier_stage), seen


@pytest.mark.parametrize(
    ("depths", "filled", "wanted"),
    [
        (2, True, {"mtp_1_loss": 3.0, "mtp_1_accuracy": 0.25, "mtp_2_loss": 4.0}),
        (2, False, {}),
        (0, True, {}),
        (None, True, {}),
    ],
    ids=["filled", "no-last-stage", "zero", "none"],
)
def test_losses_of_further_tokens(tmp_path: Path, depths: int | None, filled: bool, wanted: dict) -> None:
    """Every rank takes part in the sum, also one of an earlier pipeline stage, which has no losses."""
    pytest.importorskip("megatron.core")
    found, seen = Child(tracked, (depths, filled), tmp_path / "log.txt").result()
    assert found == wanted
    assert [len(values) for values in seen] == ([7] if depths else [])
