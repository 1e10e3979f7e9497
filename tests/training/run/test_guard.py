"""The guard's detection and decisions, without training."""

import contextlib
import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from training_processes import tiny_config

from nano3.config.guard import GuardConfig
from nano3.training.run.guard import FILE, Detector, Guard, read_events
from nano3.training.run.skips import DROPPED, ROLLED_BACK, SkipRecord, read_skips
from nano3.utils.errors import Failure, UserError

NAN, INF = math.nan, math.inf


def filled(window: int = 20, ignore_first: int = 0, loss: float = 4.0, norm: float = 1.0, **changes: Any) -> Detector:
    """A detector that has seen a full window of nearly equal values."""
    detector = Detector(GuardConfig(window=window, **changes), ignore_first)
    for i in range(1, window + 1):
        assert detector.observe(i, loss + 0.01 * (i % 3), norm + 0.02 * (i % 3)) is None
    return detector


@pytest.mark.parametrize(
    ("loss", "norm", "statistic"),
    [
        pytest.param(6.0, 1.0, "loss", id="loss"),
        pytest.param(4.0, 9.0, "grad_norm", id="norm"),
        pytest.param(6.0, 9.0, "loss", id="both"),
        pytest.param(NAN, 1.0, "loss", id="nan-loss"),
        pytest.param(4.0, INF, "grad_norm", id="inf-norm"),
        pytest.param(4.0, -INF, "grad_norm", id="minus-inf"),
        pytest.param(4.3, 2.5, None, id="below-both-floors"),
        pytest.param(1.0, 0.01, None, id="a-fall-is-no-alarm"),
    ],
)
def test_what_is_abnormal(loss: float, norm: float, statistic: str | None) -> None:
    found = filled().observe(21, loss, norm)
    assert (found and found.statistic) == statistic


def test_a_flat_window_needs_the_relative_rise() -> None:
    detector = Detector(GuardConfig(window=8), 0)
    for i in range(1, 9):
        detector.observe(i, 2.0, 1.0)
    assert detector.limit("loss", 9) == (2.0, pytest.approx(2.2))
    assert detector.observe(9, 2.19, 2.9) is None
    assert detector.observe(10, 2.21, 1.0) is not None


def test_nothing_but_nan_counts_in_warmup_and_before_the_window_is_full() -> None:
    for detector, start in ((Detector(GuardConfig(window=20), 0), 1), (filled(ignore_first=30), 21)):
        assert detector.observe(start, 50.0, 1e6) is None
        found = detector.observe(start + 1, NAN, 1.0)
        assert found is not None and found.limit is None
    assert filled(ignore_first=20).observe(21, 50.0, 1.0) is not None


def test_the_window_of_a_checkpoint_gives_the_same_limits() -> None:
    detector = filled()
    kept = json.loads(json.dumps(detector.observations(18)))
    detector.observe(21, 4.5, 1.5)
    assert [one[0] for one in kept] == list(range(1, 19))
    again = Detector(detector.config, 0, kept)
    for i in (19, 20):
        again.observe(i, 4.0 + 0.01 * (i % 3), 1.0 + 0.02 * (i % 3))
    assert again.limit("loss", 21) == filled().limit("loss", 21)


def test_a_lasting_change_is_accepted_within_half_a_window() -> None:
    detector = filled(window=20)
    alarms = [i for i in range(21, 60) if detector.observe(i, 8.0, 1.0)]
    assert alarms == list(range(21, 21 + len(alarms))) and 5 <= len(alarms) <= 11


@pytest.mark.parametrize("seed", range(20))
def test_training_curves_give_no_false_alarm(seed: int) -> None:
    """A falling loss with noise, and heavy-tailed gradient norms, from the first iteration on."""
    random.seed(seed)
    detector = Detector(GuardConfig(), 20)
    for i in range(1, 1500):
        loss = 2.5 + 6 * math.exp(-i / 150) + random.gauss(0, 0.08)
        norm = (0.5 + 5 * math.exp(-i / 60)) * random.lognormvariate(0, 0.25)
        assert detector.observe(i, loss, norm) is None, (i, loss, norm)


@pytest.mark.parametrize("seed", range(5))
def test_a_poisoned_batch_is_found(seed: int) -> None:
    """A quarter of the batch at 10 nats in a run at 3 nats raises the mean by more than half."""
    random.seed(seed)
    detector = Detector(GuardConfig(), 20)
    for i in range(1, 400):
        detector.observe(i, 3 + random.gauss(0, 0.08), random.lognormvariate(-1, 0.25))
    assert detector.observe(400, 3 * 0.75 + 10 * 0.25, 0.4) is not None


def guard(tmp_path: Path, action: str, rank: int = 0, **changes: Any) -> Guard:
    """A guard with a full window."""
    config = tiny_config(**{"guard.action": action, "guard.window": 8, "train.train_iters": 100, **changes})
    window = [[i, 4.0 + 0.01 * (i % 3), 1.0] for i in range(1, 9)]
    return Guard(config, tmp_path, rank, lambda iteration: [{"sample": 0, "document": iteration}], window=window)


@pytest.mark.parametrize(
    ("action", "loss", "verdict", "recorded"),
    [
        ("none", 9.0, "continue", None),
        ("warn", 9.0, "continue", "warn"),
        ("skip", 9.0, "skip", "skip"),
        ("skip", NAN, "skip", "skip"),
        ("rollback", 9.0, "rollback", "rollback"),
        ("rollback", NAN, "rollback", "rollback"),
        ("rollback", 4.0, "continue", None),
    ],
)
def test_actions(tmp_path: Path, action: str, loss: float, verdict: str, recorded: str | None) -> None:
    assert guard(tmp_path, action).verdict(20, loss, 1.0) == verdict
    events = read_events(tmp_path)
    assert [event["action"] for event in events] == ([recorded] if recorded else [])
    for event in events:
        assert event["iteration"] == 20 and event["samples"] == [76, 79]
        assert event["documents"] == [{"sample": 0, "document": 20}]
        assert event["value"] == ("nan" if math.isnan(loss) else loss)
    reasons = {"skip": [DROPPED], "rollback": [ROLLED_BACK]}.get(verdict, [])
    assert [(one.first, one.last, one.reason) for one in read_skips(tmp_path).ranges] == [
        (20, 20, reason) for reason in reasons
    ]


def test_ranks_other_than_0_decide_alike_and_write_nothing(tmp_path: Path) -> None:
    assert guard(tmp_path, "rollback", rank=1).verdict(20, 9.0, 1.0) == "rollback"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["none", "warn"])
def test_nan_ends_the_run_unless_it_is_left_out(tmp_path: Path, action: str) -> None:
    with pytest.raises(Failure, match=r"diverged at iteration 20: gradient norm inf.*guard\.action=rollback"):
        guard(tmp_path, action).verdict(20, 4.0, INF)
    assert [event["action"] for event in read_events(tmp_path)] == ([] if action == "none" else ["fail"])


def test_a_taken_step_with_nan_is_rolled_back(tmp_path: Path) -> None:
    assert guard(tmp_path, "skip").verdict(20, NAN, 1.0, can_skip=False) == "rollback"
    assert guard(tmp_path, "skip").verdict(20, 9.0, 1.0, can_skip=False) == "continue"


def test_the_last_iteration_is_not_left_out(tmp_path: Path) -> None:
    assert guard(tmp_path, "rollback").verdict(100, 9.0, 1.0) == "continue"
    assert [event["action"] for event in read_events(tmp_path)] == ["warn"]


def test_rollbacks_are_bounded_across_starts(tmp_path: Path) -> None:
    for expected in (1, 2):
        own = guard(tmp_path, "rollback", **{"guard.max_rollbacks": 2})
        own.skips = read_skips(tmp_path)
        assert own.verdict(20 + expected, 9.0, 1.0) == "rollback"
        assert read_skips(tmp_path).rollbacks == expected
    own = guard(tmp_path, "rollback", **{"guard.max_rollbacks": 2})
    own.skips = read_skips(tmp_path)
    with pytest.raises(Failure, match=r"after 2 rollbacks \(guard.max_rollbacks=2\)"):
        own.verdict(40, 9.0, 1.0)


def test_steps_left_out_in_a_row_are_bounded(tmp_path: Path) -> None:
    own = guard(tmp_path, "skip", **{"guard.max_consecutive_skips": 2})
    assert [own.verdict(i, NAN, 1.0) for i in (20, 21)] == ["skip", "skip"]
    assert own.verdict(22, 4.0, 1.0) == "continue"
    assert [own.verdict(i, NAN, 1.0) for i in (23, 24)] == ["skip", "skip"]
    with pytest.raises(Failure, match="2 steps in a row"):
        own.verdict(25, NAN, 1.0)


def test_an_event_without_its_documents_is_still_recorded(tmp_path: Path) -> None:
    own = guard(tmp_path, "warn")

    def missing(iteration: int) -> list[dict[str, Any]]:
        raise UserError("no index")

    own.documents = missing
    own.verdict(20, 9.0, 1.0)
    (event,) = read_events(tmp_path)
    assert event["documents"] == [] and event["documents_error"] == "no index"
    with (tmp_path / FILE).open("a") as f:
        f.write('{"iteration": 21, "cut')
    assert read_events(tmp_path) == [event]


def test_a_full_disk_under_the_events_changes_no_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that does not fit is left out as a whole; the next one is readable."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        own = guard(tmp_path, "warn")
        filler = tmp_path / "filler"
        own.verdict(20, 9.0, 1.0)
        with filler.open("wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(b"x" * 4096)
        own.documents = lambda iteration: [{"dataset": "x" * 5000}]
        assert own.verdict(21, 9.0, 1.0) == "continue"
        filler.unlink()
        own.verdict(22, 9.0, 1.0)
        assert [event["iteration"] for event in read_events(tmp_path)] == [20, 22]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    assert f"{tmp_path / FILE} lacks iteration 21: no space left on the device" in capsys.readouterr().err


def test_the_record_survives_json(tmp_path: Path) -> None:
    own = guard(tmp_path, "rollback")
    own.skips = SkipRecord(order={"train.seed": 1})
    own.verdict(20, 9.0, 1.0)
    assert read_skips(tmp_path).order == {"train.seed": 1}
