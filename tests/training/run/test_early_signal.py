"""A signal while a run is only starting: ranks may have it at different moments, so they agree in the loop."""

import os
import signal
from pathlib import Path

from training_processes import Child, tiny_config, train_here

from nano3.config import PretrainConfig
from nano3.training.hf import backend
from nano3.training.run.outcome import Outcome


def told_before_the_first_step(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """In the child: SIGTERM right after it is known where the run starts."""
    decide = backend.decide_start

    def told(*arguments: object) -> object:
        start = decide(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return start

    backend.decide_start = told
    return backend.train(config, data, run_dir)


def test_it_is_agreed_on_after_a_step(data: Path, tmp_path: Path) -> None:
    config = tiny_config(**{"train.exit_iteration": 4})
    assert train_here(config, data, tmp_path).iteration == 4
    config.train.exit_iteration = None
    outcome = Child(told_before_the_first_step, (config, data, tmp_path), tmp_path / "told.txt").result()
    assert (outcome.status, outcome.iteration, outcome.reason) == ("stopped", 5, "signal SIGTERM")
    assert outcome.checkpoint is not None and outcome.checkpoint.name == "iter_0000005"


def test_what_was_reached_before_is_told_at_once(data: Path, tmp_path: Path) -> None:
    config = tiny_config(**{"train.exit_iteration": 4})
    first = train_here(config, data, tmp_path)
    again = Child(backend.train, (config, data, tmp_path), tmp_path / "again.txt")
    assert again.result() == first
    assert "train.exit_iteration=4 asks for no more" in again.output()
