"""The interface of the two backends. Loading one imports neither torch nor megatron."""

from pathlib import Path
from typing import Any, Protocol

from nano3.config import PretrainConfig
from nano3.training.dataset import TrainingData
from nano3.training.run.outcome import Outcome, SaveHook, no_hook
from nano3.training.run.resume import ResumePoint
from nano3.utils.errors import did_you_mean

BACKENDS = ("transformers", "megatron")


class Backend(Protocol):
    """What a backend module provides. Only `train` imports torch."""

    # Modules that a rank imports.
    PACKAGES: tuple[str, ...]
    # How to install them.
    INSTALL: str

    def missing(self) -> list[str]:
        """Return the packages this backend needs that are not installed in this Python."""

    def check(self, config: PretrainConfig) -> list[str]:
        """Return the problems with a configuration that only this backend has."""

    def find_resume_point(self, config: PretrainConfig, run_dir: Path, data: TrainingData | None) -> ResumePoint:
        """Return where a run starts; raise UserError if it may not.

        Args:
            config: The configuration of the run.
            run_dir: The run folder.
            data: The prepared data; None if it is not prepared yet.
        """

    def run_identity(self, config: PretrainConfig, data: TrainingData) -> dict[str, Any]:
        """Return the values that must be the same on a resume."""

    def mutable_settings(self, config: PretrainConfig) -> dict[str, Any]:
        """Return the values that may change on a resume; a change is logged."""

    def train(self, config: PretrainConfig, data_dir: Path, run_dir: Path, on_save: SaveHook = no_hook) -> Outcome:
        """Train until train.train_iters, a limit or a signal.

        Args:
            config: The configuration of the run; the same on every rank.
            data_dir: The folder of the prepared data.
            run_dir: The run folder.
            on_save: Called on rank 0 with the iteration and folder of each complete checkpoint.

        Raises:
            UserError: The configuration or the data is wrong.
            Failure: The training cannot continue.
        """


def load(name: str) -> Backend:
    """Return the backend called `name`."""
    if name == "megatron":
        from nano3.training.megatron import backend as megatron_backend

        return megatron_backend
    from nano3.training.hf import backend as hf_backend

    return hf_backend


def name_problems(name: str) -> list[str]:
    """Return why there is no backend called `name`, or an empty list."""
    return [] if name in BACKENDS else [f"backend={name}: no such backend.{did_you_mean(name, list(BACKENDS))}"]


def missing_problems(name: str) -> list[str]:
    """Return one message that names the packages a backend lacks, or an empty list."""
    backend = load(name)
    missing = backend.missing()
    if not missing:
        return []
    other = ".\n  Without a GPU: +experiment=quickstart. On a cluster: cluster=slurm." if name == "megatron" else ""
    return [f"backend={name} needs {', '.join(missing)}, not installed in this Python: {backend.INSTALL}{other}"]
