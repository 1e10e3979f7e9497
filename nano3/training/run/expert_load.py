"""How evenly a mixture of experts divides the tokens of one step, as metrics that both backends record."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def load_metrics(counts: "torch.Tensor", routed: float) -> dict[str, float]:
    """Return the load of the experts of the worst layer, as values for metrics.jsonl.

    expert_imbalance  the largest load of an expert over the mean load; 1 is even, experts / top-k is the most
    expert_min_load   the smallest load of an expert over the mean load; 1 is even, 0 is an unused expert
    expert_entropy    entropy of the loads over that of even loads, from 0 to 1
    expert_dropped    share of the assignments that were dropped because an expert was full, over all layers

    Args:
        counts: Tokens that each expert processed in one step, of shape [layers, experts], summed over all ranks.
        routed: Assignments that the routers made: tokens x top-k x layers, summed over all ranks.

    Returns:
        The values; empty without any token.
    """
    import torch

    counts = counts.double()
    counts = counts[counts.sum(dim=1) > 0]
    if not len(counts):
        return {}
    shares = counts / counts.sum(dim=1, keepdim=True)
    experts = counts.shape[1]
    even = math.log(experts) if experts > 1 else 1.0
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1) / even
    dropped = max(0.0, 1.0 - counts.sum().item() / routed) if routed else 0.0
    return {
        "expert_imbalance": round(shares.max().item() * experts, 4),
        "expert_min_load": round(shares.min().item() * experts, 4),
        "expert_entropy": round(entropy.min().item() if experts > 1 else 1.0, 4),
        "expert_dropped": round(dropped, 6),
    }
