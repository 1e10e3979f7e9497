"""Hugging Face exports of a run's checkpoints: where they are, and how a run writes them while it trains.

    RUN/exports/iter_0000100/          a complete export
    CHECKPOINTS/.export_0000100/       hard links to a checkpoint whose export is not complete
    RUN/logs/export_0000100.log        the output of its process

A checkpoint that is due is linked, which takes no time and no space, and a process of low priority converts the links.
So `checkpoint.keep_last` may remove the checkpoint meanwhile, and after a kill the next start exports what is still
linked.
"""

import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from nano3.config import PretrainConfig
from nano3.training.run.checkpoints import checkpoint_fingerprint, folder_name, iteration_folders, iteration_of
from nano3.utils.console import say, warn
from nano3.utils.errors import Nano3Error
from nano3.utils.files import fsync_dir, name_aside, temp_name
from nano3.utils.provenance import ROOT
from nano3.utils.records import read_record

_POLL_S = 0.2
# In each export: what it was made of.
INFO = "nano3_export.json"
_LINKS = ".export_"
# Environment of a rank, which would make the export's process join the group of the training.
_RANK_VARIABLES = re.compile(r"(RANK|WORLD_SIZE|LOCAL_|GROUP_|ROLE_|MASTER_|TORCHELASTIC_).*")


@dataclass(frozen=True)
class ExportInfo:
    """The contents of nano3_export.json.

    Attributes:
        run_dir: The run folder.
        iteration: The iteration of the checkpoint.
        checkpoint: The fingerprint of the checkpoint.
    """

    run_dir: str
    iteration: Annotated[int, msgspec.Meta(ge=0)]
    checkpoint: str


def read_export_info(export: Path) -> ExportInfo:
    """Read what an export was made of.

    Raises:
        FileNotFoundError: It is not an export of nano3, or of an earlier version.
        DamagedRecordError: The record is damaged.
    """
    return read_record(export / INFO, ExportInfo, "Export the checkpoint again.")


def exports_dir(run_dir: Path) -> Path:
    """Return the folder of the exports that a run writes while it trains."""
    return Path(run_dir) / "exports"


def export_command(run_dir: Path, iteration: int | None) -> str:
    """Return the command that exports a checkpoint by hand.

    Args:
        run_dir: Run folder.
        iteration: The checkpoint, whose export goes to the run's exports; None for the newest one.
    """
    words = ["nano3", "export", str(run_dir)]
    if iteration is not None:
        words += ["--iteration", str(iteration), "--output", str(exports_dir(run_dir) / folder_name(iteration))]
    return shlex.join(words)


def complete_exports(run_dir: Path) -> list[Path]:
    """Return the exports of a run, oldest first."""
    return [folder for folder in iteration_folders(exports_dir(run_dir)) if (folder / INFO).is_file()]


def set_aside_exports(run_dir: Path, iteration: int) -> None:
    """Rename the exports after `iteration`: a start goes back to before them, and will save these iterations again.

    Call it on rank 0.

    Args:
        run_dir: The run folder.
        iteration: The iteration that the start begins at.
    """
    for folder in iteration_folders(exports_dir(run_dir)):
        if iteration_of(folder) > iteration:
            aside = name_aside(folder, "abandoned")
            folder.rename(aside)
            say(f"{folder} is of an iteration that the run repeats; it was renamed to {aside.name}")


class BackgroundExports:
    """Exports every `checkpoint.export_every`-th checkpoint of a run, and its last one, one after another.

    Use it as a context on rank 0; at its end, an export that is not complete is left to the next start. No failure of
    an export reaches the training.
    """

    def __init__(self, config: PretrainConfig, run_dir: Path) -> None:
        """Prepare for exports; nothing is started yet.

        Args:
            config: The configuration of the run.
            run_dir: The run folder.
        """
        c = config.checkpoint
        self.run_dir, self._every, self._last = run_dir, c.export_every * c.save_interval, config.train.train_iters
        self._save = Path(c.save or run_dir / "checkpoints")
        self._queue: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> "BackgroundExports":
        return self

    def __exit__(self, *exception: object) -> None:
        """End the running export, if any."""
        self._stop()

    def request(self, iteration: int, checkpoint: Path) -> None:
        """Export a complete checkpoint in the background if it is due.

        Args:
            iteration: The iteration of the checkpoint.
            checkpoint: The checkpoint folder.
        """
        if not self._every or (iteration % self._every and iteration != self._last):
            return
        try:
            self._start(before=iteration)
            if self._queue.qsize() and iteration != self._last:
                warn(
                    f"iteration {iteration} is not exported: the two exports before it are not complete. Set a larger "
                    f"checkpoint.export_every. By hand: {export_command(self.run_dir, iteration)}"
                )
                return
            self._queue.put(self._link(iteration, checkpoint))
        except OSError as error:
            folder = exports_dir(self.run_dir)
            self._report_failure(iteration, f"the checkpoint cannot be linked, or {folder} not be written ({error}).")

    def finish(self, interrupted: Callable[[], bool]) -> None:
        """Wait until all requested exports are complete or have failed.

        Args:
            interrupted: Returns whether to give up: the run is complete, and nothing starts it again.
        """
        if not self._every:
            return
        try:
            self._start(before=self._last + 1)
        except OSError as error:
            self._report_failure(self._last, f"{exports_dir(self.run_dir)} cannot be written ({error}).")
            return
        assert self._thread is not None
        self._queue.put(None)
        self._thread.join(_POLL_S)
        if self._thread.is_alive():
            say("waiting for the export of the last checkpoint")
        while self._thread.is_alive() and not interrupted():
            self._thread.join(_POLL_S)
        if self._thread.is_alive():
            self._stop()
            for folder in self._save.glob(f"{_LINKS}*"):
                self._report_failure(_iteration_of_links(folder), "it was interrupted.")
                shutil.rmtree(folder, ignore_errors=True)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self, before: int) -> None:
        """Start the thread, with what earlier starts have left for iterations before this one."""
        if self._thread is not None:
            return
        exports_dir(self.run_dir).mkdir(parents=True, exist_ok=True)
        for temp in exports_dir(self.run_dir).glob(".*.tmp"):
            shutil.rmtree(temp, ignore_errors=True)
        for folder in sorted(self._save.glob(f"{_LINKS}*")):
            if _iteration_of_links(folder) < before:
                self._queue.put(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        for temp in self._save.glob(f".{_LINKS}*.tmp"):
            shutil.rmtree(temp, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="exports", daemon=True)
        self._thread.start()

    def _link(self, iteration: int, checkpoint: Path) -> Path:
        """Return a folder of hard links to the files of a checkpoint."""
        links = checkpoint.with_name(f"{_LINKS}{iteration:07d}")
        shutil.rmtree(links, ignore_errors=True)  # of an abandoned checkpoint
        temp = temp_name(links)
        try:
            shutil.copytree(checkpoint, temp, copy_function=os.link, ignore=shutil.ignore_patterns("*.tmp"))
            temp.rename(links)
        except shutil.Error as error:  # one line for each file
            raise OSError(error.args[0][0][2]) from error
        finally:
            shutil.rmtree(temp, ignore_errors=True)
        return links

    def _work(self) -> None:
        while (links := self._queue.get()) is not None and not self._stopped:
            iteration = _iteration_of_links(links)
            try:
                done = self._export(iteration, links)
            except (OSError, Nano3Error) as error:
                done = True
                self._report_failure(iteration, str(error))
            if done:
                shutil.rmtree(links, ignore_errors=True)

    def _export(self, iteration: int, links: Path) -> bool:
        """Convert one checkpoint, and return False if it was interrupted."""
        output = exports_dir(self.run_dir) / folder_name(iteration)
        if (output / INFO).is_file() and read_export_info(output).checkpoint == checkpoint_fingerprint(links):
            return True  # complete, but killed before its links were removed
        if output.exists():
            trash = temp_name(output)
            output.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        log = self.run_dir / "logs" / f"export_{iteration:07d}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nano3.training.export", str(links), str(output), str(self.run_dir)]
        with log.open("wb") as out:
            with self._lock:
                if self._stopped:
                    return False
                # The process ends when it can read the end of its input: when this process closes it, or is killed.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env=_environment()
                )
                self._process = process
            code = process.wait()
            with self._lock:
                self._process = None
            assert process.stdin is not None
            process.stdin.close()
        if self._stopped:
            return False
        if code:
            lines = log.read_text(errors="replace").strip().splitlines()
            why = lines[-1].removeprefix("error: ").partition(" Remove ")[0] if lines else f"exit code {code}."
            self._report_failure(iteration, f"{why} Log: {log}.")
        else:
            fsync_dir(output.parent)
            say(f"exported iteration {iteration}: {output}")
        return True

    def _report_failure(self, iteration: int, why: str) -> None:
        warn(
            f"EXPORT FAILED at iteration {iteration}: {why} Training is not affected. By hand: "
            f"{export_command(self.run_dir, iteration)}"
        )


def _iteration_of_links(folder: Path) -> int:
    return int(folder.name.removeprefix(_LINKS))


def _environment() -> dict[str, str]:
    """Return the environment of an export's process: that of one process which leaves the cores to the training."""
    kept = {name: value for name, value in os.environ.items() if not _RANK_VARIABLES.fullmatch(name)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
