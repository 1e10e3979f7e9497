"""Values of which each rank of Megatron knows a part: sums, maxima, and what is computed from them."""

import math
from collections.abc import Callable
from typing import Any

# The names that megatron.core's router gives its losses.
BALANCING_LOSSES = ("load_balancing_loss", "seq_load_balancing_loss", "global_load_balancing_loss")


def max_over_ranks(values: list[float]) -> list[float]:
    """Return the element-wise maximum over all ranks. Every rank must call this at the same iterations."""
    return _reduced(values, "float64", "MAX")


def sum_values_over_ranks(values: list[float]) -> list[float]:
    """Return the element-wise sum over all ranks. Every rank must call this at the same iterations."""
    return _reduced(values, "float64", "SUM")


def sum_over_ranks(number: int) -> int:
    """Return the sum of a number over all ranks. Every rank must call this at the same iterations."""
    return _reduced([number], "int64", "SUM")[0]


def _reduced[Number: (int, float)](values: list[Number], dtype: str, operation: str) -> list[Number]:
    """Reduce values element by element over all ranks.

    Args:
        values: The values of this rank.
        dtype: A type of torch, by name.
        operation: A member of torch.distributed.ReduceOp, by name.
    """
    import torch
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return values
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reduced = torch.tensor(values, device=device, dtype=getattr(torch, dtype))
    dist.all_reduce(reduced, op=getattr(dist.ReduceOp, operation))
    found: list[Number] = reduced.tolist()
    return found


def reads_own_samples() -> bool:
    """Return whether no rank before this one reads the same samples: those of a split model do."""
    from megatron.core import parallel_state

    first = parallel_state.is_pipeline_first_stage(ignore_virtual=True)
    tensor, context = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_rank()
    return bool(first and tensor == 0 and context == 0)


def all_parameters(model: list[Any]) -> int:
    """Return the number of parameters of the whole model, of which this rank may hold a part or a copy.

    Every rank must call it.

    Args:
        model: The chunks of the model on this rank, wrapped by Megatron-Core.
    """
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.module import param_is_not_shared

    expert_group = parallel_state.get_expert_tensor_parallel_group()
    expert_copy = parallel_state.get_expert_data_parallel_rank()
    copy = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    own = 0
    for parameter in (p for chunk in model for p in chunk.parameters()):
        if (copy if getattr(parameter, "allreduce", True) else expert_copy) == 0 and param_is_not_shared(parameter):
            first = tensor_parallel.param_is_not_tensor_parallel_duplicate(parameter, expert_tp_group=expert_group)
            own += parameter.numel() if first else 0
    return sum_over_ranks(own)


def moe_balance(experts: int | None, sum_over: Callable[[list[float]], list[float]]) -> dict[str, float]:
    """Return the router's load-balancing losses, each a mean over all layers of experts and all samples.

    A loss equals its coefficient when all experts receive the same number of tokens. Megatron keeps the part of a loss
    that this rank's tokens and layers have, and clears it after the event in which this is called.

    Args:
        experts: Number of experts; None for a dense model.
        sum_over: Returns the element-wise sum over all ranks. Every rank must call it at the same iterations.
    """
    if not experts:
        return {}
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    tracked, own = get_moe_metrics_tracker().metrics, []
    for name in BALANCING_LOSSES:
        if (entry := tracked.get(name)) is None:
            own += [0.0, 0.0]
            continue
        layers = entry.values[entry.values != 0]
        # The parts of the ranks of this group add up to one loss, and each of these ranks counts the layer.
        parts = entry.reduce_group.size() if entry.reduce_group is not None else 1
        own += [float(layers.sum()) * parts, float(layers.numel())]
    sums = sum_over(own)
    found = zip(BALANCING_LOSSES, sums[::2], sums[1::2], strict=True)
    return {f"moe_{name}": total / layers / get_num_microbatches() for name, total, layers in found if layers}


def mtp_metrics(depths: int | None, sum_over: Callable[[list[float]], list[float]]) -> dict[str, float]:
    """Return the loss and the hit rate of each further token that multi-token prediction predicts.

    Megatron adds them up over the micro batches of an iteration (`MTPLossLoggingHelper`), on the ranks of the last
    pipeline stage, and clears them after the event in which this is called.

    Args:
        depths: Number of further tokens; None or 0 without multi-token prediction.
        sum_over: Returns the element-wise sum over all ranks. Every rank must call it at the same iterations.
    """
    if not depths:
        return {}
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    tracker = MTPLossLoggingHelper.tracker
    own = [[0.0] * depths] * 3
    if "loss_values" in tracker:
        own = [tracker[f"{name}_values"].double().tolist() for name in ("loss", "correct", "total")]
    ranks, *sums = sum_over([float("loss_values" in tracker), *own[0], *own[1], *own[2]])
    losses, hits, tokens = (sums[i * depths : (i + 1) * depths] for i in range(3))
    found = {}
    for depth in range(depths):
        if ranks:
            found[f"mtp_{depth + 1}_loss"] = losses[depth] / (ranks * get_num_microbatches())
        if tokens[depth]:
            found[f"mtp_{depth + 1}_accuracy"] = hits[depth] / tokens[depth]
    return found


def loss_from_last_stage(loss: float | None) -> float:
    """Return the loss on every rank. With pipeline stages, only the ranks of the last one know it."""
    return max_over_ranks([-math.inf if loss is None else loss])[0]
