"""Count the tokens of each expert in the steps that are logged, with hooks on megatron.core's routers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nano3.training.run.expert_load import load_metrics

if TYPE_CHECKING:
    import torch


class ExpertCounts:
    """Tokens of each expert in one step. Between `start` and `metrics` it counts; otherwise it costs nothing.

    `routed` are the assignments before any are dropped (megatron.model.moe_expert_capacity_factor).
    """

    def __init__(self, counts: "torch.Tensor", layers: int) -> None:
        """Begin without routers.

        Args:
            counts: Zeros of shape [layers of the whole model, experts] and dtype int64, on this rank's device. The
                layers of multi-token prediction come last.
            layers: Number of layers without those of multi-token prediction.
        """
        self._counts = counts
        self._layers = layers
        self._routed = 0
        self._active = False

    @classmethod
    def watch(
        cls, model: list[Any], experts: int | None, max_over_ranks: Callable[[list[float]], list[float]]
    ) -> "ExpertCounts | None":
        """Return the counts of a model's routers, or None for a model without experts. Every rank must call it.

        Args:
            model: The model chunks of this rank.
            experts: Number of experts; None for a dense model.
            max_over_ranks: Returns the element-wise maximum over all ranks.
        """
        if not experts:
            return None
        import torch
        from megatron.core.transformer.moe.router import TopKRouter

        routers = [module for chunk in model for module in chunk.modules() if isinstance(module, TopKRouter)]
        own = [
            float(max((router.layer_number or 0 for router in routers if router.is_mtp_layer == is_mtp), default=0))
            for is_mtp in (False, True)
        ]
        layers, mtp_layers = map(int, max_over_ranks(own))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = cls(torch.zeros((layers + mtp_layers, experts), dtype=torch.int64, device=device), layers)
        for router in routers:
            router.register_forward_hook(found.count)
        return found

    def start(self) -> None:
        """Count from here on."""
        self._counts.zero_()
        self._routed, self._active = 0, True

    def count(self, router: Any, _args: Any, output: Any) -> None:
        """Add a router's assignments, a forward hook; `output` is (probabilities, map of shape [tokens, experts])."""
        import torch

        # Recomputation runs the forward pass twice, the first time without gradients.
        layer, chosen = router.layer_number, output[1]
        if not (self._active and router.training and torch.is_grad_enabled() and chosen.dtype == torch.bool):
            return
        if layer is not None:
            # Multi-token prediction counts its layers from 1 again.
            row = layer - 1 + self._layers * router.is_mtp_layer
            self._counts[row] += chosen.sum(dim=0)
            self._routed += chosen.shape[0] * router.topk

    def metrics(self) -> dict[str, float]:
        """Return the load over all ranks and stop counting. Every rank must call it at the same iterations."""
        import torch
        import torch.distributed as dist

        self._active = False
        routed = torch.tensor([self._routed], dtype=torch.int64, device=self._counts.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._counts)
            dist.all_reduce(routed)
        return load_metrics(self._counts, float(routed.item()))
