"""What a run achieved, as a table: from its metrics.jsonl and its newest checkpoint. Imports no torch."""

from pathlib import Path
from typing import Any

from nano3.training.run.checkpoints import latest_checkpoint, read_checkpoint_info, recorded_checkpoint_dir
from nano3.training.run.metrics import FILE, read_metrics
from nano3.utils.console import table
from nano3.utils.errors import UserError

END = 5


def summarize(run_dir: Path) -> list[tuple[str, str]]:
    """Rows of (what, value): iterations, parameters, tokens, losses from start to end, speed, wall time.

    Raises `UserError` when the run has no training lines yet.
    """
    lines = read_metrics(run_dir)
    train = [line for line in lines if "loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    if not train:
        raise UserError(f"{Path(run_dir) / FILE} has no training lines yet: nothing to sum up.")
    last = train[-1]
    rows = [("iterations", f"{last['iteration']:,}"), ("tokens", f"{last['consumed_tokens']:,}")]
    checkpoint = latest_checkpoint(recorded_checkpoint_dir(run_dir))
    if checkpoint is not None:
        rows.insert(0, ("parameters", f"{read_checkpoint_info(checkpoint).parameters:,}"))
    rows.append((f"training loss, last {len(train[-END:])} lines", f"{train[0]['loss']:.2f} → {final_loss(train):.2f}"))
    names = [key for key in (valid[-1] if valid else {}) if key.startswith("valid_loss")]
    for name in names:
        rows.append((name.replace("valid_loss", "validation loss").replace("/", ", "), _from_to(valid, name)))
    rows.append(("speed", f"{median([line['tokens_per_s'] for line in train]):,.0f} tokens/s"))
    if "elapsed_s" in lines[-1]:
        rows.append(("wall time", f"{lines[-1]['elapsed_s']:.0f} s"))
    return rows


def final_loss(train: list[dict[str, Any]]) -> float:
    """Mean training loss of the last lines: a single batch of a small run says little."""
    return sum(line["loss"] for line in train[-END:]) / len(train[-END:])


def print_summary(run_dir: Path) -> None:
    """Print `summarize` as a table."""
    table(f"Run {Path(run_dir).name}", ["what", "value"], summarize(run_dir), right=["value"])


def _from_to(lines: list[dict[str, Any]], name: str) -> str:
    return f"{lines[0][name]:.2f} → {lines[-1][name]:.2f}"


def median(values: list[float]) -> float:
    """The middle one; of an even number the upper of the two."""
    return sorted(values)[len(values) // 2]
