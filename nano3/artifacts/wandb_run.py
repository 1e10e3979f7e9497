"""A W&B run that training never waits for: it starts, takes artifacts and ends in a thread of its own.

A server that cannot be reached at the start makes the run an offline one. A server that goes away later is tried again
until the end; what it has not taken by then stays in the run's folder. Both name the command that sends it,
`wandb sync FOLDER`.
"""

import contextlib
import queue
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nano3.artifacts import wandb_mirror
from nano3.artifacts.store import Artifact
from nano3.utils.child_processes import kill_children
from nano3.utils.console import warn

INIT_S = 10.0  # for wandb.init
FINISH_S = 12.0  # to send what is left at the end
LIMIT_S = 18.0  # for all that may be left at the end: start, artifacts and sending; W&B's own end takes a second

_current: "WandbRun | None" = None


def current() -> "WandbRun | None":
    """Return the W&B run of this process, or None."""
    return _current


class WandbRun:
    """A W&B run. No method but `finish` waits for W&B, and none raises its errors: they are warnings."""

    def __init__(self, settings: wandb_mirror.WandbSettings, *, folder: Path, key: str, **more: Any) -> None:
        """Begin to start the run.

        Args:
            settings: Mode, project and entity.
            folder: The parent of the run's `wandb` folder.
            key: The dotted key of the mode, for error messages.
            more: Further arguments of `wandb.init`.

        Raises:
            UserError: wandb is not installed.
        """
        global _current
        self._wandb = wandb_mirror.load_wandb(settings, key)
        self._settings, self._folder, self._more = settings, folder, more
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] | None = []  # lines until the run is open; None if it cannot be opened
        self._run: Any = None  # takes lines, since all earlier ones are recorded
        self._opened: Any = None
        self._exit_code = 0
        self._sync_as: str | None = None  # the id with which an offline run is sent, if it is not its own
        self._complete = self._given_up = False
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[Any], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()
        _current = self

    def log(self, values: dict[str, Any]) -> None:
        """Record a line of metrics."""
        with self._lock:
            if self._waiting is None:
                return
            if self._run is None:
                self._waiting.append(values)
                return
            run = self._run
            with wandb_mirror.log_failures("recording metrics"):
                run.log(values)
                return
            self._waiting = None  # log the failure once, not at every iteration

    def log_artifact(self, artifact: Artifact, alias: str | None) -> None:
        """Record a local artifact as an output, by reference and with its alias."""
        self._jobs.put((f"recording {artifact.reference}", lambda run: wandb_mirror.log_artifact(run, artifact, alias)))

    def use_artifact(self, artifact: Artifact) -> None:
        """Record a local artifact as an input."""
        what = f"recording that this run uses {artifact.reference}"
        self._jobs.put((what, lambda run: wandb_mirror.use_artifact(run, artifact)))

    def use_reference(self, reference: str) -> None:
        """Record an artifact that only W&B knows as an input."""
        self._jobs.put((f"recording that this run uses {reference}", lambda run: run.use_artifact(reference)))

    def define_axis(self, name: str) -> None:
        """Plot all metrics over one of them."""

        def define(run: Any) -> None:
            run.define_metric(name)
            run.define_metric("*", step_metric=name)

        self._jobs.put(("naming the axis", define))

    def finish(self, exit_code: int = 0) -> bool:
        """End the run within `LIMIT_S` seconds, and return whether everything is recorded, there or offline.

        Args:
            exit_code: 0 if the run succeeded.
        """
        global _current
        _current = None if _current is self else _current
        self._exit_code = exit_code
        self._jobs.put(None)
        self._thread.join(LIMIT_S)
        if self._thread.is_alive():
            self._given_up = True
            warn(f"W&B did not take everything within {LIMIT_S:.0f} s. {self._how_to_send()}")
        if not self._complete or self._sync_as:  # what could not be sent is in a file
            self._end_service()
        return self._complete

    def _end_service(self) -> None:
        """End W&B's process, which repeats what has failed for minutes. Python's end would wait for it."""
        kill_children("wandb-core")
        # W&B may raise any error when its process is gone; it may also exit with the status of that process.
        with contextlib.suppress(Exception, SystemExit):
            self._wandb.teardown()

    def _log_failures(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that logs a failure of W&B, unless this run has given up and ended W&B's process."""
        return wandb_mirror.log_failures(what, lambda: self._given_up)

    def _work(self) -> None:
        run = None
        with self._log_failures("starting a run"):
            self._opened = run = self._open()
        with self._lock:
            for values in self._waiting or [] if run is not None else []:
                with self._log_failures("recording metrics"):
                    run.log(values)
            self._run, self._waiting = run, None if run is None else []
        if run is None:
            return
        while (job := self._jobs.get()) is not None:
            what, record = job
            with self._log_failures(what):
                record(run)
        try:
            run.finish(exit_code=self._exit_code)
            self._complete = True
        except (Exception, SystemExit) as error:  # whatever W&B raises must not look like a failed training
            if self._given_up:
                return
            if isinstance(error, TimeoutError):
                warn(f"W&B did not take everything within {FINISH_S:.0f} s. {self._how_to_send()}")
                return
            warn(f"W&B: ending the run failed: {str(error) or type(error).__name__}. {self._how_to_send()}")

    def _open(self) -> Any:
        """Return the run, an offline one if the server cannot be reached, or None."""
        if self._settings.mode == "offline":
            return self._init("offline")
        problem = wandb_mirror.connection_problem(wandb_mirror.server_url(self._wandb))
        if not problem:
            try:
                return self._init("online")
            except (Exception, SystemExit) as error:
                if self._given_up:
                    return None
                problem = f"{str(error).strip() or type(error).__name__} (not logged in? `wandb login`)"
                # W&B's process may try to open that run for minutes, and takes no second one with its id.
                self._sync_as, self._more["id"] = self._more.get("id"), None
        with self._log_failures("starting a run offline"):
            self._opened = run = self._init("offline")
            warn(f"W&B: {problem}. This start is recorded offline. {self._how_to_send()}")
            return run
        return None

    def _init(self, mode: str) -> Any:
        return self._wandb.init(
            mode=mode,
            project=self._settings.project,
            entity=self._settings.entity,
            dir=str(self._folder),
            resume="allow",
            settings=limits(self._wandb),
            **self._more,
        )

    def _how_to_send(self) -> str:
        if self._opened is None:
            return f"What it has is in {self._folder}/wandb."
        options = "" if self._opened.settings.mode == "offline" else "--include-online "  # else sync skips such a run
        options += f"--id {self._sync_as} " if self._sync_as else ""
        return f"Send it later: wandb sync {options}{shlex.quote(str(Path(self._opened.dir).parent))}"


def limits(wandb: Any) -> Any:
    """Return wandb.Settings that bound start and end, and repeat failed uploads every ten seconds for a day."""
    wanted = {
        "init_timeout": INIT_S,
        "finish_timeout": FINISH_S,
        "finish_timeout_raises": True,
        "x_file_stream_retry_wait_max_seconds": 10,
        "x_file_stream_retry_max": 8640,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
