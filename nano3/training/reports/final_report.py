"""The report at the end of a run: a table, a plot and, for a small model, generated text."""

from collections.abc import Callable
from pathlib import Path

from nano3.config import PretrainConfig
from nano3.training.hf.generate import exported_model, generate
from nano3.training.reports.plot import plot_losses
from nano3.training.reports.summary import print_summary
from nano3.utils.console import say, warn, write
from nano3.utils.errors import Nano3Error
from nano3.utils.files import write_text


def write_final_report(config: PretrainConfig, run_dir: Path) -> None:
    """Print the summary, plot loss.png, and generate text for `logger.sample_prompts`.

    Plot and text are reused if they are newer than the metrics. A failure is only a warning: the run is finished.

    Args:
        config: The run's configuration.
        run_dir: The run folder.
    """
    metrics, picture = run_dir / "metrics.jsonl", run_dir / "loss.png"
    fresh = not picture.exists() or not metrics.exists() or picture.stat().st_mtime < metrics.stat().st_mtime
    _try("no summary", lambda: print_summary(run_dir))
    drawn = not fresh or _try("no loss.png", lambda: plot_losses(run_dir))
    if config.backend == "transformers" and config.logger.sample_prompts:
        _try("no samples", lambda: _show_samples(config, run_dir, fresh))
    if drawn:
        say(f"loss curve: {picture}")


def _show_samples(config: PretrainConfig, run_dir: Path, fresh: bool) -> None:
    samples = run_dir / "samples.txt"
    if fresh or not samples.exists():
        written = generate(exported_model(run_dir), config.logger.sample_prompts)
        write_text(samples, "\n\n".join(f"[{s.prompt}]{s.text}" for s in written) + "\n")
    write(f"\nText generated from [a prompt]:\n\n{samples.read_text()}\n")


def _try(missing: str, show: Callable[[], object]) -> bool:
    """Return whether `show` succeeded; otherwise print why not."""
    try:
        show()
    except ModuleNotFoundError as error:
        warn(f"{missing}: {error.name} is not installed. The run is finished.")
    except Exception as error:  # also of a broken library for plots or models
        text = str(error) if isinstance(error, Nano3Error | OSError) else f"{type(error).__name__}: {error}."
        warn(f"{missing}: {text} The run is finished.")
    else:
        return True
    return False
