"""Hydra launcher for `--multirun`: compose every point once, make its Job, and `launch.run` them all.

An application selects it with `override hydra/launcher: nano3` and names a factory that takes (cfg, run_dir, label):

    hydra:
      sweep: {dir: "${run.output_dir}"}
      launcher: {job_factory: my_app.make_job}

The run folder of a point is its hydra.sweep.dir joined with a label made of the keys that vary.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write


@dataclass
class LauncherConfig:
    """Configuration of hydra/launcher=nano3."""

    _target_: str = "hydra_plugins.nano3_launcher.Nano3Launcher"
    # Dotted path of a function (cfg: DictConfig, run_dir: Path, label: str) -> launch.Job.
    job_factory: str = MISSING


class JobLauncher(Launcher):
    """Hydra calls `setup`, then `launch` with the overrides of every point."""

    def __init__(self, job_factory: str) -> None:
        self._job_factory = job_factory

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composing needs. The task function is not called: ranks start from the factory's job."""
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the sweep, and exit with its code unless that is 0.

        Raises:
            Nano3Error: The sweep could not be started.
        """
        from hydra.utils import get_method

        import launch
        from launch.names import sweep_labels

        setup_globals()
        _remove_sweep_record(Path(self._config.hydra.sweep.dir))
        factory = get_method(self._job_factory)
        configs, jobs = [], []
        for number, (overrides, label) in enumerate(
            zip(job_overrides, sweep_labels(job_overrides), strict=True), initial_job_idx
        ):
            config, run_dir = self._compose(list(overrides), number, label)
            task = copy.deepcopy(config)
            with read_write(task), open_dict(task):
                del task["hydra"]
            configs.append(config)
            jobs.append(factory(task, run_dir, label))
        code = launch.run(jobs, dry_run=bool(OmegaConf.select(configs[0], "dry_run", default=False)), sweep=True)
        if code:
            sys.exit(code)
        return [_completed(list(o), c) for o, c in zip(job_overrides, configs, strict=True)]

    def _compose(self, overrides: list[str], number: int, label: str) -> tuple[DictConfig, Path]:
        """Return the configuration and the run folder of one point."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            run_dir = Path(config.hydra.sweep.dir).expanduser().absolute() / label
            config.hydra.runtime.output_dir = str(run_dir)
        HydraConfig.instance().set_config(config)
        return config, run_dir


def _completed(overrides: list[str], config: DictConfig) -> JobReturn:
    result = JobReturn(overrides=overrides, cfg=config, status=JobStatus.COMPLETED)
    result.return_value = None
    return result


def _remove_sweep_record(sweep_dir: Path) -> None:
    """Remove the multirun.yaml that Hydra's sweeper has just written, and the empty folders around it.

    Every point saves its own configuration, and a dry run must leave nothing behind.
    """
    (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
    here = Path.cwd()
    for folder in [sweep_dir.absolute(), *sweep_dir.absolute().parents]:
        if folder == here or not folder.is_relative_to(here) or any(folder.iterdir()):
            return
        folder.rmdir()
