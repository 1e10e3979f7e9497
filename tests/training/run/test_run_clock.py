"""The seconds of each part of a start."""

import pytest

from nano3.training.run.run_clock import RunClock


class Time:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_add_up_to_the_wall_clock() -> None:
    time = Time()
    clock = RunClock(now=time, age=lambda: 5.0)
    time.now += 2
    clock.enter("step")
    time.now += 1
    with clock.during("data"):
        time.now += 0.5
    assert clock.take() == {"seconds/start": 7.0, "seconds/step": 1.0, "seconds/data": 0.5}
    with clock.during("valid"):
        time.now += 3
        with clock.during("data"):
            time.now += 1
        assert clock.take() == {"seconds/valid": 4.0}  # a line that is written within it
        time.now += 1
    time.now += 0.25
    assert clock.take() == {"seconds/valid": 1.0, "seconds/step": 0.25}


def test_data_of_the_first_step_belongs_to_the_start() -> None:
    time = Time()
    clock = RunClock(now=time, age=lambda: 0.0)
    with clock.during("data"):
        time.now += 1
    with clock.during("valid"):
        time.now += 2
    assert clock.take() == {"seconds/start": 1.0, "seconds/valid": 2.0}


def test_a_part_ends_with_an_exception() -> None:
    time = Time()
    clock = RunClock(now=time, age=lambda: 0.0)
    clock.enter("step")
    with pytest.raises(OSError, match="full"), clock.during("save"):
        time.now += 1
        raise OSError("full")
    time.now += 2
    assert clock.take() == {"seconds/save": 1.0, "seconds/step": 2.0}


def test_the_second_training_of_a_process_starts_when_it_is_called() -> None:
    RunClock()
    assert sum(RunClock().take().values()) < 0.5
