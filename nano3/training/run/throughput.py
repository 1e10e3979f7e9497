"""Speed of a run: tokens per second, and what it is of the hardware's peak.

The work of a token is counted from the architecture (`checks.model_stats.flops_per_token`): forward and backward pass,
without recomputation.
"""

from dataclasses import dataclass

# Dense bf16 peak of one GPU in FLOP/s, from NVIDIA's data sheets, by a substring of the device name.
PEAK_FLOPS = {
    "B300": 2.25e15,
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def peak_flops(device_name: str) -> float | None:
    """Return the peak dense bf16 FLOP/s of a GPU, or None if it is not in the table."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


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
