"""A signal during startup may reach the ranks at different moments, so they agree on it in the loop."""

import os
import signal
from pathlib import Path

from training_processes import Child, tiny_config, train_here

from nano3.config import PretrainConfig
from nano3.training.hf import backend
from nano3.training.run.outcome import Outcome


def signal_before_the_first_step(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """In the child: train with a SIGTERM that arrives right after the ranks agree on the resume point."""
    agree = backend.agree_on_resume_point

    def agree_then_signal(*arguments: object, **keywords: object) -> object:
        point = agree(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGTERM)
        return point

    backend.agree_on_resume_point = agree_then_signal
    return backend.train(config, data, run_dir)


def test_it_is_agreed_on_after_a_step(data: Path, tmp_path: Path) -> None:
    config = tiny_config(**{"train.exit_iteration": 4})
    assert train_here(config, data, tmp_path).iteration == 4
    config.train.exit_iteration = None
    outcome = Child(signal_before_the_first_step, (config, data, tmp_path), tmp_path / "signal.txt").result()
    assert (outcome.status, outcome.iteration, outcome.reason) == ("stopped", 5, "signal SIGTERM")
    assert outcome.checkpoint is not None and outcome.checkpoint.name == "iter_0000005"


def test_a_limit_that_was_reached_before_ends_the_run_at_once(data: Path, tmp_path: Path) -> None:
    config = tiny_config(**{"train.exit_iteration": 4})
    first = train_here(config, data, tmp_path)
    again = Child(backend.train, (config, data, tmp_path), tmp_path / "again.txt")
    assert again.result() == first
    assert "train.exit_iteration=4 asks for no more" in again.output()
