"""The parts of a start and where they begin."""

import subprocess
import sys

import pytest

from nano3.training.run.startup_timer import StartupTimer, process_age


class Ticks:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_stages_are_listed_in_order_and_add_up() -> None:
    clock = Ticks()
    startup = StartupTimer(clock, age=lambda: 2.5)
    for part, seconds in (("checks", 0.5), ("imports", 17.0), ("first step", 10.25)):
        clock.at += seconds
        startup.mark(part)
    message = "first step done 30.2 s after the start: checks 3.0 s, imports 17.0 s, first step 10.2 s"
    assert startup.sentence() == message
    assert startup.metrics() == {"startup/checks": 3.0, "startup/imports": 17.0, "startup/first_step": 10.25}


def test_a_part_ends_once() -> None:
    clock = Ticks()
    startup = StartupTimer(clock, age=lambda: 0.0)
    clock.at += 1
    startup.mark("checks")
    clock.at += 50
    startup.mark("checks")
    assert startup.sentence() == "first step done 1.0 s after the start: checks 1.0 s"


@pytest.mark.parametrize("slept", [0.0, 0.5], ids=["at once", "after half a second"])
def test_the_age_is_that_of_the_process(slept: float) -> None:
    """A process that sleeps is older by as much; its imports count too."""
    code = f"import time; time.sleep({slept}); import nano3.training.run.startup_timer as s; print(s.process_age())"
    age = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert slept <= age + 0.02 < slept + 30


def test_the_age_grows() -> None:
    first = process_age()
    assert first > 0
    assert process_age() >= first
