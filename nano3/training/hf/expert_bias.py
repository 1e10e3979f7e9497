"""Balance experts without an auxiliary loss: after each step, move a bias on each expert's score against its load.

transformers stores the bias (`e_score_correction_bias`) but never updates it. The rule is megatron.core's
get_updated_expert_bias, from Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts" (2024).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class ExpertBalance:
    """Counts the tokens of each expert in training passes; `update` moves the biases and resets the counts.

    `discard` resets them only: for a step that is left out.

    `add_ranks(tensor)` returns the sum over all ranks.
    """

    def __init__(self, model: Any, rate: float, add_ranks: "Callable[[torch.Tensor], torch.Tensor]") -> None:
        self.rate, self.add_ranks = rate, add_ranks
        self._gates: list[Any] = []
        self._counts: list[Any] = []
        for module in model.modules():
            if hasattr(module, "experts") and hasattr(module, "gate"):
                self._watch(module.experts, module.gate)

    def _watch(self, experts: Any, gate: Any) -> None:
        import torch

        index = len(self._gates)
        self._gates.append(gate)
        self._counts.append(0)

        def count(module: Any, args: tuple[Any, ...]) -> None:
            if module.training and torch.is_grad_enabled():
                chosen = torch.bincount(args[1].flatten(), minlength=len(gate.e_score_correction_bias))
                self._counts[index] += chosen.float()

        experts.register_forward_pre_hook(count)

    def update(self) -> "torch.Tensor | None":
        """Move each bias by `rate` towards balance.

        Returns:
            The tokens of each expert in this step, of shape [layers, experts] and summed over all ranks; None without
            experts.
        """
        import torch

        if not self._gates:
            return None
        with torch.no_grad():
            loads = self.add_ranks(torch.stack(self._counts))
            for index, (gate, counts) in enumerate(zip(self._gates, loads, strict=True)):
                gate.e_score_correction_bias.add_(self.rate * torch.sign(counts.mean() - counts))
                self._counts[index] = 0
        return loads

    def discard(self) -> None:
        """Forget the tokens counted since the last update."""
        self._counts = [0] * len(self._counts)
