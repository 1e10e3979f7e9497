"""Reading the newest line of a run's metrics.jsonl, whatever its length."""

import json
import os
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16


def last_metrics(run_dir: Path) -> dict[str, Any]:
    """The newest line of RUN_DIR/metrics.jsonl that has a "loss"; {} when there is none yet."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _TAIL_BYTES))
            lines = f.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # a line that is being written, or cut at its start
        if isinstance(value, dict) and "loss" in value:
            return value
    return {}


def loss_text(metrics: dict[str, Any]) -> str:
    """The loss for a table, "" when there is none."""
    loss = metrics.get("loss")
    return f"{loss:.4f}" if isinstance(loss, float) else str("" if loss is None else loss)
