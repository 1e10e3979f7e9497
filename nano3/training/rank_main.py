"""One rank of a run: read the frozen configuration, train, register what was saved.

    python -m nano3.training RUN/config.yaml

This is what torchrun, Slurm and sweeps start. It composes nothing, so later edits of conf/ do not reach a waiting run.
"""

from pathlib import Path
from typing import Any

from nano3.artifacts import store, wandb_mirror
from nano3.artifacts.names import MODEL
from nano3.config import PretrainConfig
from nano3.training import backend
from nano3.training.reports.final_report import write_final_report
from nano3.training.run import parent_checkpoint
from nano3.training.run.checkpoints import checkpoint_fingerprint
from nano3.training.run.lineage import data_reference, model_alias
from nano3.training.run.outcome import Outcome
from nano3.training.run.record import load_run_config, read_latest_start, valid_finish_record
from nano3.utils.console import is_rank_zero, say, warn
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import UserError
from nano3.utils.files import write_json


def main(config_path: str) -> int:
    """Train as RUN/config.yaml says. Returns 0 when train_iters or exit_iteration is reached, 75 when stopped before.

    Raises `UserError` and `Failure`.
    """
    path = Path(config_path).absolute()
    config, run_dir = load_run_config(path), path.parent
    if done := valid_finish_record(run_dir):
        if is_rank_zero():
            show_finished(config, run_dir, done)
        return 0
    return train(config, run_dir)


def show_finished(config: PretrainConfig, run_dir: Path, done: dict[str, Any]) -> None:
    """The result of a run that has finished before; writes nothing that is there."""
    iteration = done.get("iteration")
    say(f"already finished: iteration {iteration} is in {done.get('checkpoint') or run_dir}; nothing to do")
    if iteration == config.train.train_iters:
        write_final_report(config, run_dir)


def train(config: PretrainConfig, run_dir: Path) -> int:
    """The same for a configuration at hand; what a rank that torchrun started runs."""
    problems = backend.missing_problems(config.backend) + wandb_mirror.settings_problems(
        wandb_mirror.wandb_settings(config.run.wandb, config.logger), "run.wandb.mode"
    )
    if problems:
        raise UserError(problems)

    with translate_disk_errors(f"a file of {run_dir}, or standard output"):
        trainer = backend.load(config.backend)
        outcome = trainer.train(config, Path(config.run.data), run_dir, on_save=SaveRecorder(config, run_dir))
        asked = config.train.exit_iteration
        as_asked = outcome.status == "finished" or (asked is not None and outcome.iteration >= asked)
        if is_rank_zero():
            report_outcome(config, run_dir, outcome, as_asked)
    return 0 if as_asked else outcome.exit_code


def report_outcome(config: PretrainConfig, run_dir: Path, outcome: Outcome, as_asked: bool) -> None:
    """Say how the run ended and mark it finished if nothing is left that was asked for."""
    if outcome.status == "stopped" and outcome.checkpoint:
        goes_on = "a larger train.exit_iteration, or none," if as_asked else "the same command"
        say(f"stopped at iteration {outcome.iteration} with a checkpoint; {goes_on} goes on from there")
    elif outcome.status == "stopped":
        say(f"stopped at iteration {outcome.iteration}; no checkpoint was saved")
    marker = run_dir / "finished.json"
    if as_asked and not marker.exists():
        checkpoint = str(outcome.checkpoint) if outcome.checkpoint else None
        write_json(marker, {"iteration": outcome.iteration, "checkpoint": checkpoint})
    if outcome.status == "finished":
        write_final_report(config, run_dir)


class SaveRecorder:
    """Called with every complete checkpoint. A registry that fails is told once and never ends the training: the
    checkpoint is whole, and the next start finds it without a registry."""

    def __init__(self, config: PretrainConfig, run_dir: Path) -> None:
        self.config, self.run_dir, self._told = config, run_dir, False

    def __call__(self, iteration: int, folder: Path) -> None:
        # What a launcher watches: starts that leave it as it is are crashes.
        write_json(self.run_dir / "progress.json", {"iteration": iteration, "checkpoint": str(folder)})
        try:
            register_checkpoint(self.config, self.run_dir, iteration, folder)
        except Exception as error:
            if not self._told:
                warn(
                    f"{folder} could not be registered as {MODEL} ({type(error).__name__}: {error}). Training "
                    "goes on; later failures of this kind are not told."
                )
            self._told = True


def register_checkpoint(config: PretrainConfig, run_dir: Path, iteration: int, folder: Path) -> None:
    """Record a complete checkpoint as the newest `ModelArtifact-pretrain`, made from the run's data and, in a run that
    began with one, another model.

    The same checkpoint again is the same version; another one in the same folder is a new version.
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
    if run := wandb_mirror.active_run():
        wandb_mirror.log_artifact(run, made, alias)
