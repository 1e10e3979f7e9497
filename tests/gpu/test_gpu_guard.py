"""The guard and train.skip_iterations with Megatron-Bridge on a real GPU, on data with one poisoned document."""

import subprocess
import sys
from pathlib import Path

import pytest
from gpu_runs import MARKS, ROOT, Runs, made_once

from nano3.training.run.guard import read_events
from nano3.training.run.skips import read_skips

pytestmark = MARKS
# The gradient spikes at iteration 2 (norm 35), and again by 10. Two pairs of runs of the same settings differed by at
# most 0.0002 in the first seven iterations, and by 0.022 and 0.050 on average and 0.15 at most in all 40, of which the
# guard changes none before 22.
SAME, MEAN, NOISE, SPIKE = 0.003, 0.12, 0.3, 8
# A quarter of the batch is poisoned at some iterations; without clipping, as in benchmarks/guard.py.
SETTINGS = [
    "run.data=poisoned",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "train.train_iters=80",
    "train.eval_interval=0",
    "optimizer.clip_grad=0",
    "logger.log_interval=1",
    "checkpoint.save_interval=20",
    "guard.window=20",
]


@pytest.fixture(scope="module")
def poisoned(runs: Runs) -> Path:
    """The bundled corpus with a document of 100 kB of one token, in the folder of the runs."""
    with made_once(runs.folder, "poisoned") as wanted:
        if wanted:
            program = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import pathlib, guard
guard.WEIGHT = 0.012
folder = pathlib.Path.cwd()
guard.write_documents(folder)
guard.prepare(folder, "poisoned")
"""
            subprocess.run([sys.executable, "-c", program], cwd=runs.folder, env=runs.env, check=True)
    return runs.folder / "poisoned"


def test_a_poisoned_batch_is_rolled_back_and_left_out(runs: Runs, poisoned: Path) -> None:
    """Then a second run leaves out the same iterations by Megatron-Bridge's own means, and has the same losses."""
    words = [*SETTINGS, "train.exit_iteration=40"]
    text = runs.train("guarded", *words, "guard.action=rollback")
    events, record = read_events(runs.dir("guarded")), read_skips(runs.dir("guarded"))
    found = [event["iteration"] for event in events]
    assert events and {event["action"] for event in events} == {"rollback"}
    assert all("web" in {row["dataset"] for row in event["documents"]} for event in events)
    assert record.after(0) == sorted(found) and record.rollbacks == len(events)
    assert text.count("guard: iteration") == len(events) and "resuming from iteration 20 of" in text
    assert "Traceback" not in text
    pairs = str([[i, i] for i in found]).replace(" ", "")
    runs.train("by_hand", *words, "guard.action=none", f"train.skip_iterations={pairs}")
    guarded, by_hand = runs.steps("guarded"), runs.steps("by_hand")
    assert sorted(guarded) == sorted(by_hand) == [i for i in range(1, 41) if i not in found]
    for iteration, step in guarded.items():
        assert step["consumed_samples"] == by_hand[iteration]["consumed_samples"] == 4 * iteration
        assert step["lr"] == pytest.approx(by_hand[iteration]["lr"])
    differences = {i: abs(step["loss"] - by_hand[i]["loss"]) for i, step in guarded.items()}
    assert max(d for i, d in differences.items() if i < SPIKE) < SAME, differences
    assert max(differences.values()) < NOISE, differences
    assert sum(differences.values()) / len(differences) < MEAN, differences


def test_a_poisoned_step_is_left_out(runs: Runs, poisoned: Path) -> None:
    text = runs.train("dropped", *SETTINGS, "guard.action=skip", "train.exit_iteration=60")
    events = read_events(runs.dir("dropped"))
    dropped = [event["iteration"] for event in events if event["action"] == "skip"]
    assert dropped and read_skips(runs.dir("dropped")).after(0) == dropped
    assert "this step is left out" in text
    steps = runs.steps("dropped")
    for iteration in dropped:  # the schedule has waited
        assert steps[iteration + 1]["lr"] == steps[iteration]["lr"]


def test_the_first_iterations_after_a_checkpoint_are_left_out(runs: Runs, poisoned: Path) -> None:
    runs.train("ahead", *SETTINGS, "guard.action=none", "train.exit_iteration=20")
    text = runs.train("ahead", *SETTINGS, "guard.action=none", "train.exit_iteration=25",
                      "train.skip_iterations=[[21,22],[24,24]]")  # fmt: skip
    assert "resuming from iteration 20" in text
    assert sorted(runs.steps("ahead")) == [*range(1, 21), 23, 25]
    assert [runs.steps("ahead")[i]["consumed_samples"] for i in (23, 25)] == [92, 100]
