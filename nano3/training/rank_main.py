"""One rank of a run: read RUN/config.yaml, train, register the checkpoints.

    python -m nano3.training RUN/config.yaml

torchrun, Slurm and sweeps start this. It composes no configuration, so edits of conf/ do not affect a waiting run.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano3.artifacts import store, wandb_mirror, wandb_run
from nano3.artifacts.names import MODEL
from nano3.config import PretrainConfig
from nano3.training import backend
from nano3.training.megatron.compile_cache import cache_home
from nano3.training.reports.final_report import write_final_report
from nano3.training.run import parent_checkpoint
from nano3.training.run.checkpoints import checkpoint_fingerprint
from nano3.training.run.exports import BackgroundExports
from nano3.training.run.hang_watch import watch_for_hangs
from nano3.training.run.lineage import data_reference, model_alias
from nano3.training.run.module_cache import keep_compiled_modules
from nano3.training.run.outcome import Outcome
from nano3.training.run.rank_log import rank_log
from nano3.training.run.record import finish_text, load_run_config, read_latest_start, valid_finish_record
from nano3.training.run.stop import StopRequest
from nano3.utils.console import is_rank_zero, say, warn
from nano3.utils.disk_errors import allow_full_disk, translate_disk_errors
from nano3.utils.errors import UserError
from nano3.utils.records import write_record


def main(config_path: str) -> int:
    """Train with the configuration in RUN/config.yaml.

    Returns:
        The exit code: 0 if train.train_iters or train.exit_iteration is reached, 75 if stopped before, 77 if the guard
        wants the ranks to start again.

    Raises:
        UserError: The configuration or the data is wrong.
        Failure: The training cannot continue.
    """
    path = Path(config_path).absolute()
    config, run_dir = load_run_config(path), path.parent
    if done := valid_finish_record(run_dir):
        if is_rank_zero():
            show_finished(config, run_dir, done)
        return 0
    return train(config, run_dir)


def show_finished(config: PretrainConfig, run_dir: Path, done: dict[str, Any]) -> None:
    """Show the result of a run that finished earlier, without overwriting its files.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        done: The contents of finished.json.
    """
    say(f"already finished: {finish_text(run_dir, done)}")
    if done["iteration"] == config.train.train_iters:
        write_final_report(config, run_dir)


def train(config: PretrainConfig, run_dir: Path) -> int:
    """Train with a resolved configuration, and return the exit code as `main` does.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.

    Raises:
        UserError: The configuration or the data is wrong.
        Failure: The training cannot continue.
    """
    problems = backend.missing_problems(config.backend) + wandb_mirror.settings_problems(
        wandb_mirror.wandb_settings(config.run.wandb, config.logger), "run.wandb.mode"
    )
    if problems:
        raise UserError(problems)

    keep_compiled_modules("torch", cache_home() / "modules")
    rank = int(os.environ.get("RANK", "0"))
    output = translate_disk_errors(f"a file of {run_dir}, or standard output")
    with rank_log(run_dir, rank), output, BackgroundExports(config, run_dir) as exports:
        recorder = SaveRecorder(config, run_dir, exports)
        trainer = backend.load(config.backend)
        with watch_for_hangs(run_dir, config.train.hang_timeout_s), _no_silent_exit():
            outcome = trainer.train(config, Path(config.run.data), run_dir, on_save=recorder)
        complete = outcome.is_complete(config.train.exit_iteration)
        if is_rank_zero() and outcome.status != "rolled back":
            with StopRequest() as stop:  # a signal now, at the end, must not look like a stop before it
                report_outcome(config, run_dir, outcome, complete)
                if complete:
                    exports.finish(lambda: stop.signal is not None)
    return outcome.exit_code(config.train.exit_iteration)


@contextlib.contextmanager
def _no_silent_exit() -> Iterator[None]:
    """Raise RuntimeError if a library exits with code 0 during the block, which would count as a finished run."""
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise
        raise RuntimeError("A library has ended the process with exit code 0 before the training has ended.") from error


def report_outcome(config: PretrainConfig, run_dir: Path, outcome: Outcome, complete: bool) -> None:
    """Log how the run ended, and write finished.json if it is complete.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        outcome: How the training ended.
        complete: Whether every requested iteration is done.
    """
    if outcome.status == "stopped" and outcome.checkpoint:
        resume = "a larger train.exit_iteration, or none," if complete else "the same command"
        say(f"stopped at iteration {outcome.iteration} with a checkpoint; {resume} resumes from it")
    elif outcome.status == "stopped":
        say(f"stopped at iteration {outcome.iteration}; no checkpoint was saved")
    marker = run_dir / "finished.json"
    if complete and not marker.exists():
        checkpoint = str(outcome.checkpoint) if outcome.checkpoint else None
        write_record(marker, {"iteration": outcome.iteration, "checkpoint": checkpoint})
    if outcome.status == "finished":
        write_final_report(config, run_dir)


class SaveRecorder:
    """Records each complete checkpoint in progress.json and in the artifact store, and has it exported if it is due.

    If registering fails, it warns once and training continues: a resume does not need the registry.
    """

    def __init__(self, config: PretrainConfig, run_dir: Path, exports: BackgroundExports | None = None) -> None:
        self.config, self.run_dir, self.exports, self._warned = config, run_dir, exports, False

    def __call__(self, iteration: int, folder: Path) -> None:
        """Record the checkpoint of an iteration.

        Args:
            iteration: The iteration of the checkpoint.
            folder: The checkpoint folder.
        """
        # The launcher counts a start that leaves this file unchanged as a crash.
        path = self.run_dir / "progress.json"
        full = f"{path}: no space left on the device. Training continues; {folder} is complete."
        with allow_full_disk(lambda: warn(full)):
            write_record(path, {"iteration": iteration, "checkpoint": str(folder)})
        if self.exports:
            self.exports.request(iteration, folder)
        try:
            register_checkpoint(self.config, self.run_dir, iteration, folder)
        except Exception as error:
            if not self._warned:
                warn(
                    f"{folder} could not be registered as {MODEL} ({type(error).__name__}: {error}). Training "
                    "continues. Further registration failures are not logged."
                )
            self._warned = True


def register_checkpoint(config: PretrainConfig, run_dir: Path, iteration: int, folder: Path) -> None:
    """Register a complete checkpoint as the newest `ModelArtifact-pretrain`.

    Its inputs are the run's data and the model that the run started from, if any. The same checkpoint keeps its
    version; new contents of the same folder get a new version.

    Args:
        config: The configuration of the run.
        run_dir: The run folder.
        iteration: The iteration of the checkpoint.
        folder: The checkpoint folder.
    """
    start = read_latest_start(run_dir)
    reference = data_reference(start)
    parent = parent_checkpoint.read_parent(run_dir)
    model = store.find_by_folder(str(parent.checkpoint)) if parent else None
    alias = model_alias(config, start)
    made = store.register(
        MODEL,
        folder,
        fingerprint=f"{start['data']['fingerprint']}/{run_dir}/{iteration}/{checkpoint_fingerprint(folder)}",
        metadata={
            "run": config.run.name,
            "run_dir": str(run_dir),
            "iteration": iteration,
            "data": start["data"],
            "code": start["code"],
            "began_with": parent and str(parent.checkpoint),
        },
        inputs=[found for found in (reference, model and model.reference) if found],
        alias=alias,
    )
    if run := wandb_run.current():
        run.log_artifact(made, alias)
