"""Section `guard` of a run: iterations whose loss or gradient norm is abnormal."""

from dataclasses import dataclass

# Values of guard.action.
ACTIONS = ("none", "warn", "skip", "rollback")


@dataclass
class GuardConfig:
    """What happens when the loss or the gradient norm of an iteration is abnormal.

    Each event is one line of <run folder>/guard.jsonl, with the documents of the iteration's batch.
    """

    # none; warn (record the iteration); skip (also leave the weights as they are); or rollback (return to the newest
    # checkpoint and continue without the samples of this iteration). NaN and infinity end the run with none and warn.
    action: str = "warn"
    # Iterations over which the median is taken. Until there are as many, only NaN and infinity count as abnormal.
    window: int = 100
    # First iterations of a run in which only NaN and infinity count as abnormal; null uses
    # scheduler.lr_warmup_iters.
    ignore_first: int | None = None
    # Distance above the median that is abnormal, in standard deviations estimated from the median absolute
    # deviation (MAD).
    threshold: float = 8.0
    # Smallest abnormal rise of the loss above the median, as a share of the median; it matters if the window is flat.
    min_loss_rise: float = 0.1
    # Smallest abnormal rise of the gradient norm above the median, as a share of the median.
    min_grad_norm_rise: float = 2.0
    # Rollbacks of one run; at the next abnormal iteration the run fails.
    max_rollbacks: int = 5
    # Steps in a row that guard.action=skip may leave out; then the run fails.
    max_consecutive_skips: int = 10


def may_roll_back(guard: GuardConfig, backend: str) -> bool:
    """Return whether the guard may end the ranks with 77: Megatron-Bridge cannot leave out a step with NaN.

    Args:
        guard: The section `guard`.
        backend: "transformers" or "megatron".
    """
    return guard.action == "rollback" or (guard.action == "skip" and backend == "megatron")
