"""Read the points of a scaling law from run folders, and check that their losses can be compared."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.config import PretrainConfig
from nano3.training.checks.model_stats import architecture_from_config, count_parameters
from nano3.training.dataset import open_data
from nano3.training.megatron import schema
from nano3.training.reports.scaling_law import Point
from nano3.training.run.metrics import read_metrics
from nano3.training.run.record import load_run_config, read_finish_record, read_latest_start
from nano3.utils.errors import Nano3Error, UserError

# A vocabulary to count parameters with; the embeddings are left out again.
ANY_VOCABULARY = 1024


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run.

    `conditions` are the settings that must be the same for losses to be comparable; `total` counts all parameters
    without the embeddings, and `epochs` is how often the training read its data on average, if that is known.
    """

    point: Point
    total: float
    config: PretrainConfig
    conditions: dict[str, Any]
    epochs: float | None


def counted_parameters(config: PretrainConfig) -> tuple[float, float]:
    """Return the active and all parameters of a run's model, without embedding and output matrix.

    Raises:
        UserError: The architecture depends on a recipe that is not recorded.
    """
    known = schema.load_bundled(config.recipe._target_) if config.backend == "megatron" else None
    model = architecture_from_config(config, known, ANY_VOCABULARY)
    if model is None:
        raise UserError(f"{config.run.name}: its architecture is not known here, so its parameters cannot be counted.")
    counts = count_parameters(model)
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tied else 2)
    return counts.active - embeddings, counts.total - embeddings


def training_tokens(config: PretrainConfig) -> float:
    """Return the tokens of a whole run."""
    return float(config.train.train_iters * config.train.global_batch_size * config.train.seq_length)


def measure_run(name: str, run_dir: Path) -> MeasuredRun | str:
    """Return a run as a point, or why it is none: it is not finished, or has no loss.

    Args:
        name: How the run is called in messages.
        run_dir: Its folder.

    Raises:
        Nano3Error: A record of the run is damaged.
    """
    config = load_run_config(run_dir / "config.yaml")
    finish = read_finish_record(run_dir)
    total = config.train.train_iters
    if finish is None or finish["iteration"] < total:
        at = f"at {finish['iteration']:,}" if finish else "not finished"
        return f"{name}: {at} of {total:,} iterations; before the end its learning rate has not decayed"
    valid = [line for line in read_metrics(run_dir) if "valid_loss" in line and line["iteration"] == total]
    if not valid:
        return f"{name}: no validation at its last iteration (train.eval_interval=0)"
    loss = valid[-1]["valid_loss"]
    if not isinstance(loss, int | float) or not math.isfinite(loss) or loss <= 0:
        return f"{name}: its validation loss is {loss}"
    active, all_parameters = counted_parameters(config)
    tokens = training_tokens(config)
    datasets = sum(key.startswith("valid_loss/") for key in valid[-1]) or 1
    point = Point(name, active, tokens, float(loss))
    return MeasuredRun(point, all_parameters, config, conditions(config, run_dir, datasets), _epochs(config, tokens))


def conditions(config: PretrainConfig, run_dir: Path, datasets: int) -> dict[str, Any]:
    """Return what the losses of two runs must have in common.

    Args:
        config: The run's configuration.
        run_dir: Its folder.
        datasets: Number of validation sets.
    """
    train = config.train
    return {
        "data (with its tokenizer)": read_latest_start(run_dir)["data"]["fingerprint"],
        "train.seq_length": train.seq_length,
        "train.document_boundaries": train.document_boundaries,
        "train.loss_mask.eod": train.loss_mask.eod,
        "train.mixture": repr(train.mixture),
        "train.seed": train.seed,  # the order of the validation samples depends on it
        "validation samples of a dataset": -(-train.eval_iters // datasets) * train.global_batch_size,
    }


def _epochs(config: PretrainConfig, tokens: float) -> float | None:
    try:
        return tokens / max(open_data(Path(config.run.data)).tokens("train"), 1)
    except (Nano3Error, OSError):  # the data may be elsewhere by now; the law does not need it
        return None


def comparison_problems(runs: Sequence[MeasuredRun]) -> list[str]:
    """Return which runs were not measured like the others: each with what differs."""
    problems = []
    for key in runs[0].conditions if runs else ():
        values = Counter(run.conditions[key] for run in runs)
        usual = values.most_common(1)[0][0]
        for run in runs:
            if run.conditions[key] != usual:
                others = f"{values[usual]} other runs"
                differs = f"{key} is {_short(run.conditions[key])}, and {_short(usual)} in {others}"
                if key == "train.mixture":  # long lists, whose beginnings say little
                    differs = f"{key} is not that of {others}"
                problems.append(
                    f"{run.point.name}: {differs}: their losses cannot be compared. Leave it out, or run it again."
                    + _hint(key)
                )
    return problems


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _hint(key: str) -> str:
    if key != "validation samples of a dataset":
        return ""
    return (
        " With train=ladder all sizes measure the same samples if ladder.eval_samples is a multiple of the largest "
        "batch times the number of datasets."
    )
