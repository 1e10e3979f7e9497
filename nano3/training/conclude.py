"""What is shown when a run has reached its end: a table, a picture and, for a small model, some of its own text."""

from pathlib import Path

from nano3.config import PretrainConfig
from nano3.console import say
from nano3.files import write_text
from nano3.training.plot import plot_losses
from nano3.training.sample import exported_model, generate
from nano3.training.summary import print_summary


def conclude(config: PretrainConfig, run_dir: Path) -> None:
    """Print the summary, draw loss.png, and continue `logger.sample_prompts`. What is there is only shown again."""
    print_summary(run_dir)
    picture, samples = run_dir / "loss.png", run_dir / "samples.txt"
    fresh = not picture.exists() or picture.stat().st_mtime < (run_dir / "metrics.jsonl").stat().st_mtime
    if fresh:
        plot_losses(run_dir)
    if config.backend == "transformers" and config.logger.sample_prompts:
        if fresh or not samples.exists():
            written = generate(exported_model(run_dir), config.logger.sample_prompts)
            write_text(samples, "\n\n".join(f"[{s.prompt}]{s.text}" for s in written) + "\n")
        say("\nThe model continues [a prompt]:\n")
        say(samples.read_text())
    say(f"loss curve: {picture}")
