"""Where a run will start, told before anything is written or submitted: what its ranks would refuse is refused here,
and preflight counts what is left to train.

It is the ranks' own decision, taken early: checkpoint.json and the data's manifest are enough for it, torch is not
needed. The ranks take it again, since another job may have saved meanwhile.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from nano3.config import PretrainConfig
from nano3.training.checks.value_checks import vocabulary_problems
from nano3.training.dataset import TrainingData
from nano3.training.hf import backend as hf_backend
from nano3.training.megatron import backend as megatron_backend
from nano3.training.run.checkpoint_owner import owner_problem
from nano3.training.run.checkpoints import checkpoint_dir
from nano3.training.run.resume import fixed_keys
from nano3.utils.errors import UserError


@dataclass(frozen=True)
class Origin:
    """`iteration`: what is done before this command begins; `own`: by this run itself, rather than by the run whose
    schedule it goes on with. `problems` forbid the start; `warnings` do not."""

    iteration: int = 0
    own: bool = True
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_origin(config: PretrainConfig, data: TrainingData | None) -> Origin:
    """The start that the ranks will find. Without `data`, which may still be in preparation, whether a checkpoint is of
    the same run is left to them. Raises `Failure` for a damaged checkpoint."""
    run_dir = Path(config.run.output_dir).absolute()
    save = checkpoint_dir(config, run_dir)
    if problem := owner_problem(save, run_dir):
        return Origin(problems=(problem,))
    warnings: tuple[str, ...] = ()
    if told := _seen_by_the_job_only(config, save):
        config = replace(config, checkpoint=replace(config.checkpoint, load=None, keep_iteration=False))
        warnings = (told,)
    try:
        iteration, own = _look(config, data, save, run_dir)
    except UserError as error:
        return Origin(problems=tuple(error.problems), warnings=warnings)
    return Origin(iteration, own, warnings=warnings)


def _look(config: PretrainConfig, data: TrainingData | None, save: Path, run_dir: Path) -> tuple[int, bool]:
    if config.backend == "megatron":
        start = megatron_backend.look(config, data, save)
        return start.iteration, start.own
    fits = data is not None and not vocabulary_problems(config, data.vocab_size)  # else told by preflight
    found = hf_backend.look(config, run_dir, fixed_keys(config, data) if data and fits else None)
    return found.iteration, found.own


def _seen_by_the_job_only(config: PretrainConfig, save: Path) -> str | None:
    """Why checkpoint.load cannot be looked at from here, or None: a folder that only the container has, or one that a
    job before this one is still to fill."""
    load, cluster = config.checkpoint.load, config.cluster
    if load is None or Path(load).absolute() == save or cluster.kind == "local":
        return None
    inside = cluster.container_runtime != "none" and not Path(load).exists()
    waits = any(word.startswith("--dependency") for word in cluster.sbatch_args)
    if not inside and not waits:
        return None
    why = "the job waits for another one" if waits else "it is not there on this machine"
    return f"checkpoint.load={load} is not looked at now ({why}); the job refuses it if it holds no checkpoint."
