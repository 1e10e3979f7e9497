"""Metrics of a run: metrics.jsonl, TensorBoard, the console and, on request, Weights & Biases.

metrics.jsonl holds one JSON object per line. Training lines have `loss`, validation lines `valid_loss` and
`valid_loss/<dataset>`, results of evaluations `eval/<task>/<metric>`, with the iteration of the export; each start
begins with a line that has `start`, its number, and ends with one that has `exit_code`, unless it is killed. All have
`iteration`, `time` and the seconds of each part since the line before (`run_clock`). A resume drops the lines after the
checkpoint's iteration, except those of starts, so each iteration appears once; the seconds of what it drops are
`lost_s` in the line of the new start. A fresh start renames the file of an earlier training to metrics.1.jsonl.

A full disk does not end a training, as a failed save does not: lines wait in memory for space (`MetricsFile`), and
TensorBoard's file is opened again at the next checkpoint.
"""

import contextlib
import errno
import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from nano3.artifacts import wandb_mirror
from nano3.artifacts.wandb_run import WandbRun
from nano3.config.pretrain import PretrainConfig
from nano3.training.dataset import TrainingData
from nano3.training.order.plan import OrderPlan
from nano3.training.run.bits_per_byte import VALID, BitsPerByte
from nano3.training.run.checkpoints import iteration_of, latest_checkpoint, recorded_checkpoint_dir
from nano3.training.run.evals import PREFIX as EVAL
from nano3.training.run.evals import STDERR, NewEvals, truncate_evals
from nano3.training.run.exports import set_aside_exports
from nano3.training.run.lineage import data_reference, display_name, find_artifact
from nano3.training.run.record import read_latest_start
from nano3.training.run.run_clock import PREFIX, RunClock
from nano3.training.run.startup_timer import PREFIX as STARTUP
from nano3.training.run.startup_timer import StartupTimer
from nano3.utils.console import is_rank_zero, say, warn
from nano3.utils.disk_errors import allow_full_disk
from nano3.utils.errors import Failure, is_failure
from nano3.utils.files import complete_lines, write_json_lines, write_text
from nano3.utils.redaction import without_secrets

FILE = "metrics.jsonl"
MOST_RESULTS = 4  # of an evaluation on the console
WANDB_ID, WANDB_SENT = "wandb_id", "wandb_sent"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without an incomplete last line. Empty if there is no file.

    Raises:
        Failure: A line is damaged; names file and line.
    """
    path = Path(run_dir) / FILE
    return [_parsed(path, number, line) for number, line in enumerate(complete_lines(path), 1)]


def reached_iteration(run_dir: Path) -> int:
    """Return the last iteration that a run has logged or saved, 0 without any."""
    saved = latest_checkpoint(recorded_checkpoint_dir(run_dir))
    logged = [int(line["iteration"]) for line in read_metrics(run_dir)]
    return max([*logged, iteration_of(saved) if saved else 0])


def slowest_resume_s(run_dir: Path) -> float:
    """Return the seconds from the process to the first step of a run's slowest measured resume, 0 without any.

    The start of a new run counts for nothing: it reads no checkpoint, which may take longer than all the rest.

    Raises:
        Failure: The line of a start is damaged.
    """
    path = Path(run_dir) / FILE
    # Every rank reads them before it starts, so the many lines between are not parsed.
    texts = enumerate(complete_lines(path), 1)
    lines = [_parsed(path, number, text) for number, text in texts if '"start"' in text or STARTUP in text]
    slowest, resumed = 0.0, False
    for line in lines:
        if "start" in line:
            resumed = line["iteration"] > 0
        elif resumed:
            slowest = max(slowest, sum(float(line[key]) for key in line if key.startswith(STARTUP)))
    return slowest


def truncate_after(run_dir: Path, iteration: int) -> None:
    """Drop lines of metrics.jsonl after `iteration` but those of starts, and an incomplete last line.

    Only rank 0 acts.
    A start that has nothing to train calls it too, since the process may have been killed after its last checkpoint.
    """
    if not is_rank_zero():
        return
    path = Path(run_dir) / FILE
    lines = read_metrics(run_dir)
    kept = [line for line in lines if not _is_dropped(line, iteration)]
    if not path.is_file() or (len(kept) == len(lines) and path.read_bytes()[-1:] in (b"", b"\n")):
        return
    write_json_lines(path, kept)


def _is_dropped(line: dict[str, Any], iteration: int) -> bool:
    """Return whether a resume from `iteration` drops a line."""
    return line["iteration"] > iteration and "start" not in line


def _start_line(lines: list[dict[str, Any]], iteration: int, started: float, hang: float = 0.0) -> dict[str, Any]:
    """Return the line of a new start.

    Args:
        lines: The lines of the starts before it, before any are dropped.
        iteration: The iteration that it resumes from.
        started: Unix time at which its process was started.
        hang: Unix time of the newest hang that was noticed; 0 for none.
    """
    start: dict[str, Any] = {
        "iteration": iteration,
        "start": 1 + sum("start" in line for line in lines),
        "time": round(started, 2),
    }
    if not lines:
        return start
    dropped = [line for line in lines if _is_dropped(line, iteration)]
    last = max(line["iteration"] for line in lines)
    start["lost_iterations"] = max(0, last - iteration)
    start["lost_s"] = round(sum(v for line in dropped for k, v in line.items() if k.startswith(PREFIX)), 2)
    if "time" not in lines[-1]:
        return start
    ended = lines[-1]["time"]
    if "exit_code" in lines[-1]:
        start["down_s"] = round(max(0.0, started - ended), 2)
    elif ended < hang <= started:
        start["hang_s"], start["down_s"] = round(hang - ended, 2), round(started - hang, 2)
    else:
        start["interrupted_s"] = round(max(0.0, started - ended), 2)
    return start


def _newest_hang(run_dir: Path) -> float:
    """Return the Unix time at which a hang was last noticed (`hang_watch`); 0 for never."""
    return max((path.stat().st_mtime for path in run_dir.glob("hang/rank_*.txt")), default=0.0)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if not isinstance(values, dict) or "iteration" not in values:
            raise ValueError("no metrics of an iteration")
    except ValueError as error:
        raise Failure(
            f"{path}, line {number}: damaged ({error}). Training does not depend on it: remove the line (sed -i "
            f"{number}d {shlex.quote(str(path))}) and start the run again."
        ) from error
    return values


class MetricsFile:
    """metrics.jsonl, to be appended to. While the disk is full, lines are kept in memory."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: The file; created if there is none.
        """
        self._path, self._waiting, self._warned = path, b"", False
        self._file = path.open("ab", buffering=0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._file.closed

    def write(self, values: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            OSError: The file cannot be written for another reason than a full disk.
        """
        self._waiting += (json.dumps(values) + "\n").encode()
        self._write_waiting()

    def sync(self) -> None:
        """Write all lines to the disk, those that wait if there is space.

        Raises:
            OSError: The file cannot be written for another reason than a full disk.
        """
        self._write_waiting()
        if not self._waiting:
            with allow_full_disk(self._warn_once):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: Lines could not be written.
        """
        try:
            self._write_waiting()
            if self._waiting:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        finally:
            self._file.close()

    def _write_waiting(self) -> None:
        with allow_full_disk(self._warn_once):
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
            self._warned = False

    def _warn_once(self) -> None:
        if not self._warned:
            warn(f"{self._path}: no space left on the device. Training continues; lines are kept until there is.")
        self._warned = True


class Metrics:
    """Records the metrics of a run. It does nothing on ranks other than 0."""

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        start_iteration: int = 0,
        config: PretrainConfig | None = None,
        train_iters: int | None = None,
        data: TrainingData | None = None,
        startup: StartupTimer | None = None,
        order: OrderPlan | None = None,
    ) -> None:
        """Open the outputs.

        Args:
            run_dir: The run folder.
            rank: This process's rank.
            start_iteration: The iteration that the run resumes from; 0 renames the metrics of an earlier training.
            config: The configuration of the run.
            train_iters: The last iteration, for the console; by default that of `config`.
            data: The prepared data; with it, losses are also recorded in bits per byte.
            startup: The stages of this start, which are recorded with its first training line.
            order: The plan of a run in nano3's order, which says what each iteration reads of each dataset.
        """
        self.run_dir, self.active = Path(run_dir), rank == 0
        self.total = train_iters or (config.train.train_iters if config else None)
        self.clock, self.startup = RunClock(), startup
        self._bits = BitsPerByte(data) if data else None
        self._order = order
        self._iteration = start_iteration
        self._wandb: WandbRun | None = None
        self._sent = 0  # the last iteration that W&B has from an earlier start; W&B cannot drop lines
        if not self.active:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if not start_iteration:
            self._move_aside()
        set_aside_exports(self.run_dir, start_iteration)
        truncate_evals(self.run_dir, start_iteration)
        hang = _newest_hang(self.run_dir)
        lines = read_metrics(self.run_dir)
        start = _start_line(lines, start_iteration, self.clock.started, hang)
        self._evals = NewEvals(self.run_dir, (line for line in lines if not _is_dropped(line, start_iteration)))
        if start_iteration:
            self._truncate(start_iteration)
        self._file = MetricsFile(self.run_dir / FILE)
        self._file.write(start)
        self._board_dir = (config.logger.tensorboard_dir if config else None) or str(self.run_dir / "tensorboard")
        self._board: Any = self._open_board(start_iteration + 1 if start_iteration else 0)
        if config is not None and wandb_mirror.wandb_settings(config.run.wandb, config.logger).on:
            self._wandb = self._open_wandb(config)

    def log(self, **values: Any) -> None:
        """Record a training line. `iteration` and `loss` are required."""
        if self.active:
            stages = self.startup.metrics() if self.startup else {}
            self.startup = None
            shares = self._order.shares(values["iteration"]) if self._order else None
            self._record(values | (self._bits.train(values["loss"], shares) if self._bits else {}) | stages)
            say(_training_line(values, self.total))
            self._record_evals()

    def log_valid(self, iteration: int, per_dataset: dict[str, float], shares: dict[str, float], **values: Any) -> None:
        """Record a validation line.

        Args:
            iteration: Iterations done.
            per_dataset: Loss of each dataset in nats per token.
            shares: Share of each dataset in the blend; weights the mean that is recorded as `valid_loss`.
            **values: More values of the line.
        """
        if self.active:
            valid_loss = sum(shares[name] * loss for name, loss in per_dataset.items())
            named = {f"valid_loss/{name}": loss for name, loss in per_dataset.items()}
            bits = self._bits.valid(per_dataset, shares) if self._bits else {}
            self._record({"iteration": iteration, "valid_loss": valid_loss, **named, **bits, **values})
            parts = "  ".join(f"{name} {loss:.3f}" for name, loss in per_dataset.items())
            each = f"  {bits[VALID]:.3f} bits per byte" if VALID in bits else ""
            say(f"validation at iteration {iteration}: loss {valid_loss:.4f}{each}  ({parts})")
            self._record_evals()

    def flush(self) -> None:
        """Write all lines to disk. Call it before a checkpoint is saved."""
        if not self.active:
            return
        self._file.sync()
        with self._board_may_fail():
            if self._board is None:
                self._board = self._open_board(self._iteration + 1)
            self._board.flush()

    def close(self, exit_code: int = 0) -> None:
        """Flush and close all outputs, each even if another one fails. A second call does nothing.

        Args:
            exit_code: That of the process. After a failure, that of an output is only a warning.

        Raises:
            OSError: An output could not be written.
        """
        if not self.active or self._file.closed:
            return
        end, failed = {"iteration": self._iteration, "exit_code": exit_code}, is_failure(exit_code)
        steps: list[Callable[[], object]] = [self._record_evals, lambda: self._file.write(end | self._times())]
        steps += [self.flush, self._file.close]
        steps += [lambda: self._board and self._board.close()]
        if wandb := self._wandb:  # without its end, Python's end would wait for W&B without a limit
            steps.append(lambda: wandb.finish(exit_code if failed else 0))
        errors = [error for step in steps if (error := _error_of(step))]
        if errors and not failed:
            raise errors[0]
        if errors:
            warn(f"{self.run_dir / FILE} or a TensorBoard file lacks the end of this start: {errors[0]}")

    def _times(self) -> dict[str, float]:
        return {"time": round(time.time(), 2), **self.clock.take()}

    def _record(self, values: dict[str, Any]) -> None:
        self._iteration = values["iteration"]
        self._send(values | self._times(), again=self._iteration <= self._sent)

    def _record_evals(self) -> None:
        """Record the results of evaluations that ended since the line before."""
        for values in self._evals.take():
            self._send(values | self._times())
            say(_eval_line(values))

    def _send(self, values: dict[str, Any], again: bool = False) -> None:
        """Write a line everywhere, but not to W&B if that has it from an earlier start."""
        self._file.write(values)
        with self._board_may_fail():
            for name, number in values.items() if self._board else ():
                if name != "iteration":
                    self._board.add_scalar(name, number, values["iteration"])
        if self._wandb is not None and not again:
            self._wandb.log(values)

    def _truncate(self, iteration: int) -> None:
        """Drop the lines of iterations that will be repeated."""
        sent = (line for line in read_metrics(self.run_dir) if "loss" in line or "valid_loss" in line)
        last = max((line["iteration"] for line in sent), default=0)
        self._sent = record_last_sent(self.run_dir, last)
        truncate_after(self.run_dir, iteration)

    def _move_aside(self) -> None:
        """Rename the metrics of an earlier training in this folder."""
        path = self.run_dir / FILE
        if path.is_file() and path.stat().st_size:
            number = next(n for n in count(1) if not self.run_dir.joinpath(f"metrics.{n}.jsonl").exists())
            kept = path.rename(self.run_dir / f"metrics.{number}.jsonl")
            say(f"{FILE} of an earlier training in this folder is kept as {kept.name}")
            for name in (WANDB_ID, WANDB_SENT):
                (self.run_dir / name).unlink(missing_ok=True)

    def _open_board(self, first: int) -> Any:
        """Return TensorBoard's writer; it shows no earlier lines of the iterations from `first` on."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(log_dir=self._board_dir, purge_step=first)

    @contextlib.contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """Give up TensorBoard's writer until the next `flush` if it cannot write: it takes no lines after an error."""
        try:
            yield
        except OSError as error:
            if self._board is not None:
                warn(
                    f"{self._board_dir}: {error.strerror or error}. TensorBoard lacks lines up to the next checkpoint; "
                    f"{FILE} has them."
                )
            self._board = None

    def _open_wandb(self, config: PretrainConfig) -> WandbRun:
        """Return the run's W&B run, with the data as its input.

        Its id is kept in the run folder, so that each start continues the same W&B run.

        Raises:
            UserError: wandb is not installed.
        """
        start = read_latest_start(self.run_dir)
        run = WandbRun(
            wandb_mirror.wandb_settings(config.run.wandb, config.logger),
            folder=self.run_dir,
            key="run.wandb.mode",
            id=wandb_run_id(self.run_dir),
            name=display_name(config, start),
            group=config.run.name if start.get("label") else None,
            job_type="pretrain",
            config=without_secrets(asdict(config)),
        )
        run.define_axis("iteration")
        if start and (reference := data_reference(start)):
            if artifact := find_artifact(reference):
                run.use_artifact(artifact)
            else:
                run.use_reference(reference)
        return run


def _error_of(step: Callable[[], object]) -> Exception | None:
    try:
        step()
    except Exception as error:
        return error
    return None


def wandb_run_id(run_dir: Path) -> str:
    """Return the id of this run folder's W&B run. It is created on first use and kept in RUN/wandb_id."""
    path = Path(run_dir) / WANDB_ID
    if not path.is_file():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()


def record_last_sent(run_dir: Path, iteration: int) -> int:
    """Record and return the last iteration that this folder's W&B run has received; 0 without a W&B run.

    A start that is killed early has sent less than the one before it, so the maximum is kept in a file.

    Args:
        run_dir: The run folder.
        iteration: The last iteration of the latest start.
    """
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
        parts.append(f"{_duration((total - iteration) * values['seconds_per_iteration'])} left")
    return "  ".join(parts)


def _eval_line(values: dict[str, Any]) -> str:
    """Return the first results as text, without their standard errors."""
    parts = [f"{k.removeprefix(EVAL)} {v:.4f}" for k, v in values.items() if k.startswith(EVAL) and STDERR not in k]
    more = f"  and {len(parts) - MOST_RESULTS} more" if len(parts) > MOST_RESULTS else ""
    return f"evaluation of iteration {values['iteration']}: {'  '.join(parts[:MOST_RESULTS])}{more}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
