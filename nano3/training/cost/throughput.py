"""Speed of a run: tokens per second, and its share of the hardware's peak.

The work of a token is counted from the architecture (`checks.model_stats.flops_per_token`): forward and backward pass,
without recomputation.
"""

from dataclasses import dataclass

from nano3.training.cost.gpus import peak_flops


@dataclass(frozen=True)
class Throughput:
    """Computes the speed of a step.

    Attributes:
        tokens: Tokens of one iteration.
        flops_per_token: Floating-point operations per token; None if the architecture is not known.
        gpus: Number of GPUs; 0 on CPUs.
        device_name: Name of a GPU; its peak may be unknown.
    """

    tokens: int
    flops_per_token: float | None = None
    gpus: int = 0
    device_name: str = ""

    def metrics(self, seconds: float) -> dict[str, float]:
        """Return the values for metrics.jsonl of iterations that took `seconds` each."""
        found = {"tokens_per_s": round(self.tokens / seconds, 1), "seconds_per_iteration": round(seconds, 5)}
        if not self.gpus:
            return found
        found["tokens_per_s_per_gpu"] = round(self.tokens / seconds / self.gpus, 1)
        if self.flops_per_token:
            flops = self.flops_per_token * self.tokens / seconds / self.gpus
            found["tflops_per_gpu"] = round(flops / 1e12, 3)
            if peak := peak_flops(self.device_name):
                found["mfu"] = round(flops / peak, 5)
        return found
