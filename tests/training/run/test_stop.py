"""Stop requests: signals, limits, agreement."""

import os
import signal

import pytest

from nano3.training.run.stop import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_signal_is_kept_until_asked_for(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.reason(1) == ""
        os.kill(os.getpid(), number)
        assert stop.reason(1) == f"signal {number.name}"
    assert signal.getsignal(number) is before


def test_nohup_keeps_its_effect() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason(1) == ""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_outermost_exit_restores_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        with stop:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason(1) == "signal SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("limits", "iteration", "reason"),
    [
        ({"exit_iteration": 5}, 4, ""),
        ({"exit_iteration": 5}, 5, "train.exit_iteration=5"),
        ({"exit_iteration": 5}, 6, "train.exit_iteration=5"),
        ({"exit_duration_in_mins": 0.0}, 1, "train.exit_duration_in_mins=0"),
        ({"exit_duration_in_mins": 60.0}, 1, ""),
        ({}, 10**9, ""),
    ],
    ids=["before", "at", "beyond", "time over", "time left", "no limit"],
)
def test_limits(limits: dict, iteration: int, reason: str) -> None:
    assert StopRequest(**limits).reason(iteration) == reason


@pytest.mark.parametrize(
    ("own", "others", "reason"),
    [(True, False, "train.exit_iteration=1"), (False, True, "another rank requested the stop"), (False, False, "")],
    ids=["this rank", "another rank", "none"],
)
def test_all_ranks_agree(own: bool, others: bool, reason: str) -> None:
    asked: list[bool] = []

    def any_rank(flag: bool) -> bool:
        asked.append(flag)
        return flag or others

    assert StopRequest(exit_iteration=1 if own else None).agreed(1, any_rank) == reason
    assert asked == [own]
