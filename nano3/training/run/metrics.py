"""Metrics of a run: metrics.jsonl and TensorBoard always, Weights & Biases when asked, lines on the console.

metrics.jsonl holds one object a line. A resume drops the lines after the checkpoint's iteration, which will be written
again, so every iteration stands there once; a fresh start keeps the file of the training before it as metrics.1.jsonl.
Training lines have `loss`, validation lines `valid_loss` and
`valid_loss/<dataset>`.
"""

import json
import os
import secrets
import shlex
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from nano3.artifacts import wandb_mirror
from nano3.config.pretrain import PretrainConfig
from nano3.training.run.lineage import data_reference, display_name, find_artifact
from nano3.training.run.record import read_latest_start
from nano3.utils.console import is_rank_zero, say
from nano3.utils.errors import Failure
from nano3.utils.files import atomic_open, write_text
from nano3.utils.redaction import without_secrets

FILE = "metrics.jsonl"
WANDB_ID, WANDB_SENT = "wandb_id", "wandb_sent"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; a last line cut off by a kill is left out. Empty when there is no file.

    Raises `Failure` naming file and line when one is damaged.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")[:-1]
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def truncate_after(run_dir: Path, iteration: int) -> None:
    """Drop what metrics.jsonl holds of later iterations, which no checkpoint has; also a line that was cut off.

    Rank 0 alone does it. A start with nothing to do needs it too: it may follow a kill after its checkpoint.
    """
    if not is_rank_zero():
        return
    path = Path(run_dir) / FILE
    lines = read_metrics(run_dir)
    kept = [line for line in lines if line["iteration"] <= iteration]
    if not path.is_file() or (len(kept) == len(lines) and path.read_bytes()[-1:] in (b"", b"\n")):
        return
    with atomic_open(path) as f:
        f.writelines((json.dumps(line) + "\n").encode() for line in kept)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or "iteration" not in values:
            raise ValueError("no metrics of an iteration")
    except ValueError as error:
        raise Failure(
            f"{path}, line {number}: damaged ({error}). Nothing is trained from it: remove that line (sed -i "
            f"{number}d {shlex.quote(str(path))}), and the run goes on."
        ) from error
    return values


class Metrics:
    """Everything that is recorded about a run. Does nothing on ranks other than 0.

    `start_iteration` is the iteration that the run goes on from (0 for a fresh start: earlier metrics are moved aside).
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        start_iteration: int = 0,
        config: PretrainConfig | None = None,
        train_iters: int | None = None,
    ) -> None:
        self.run_dir, self.active = Path(run_dir), rank == 0
        self.total = train_iters or (config.train.train_iters if config else None)
        self._wandb: Any = None
        self._sent = 0  # the last iteration that W&B had from an earlier start; it takes nothing back
        if not self.active:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if start_iteration:
            self._keep_up_to(start_iteration)
        else:
            self._move_aside()
        self._file = (self.run_dir / FILE).open("a", encoding="utf-8")
        self._board = self._open_board(config, start_iteration)
        if config is not None and wandb_mirror.wandb_settings(config.run.wandb, config.logger).on:
            self._wandb = self._open_wandb(config)

    def log(self, **values: Any) -> None:
        """One training line; `iteration` and `loss` are needed, other numbers as the backend has them."""
        if self.active:
            self._record(values)
            say(_training_line(values, self.total))

    def log_valid(self, iteration: int, per_dataset: dict[str, float], shares: dict[str, float], **values: Any) -> None:
        """One validation line: each dataset's loss, and the blend's, which is their mean weighted by `shares`; in nats
        per token."""
        if self.active:
            valid_loss = sum(shares[name] * loss for name, loss in per_dataset.items())
            named = {f"valid_loss/{name}": loss for name, loss in per_dataset.items()}
            self._record({"iteration": iteration, "valid_loss": valid_loss, **named, **values})
            parts = "  ".join(f"{name} {loss:.3f}" for name, loss in per_dataset.items())
            say(f"validation at iteration {iteration}: loss {valid_loss:.4f}  ({parts})")

    def flush(self) -> None:
        """Bring all lines to the disk; called before a checkpoint that counts on them."""
        if self.active:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self, exit_code: int = 0) -> None:
        """Flush and close everything; safe to call twice."""
        if self.active and not self._file.closed:
            self.flush()
            self._file.close()
            self._board.close()
            if self._wandb is not None:
                with wandb_mirror.log_failures("ending the run"):
                    self._wandb.finish(exit_code=exit_code)

    def _record(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        for name, number in values.items():
            if name != "iteration":
                self._board.add_scalar(name, number, values["iteration"])
        if self._wandb is not None and values["iteration"] > self._sent:
            with wandb_mirror.log_failures("recording metrics"):
                self._wandb.log(values)
                return
            self._wandb = None  # told once, not at every iteration

    def _keep_up_to(self, iteration: int) -> None:
        """Drop lines of iterations that will be done again."""
        last = max((line["iteration"] for line in read_metrics(self.run_dir)), default=0)
        self._sent = record_last_sent(self.run_dir, last)
        truncate_after(self.run_dir, iteration)

    def _move_aside(self) -> None:
        """Keep what an earlier training in this folder has recorded: a fresh start is no part of it."""
        path = self.run_dir / FILE
        if path.is_file() and path.stat().st_size:
            number = next(n for n in count(1) if not self.run_dir.joinpath(f"metrics.{n}.jsonl").exists())
            kept = path.rename(self.run_dir / f"metrics.{number}.jsonl")
            say(f"{FILE} of an earlier training in this folder is kept as {kept.name}")
            for name in (WANDB_ID, WANDB_SENT):
                (self.run_dir / name).unlink(missing_ok=True)

    def _open_board(self, config: PretrainConfig | None, start_iteration: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = config.logger.tensorboard_dir if config else None
        purge = start_iteration + 1 if start_iteration else 0
        return SummaryWriter(log_dir=folder or str(self.run_dir / "tensorboard"), purge_step=purge)

    def _open_wandb(self, config: PretrainConfig) -> Any:
        """The same W&B run on every start (its id lies in the run folder), with the data as its input.

        None when W&B does not work. Raises `UserError` when it is not installed.
        """
        start = read_latest_start(self.run_dir)
        run = wandb_mirror.start_run(
            wandb_mirror.wandb_settings(config.run.wandb, config.logger),
            folder=self.run_dir,
            key="run.wandb.mode",
            id=wandb_run_id(self.run_dir),
            name=display_name(config, start),
            group=config.run.name if start.get("label") else None,
            job_type="pretrain",
            config=without_secrets(asdict(config)),
        )
        if run is None:
            return None
        with wandb_mirror.log_failures("naming the axis"):
            run.define_metric("iteration")
            run.define_metric("*", step_metric="iteration")
        if start and (reference := data_reference(start)):
            if artifact := find_artifact(reference):
                wandb_mirror.use_artifact(run, artifact)
            else:
                wandb_mirror.use_reference(run, reference)
        return run


def wandb_run_id(run_dir: Path) -> str:
    """The id of this run folder's W&B run, made on first use and kept in `wandb_run_id`."""
    path = Path(run_dir) / WANDB_ID
    if not path.is_file():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()


def record_last_sent(run_dir: Path, iteration: int) -> int:
    """The last iteration that the W&B run of this folder has had, `iteration` being that of the last start; 0 without
    such a run. Kept in a file, for a start that is killed early has had less than the one before it."""
    path = Path(run_dir) / WANDB_SENT
    if not (Path(run_dir) / WANDB_ID).is_file():
        return 0
    sent = max(iteration, int(path.read_text()) if path.is_file() else 0)
    write_text(path, f"{sent}\n")
    return sent


def _training_line(values: dict[str, Any], total: int | None) -> str:
    iteration = values["iteration"]
    width = len(str(total or iteration))
    parts = [f"iteration {iteration:>{width}}" + (f"/{total}" if total else ""), f"loss {values['loss']:.4f}"]
    for name, text in (("lr", "lr {:.2e}"), ("grad_norm", "grad norm {:.2f}"), ("tokens_per_s", "{:,.0f} tokens/s")):
        if values.get(name) is not None:
            parts.append(text.format(values[name]))
    if total and values.get("seconds_per_iteration"):
        parts.append(f"{_clock((total - iteration) * values['seconds_per_iteration'])} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
