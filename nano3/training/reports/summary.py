"""The result of a run as a table, from its metrics.jsonl and newest checkpoint. Imports no torch."""

import statistics
from pathlib import Path
from typing import Any

from nano3.training.reports.goodput import text_bar, time_use
from nano3.training.run.checkpoints import latest_checkpoint, read_checkpoint_info, recorded_checkpoint_dir
from nano3.training.run.metrics import FILE, read_metrics
from nano3.utils.console import say, table
from nano3.utils.errors import UserError

LAST_LINES = 5  # training lines that the final loss is averaged over


def summarize(run_dir: Path) -> list[tuple[str, str]]:
    """Return rows (name, value): parameters, iterations, tokens, first and last losses, speed, wall time.

    Raises:
        UserError: The run has no training lines yet.
    """
    lines = read_metrics(run_dir)
    train = [line for line in lines if "loss" in line]
    valid = [line for line in lines if "valid_loss" in line]
    if not train:
        raise UserError(f"{Path(run_dir) / FILE} has no training lines yet: nothing to summarize.")
    last = train[-1]
    rows = [("iterations", f"{last['iteration']:,}"), ("tokens", f"{last['consumed_tokens']:,}")]
    checkpoint = latest_checkpoint(recorded_checkpoint_dir(run_dir))
    if checkpoint is not None:
        rows.insert(0, ("parameters", f"{read_checkpoint_info(checkpoint).parameters:,}"))
    rows.append(
        (f"training loss, last {len(train[-LAST_LINES:])} lines", f"{train[0]['loss']:.2f} → {final_loss(train):.2f}")
    )
    for key, text in (("valid_loss", "validation loss"), ("valid_bits_per_byte", "bits per byte")):
        for name in [name for name in (valid[-1] if valid else {}) if name.partition("/")[0] == key]:
            rows.append((name.replace(key, text).replace("/", ", "), _from_to(valid, name)))
    rows.append(("speed", f"{statistics.median_high(line['tokens_per_s'] for line in train):,.0f} tokens/s"))
    if elapsed := [line["elapsed_s"] for line in lines if "elapsed_s" in line]:
        rows.append(("wall time", f"{elapsed[-1]:.0f} s"))
    return rows


def final_loss(train: list[dict[str, Any]]) -> float:
    """Return the mean training loss of the last lines; the loss of one batch is noisy."""
    losses = [float(line["loss"]) for line in train[-LAST_LINES:]]
    return sum(losses) / len(losses)


def print_summary(run_dir: Path) -> None:
    """Print the rows of `summarize` as a table, and where the time went."""
    table(f"Run {Path(run_dir).name}", ["what", "value"], summarize(run_dir), right=["value"])
    if use := time_use(read_metrics(run_dir)):
        say(text_bar(use))


def _from_to(lines: list[dict[str, Any]], name: str) -> str:
    first = next(line[name] for line in lines if name in line)  # a run of an earlier version may lack it at first
    return f"{first:.2f} → {lines[-1][name]:.2f}"
