"""A real GPU under a real Slurm: every run must have the losses of the same settings without Slurm.

`benchmarks/gpu/run_all.sh slurm` starts the Slurm. Its nodes are this machine under several names, with the
same one GPU. With NANO3_GPU_BACKEND=transformers the tests run without a GPU, on a small model.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from gpu_runs import ENGINE, MICRO, REHEARSAL, STACK, Runs, made_once

from launch import job_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm: benchmarks/gpu/run_all.sh slurm starts one"),
    pytest.mark.skipif(not STACK and not REHEARSAL, reason="Megatron-Bridge is not installed"),
]
LAST, SAVED = (60, 20) if REHEARSAL else (120, 40)
SMALL = ["backend=transformers", "model=quickstart", "train.seq_length=128", "train.threads=1"]
SETTINGS = [
    *(word for word in MICRO if not (REHEARSAL and word.startswith("model="))),
    *(SMALL if REHEARSAL else []),
    "train.micro_batch_size=8",
    "train.global_batch_size=8",
    "train.train_iters=2000",
    f"train.exit_iteration={LAST}",
    "train.eval_interval=0",
    "optimizer.lr=5e-4",
    "logger.log_interval=1",
    f"checkpoint.save_interval={SAVED}",
]
CLUSTER = ["cluster=slurm", "cluster.mem=12G", "cluster.time=20", "cluster.poll_s=0.5"]
ON_GPU = [*CLUSTER, "cluster.gpus_per_node=1", "cluster.cpus_per_task=3"]
# The sweep has a node of its own, whose only GPU its points must take in turn.
SWEEP_NODE = "node6"
ELSEWHERE = f"cluster.exclude={SWEEP_NODE}"
# Losses of repeated runs: Megatron's kernels are not deterministic. The first iterations, all, those after a resume.
FIRST, EARLY, LATE, RELOGGED = 10, 5e-3, 0.1, 5e-3


def reference(runs: Runs) -> dict[int, float]:
    """Return the losses of the run without Slurm."""
    with made_once(runs.folder, "reference") as wanted:
        if wanted:
            runs.finish(runs.popen("-m", "nano3.pretrain", *on_data(runs), "run.name=reference"))
    return runs.losses("reference")


def command(runs: Runs, name: str, *words: str) -> list[str]:
    """Return the command of a run through Slurm, on one GPU."""
    return ["-m", "nano3.pretrain", *on_data(runs), *ON_GPU, ELSEWHERE, f"run.name={name}", *words]


def on_data(runs: Runs) -> list[str]:
    """Return the settings with the folder of the data: another test prepares data of the same name."""
    return [*SETTINGS, f"run.data={runs.folder / 'data'}"]


def note(runs: Runs, *lines: str) -> None:
    """Add lines to the transcript."""
    text = "\n".join(f"RESULT {line}" for line in lines)
    (runs.folder / "logs" / f"{time.time():.6f}_{os.getpid()}.txt").write_text(f"{text}\n")


def compare(runs: Runs, name: str, last: int | None = LAST) -> None:
    """Assert that a run has the losses of the run without Slurm, and every iteration up to `last` once."""
    wanted, found = reference(runs), runs.losses(name)
    if last:
        assert list(found) == [*range(1, last + 1)]
    apart = {i: abs(found[i] - wanted[i]) for i in wanted if i in found}
    early = max(apart[i] for i in apart if i <= FIRST)
    at = " ".join(f"{i}: {found[i]:.4f} ({wanted[i]:.4f})" for i in (1, 5, 10, 20, 40, LAST) if i in apart)
    most = max(apart.values())
    note(runs, f"{name}: losses (without Slurm) {at}; {early:.5f} apart at most up to {FIRST}, {most:.5f} in all")
    assert early < EARLY and most < LATE


def compare_relogged(runs: Runs, name: str, before: dict[int, float], start: int) -> None:
    """Assert that iterations computed twice, before the run was interrupted and after it resumed, have equal losses."""
    after = runs.losses(name)
    twice = [i for i in before if i > start]
    apart = max((abs(before[i] - after[i]) for i in twice), default=0.0)
    note(
        runs,
        f"{name}: resumed from {start}; {len(twice)} later iterations were computed twice, {apart:.5f} apart at most",
    )
    assert apart < RELOGGED


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def last_job(runs: Runs, name: str) -> job_records.JobRecord:
    return job_records.read_records(runs.dir(name))[-1]


def show_job(runs: Runs, name: str) -> dict[str, str]:
    """Return what Slurm says about the newest job of a run."""
    words = slurm("scontrol", "show", "job", "-d", "-o", last_job(runs, name).id).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def eventually(condition: Callable[[], Any], seconds: float = 400) -> Any:
    """Wait until `condition` returns a true value and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not so after {seconds} s")


def reached(runs: Runs, name: str, iteration: int, process: "subprocess.Popen[str]") -> dict[int, float]:
    """Wait until a run has logged `iteration` and saved, and return its losses."""

    def look() -> dict[int, float] | None:
        assert process.poll() is None, "ended too early"
        if not (runs.dir(name) / "progress.json").exists():
            return None
        found = whole_losses(runs.dir(name))
        return found if max(found, default=0) >= iteration else None

    return eventually(look)


def whole_losses(run: Path) -> dict[int, float]:
    """Return the losses by iteration, without a line that is still being written."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    values = [json.loads(line) for line in lines if line.endswith("\n")]
    return {m["iteration"]: m["loss"] for m in values if "loss" in m}


def resumed_from(text: str) -> int:
    """Return the iteration from which a run resumed, according to its log."""
    found = re.findall(r"^resuming from iteration (\d+)", text, re.MULTILINE)
    assert len(found) == 1, text[-3000:]
    return int(found[0])


def rank_process(run: Path) -> psutil.Process:
    """Return the process of a run's only rank; the workers that it forked have the same command line."""
    found = [
        p
        for p in psutil.process_iter(["cmdline"])
        if {"launch.rank", str(run / "config.yaml")} <= set(p.info["cmdline"] or [])
    ]
    (rank,) = [p for p in found if p.ppid() not in {other.pid for other in found}]
    return rank


def test_without_slurm(runs: Runs) -> None:
    assert list(reference(runs)) == [*range(1, LAST + 1)]


def test_attached(runs: Runs) -> None:
    """The command shows the log and exits with the job's code; Slurm gave the job the GPU."""
    process = runs.popen(*command(runs, "attached"))
    eventually(lambda: process.poll() is not None or whole_log(runs, "attached"))
    job = show_job(runs, "attached")
    text = runs.finish(process)
    note(runs, f"attached: {job['JobId']} on {job['NodeList']}, {job.get('GRES', 'no GPU')}")
    assert job["GRES"] == "gpu:1(IDX:0)"
    assert "fresh start" in text and re.search(rf"^iteration +{LAST}/2000 ", text, re.MULTILINE)
    if not REHEARSAL:
        assert all(step["memory_gb"] > 0 for step in runs.steps("attached").values())
    compare(runs, "attached")


def whole_log(runs: Runs, name: str) -> str:
    """Return the log of rank 0 of a run's newest job, "" before it exists."""
    if not (runs.dir(name) / job_records.FILE).exists():
        return ""
    log = Path(last_job(runs, name).log)
    return log.read_text() if log.exists() else ""


def test_requeued_by_slurm(runs: Runs) -> None:
    """`scontrol requeue`, as after a preemption: the attached command stays, and the run resumes by itself.

    Whether it can save before, depends on the few seconds that Slurm leaves it.
    """
    process = runs.popen(*command(runs, "requeued"))
    before = reached(runs, "requeued", SAVED + 5, process)
    slurm("scontrol", "requeue", last_job(runs, "requeued").id)
    text = runs.finish(process)
    assert show_job(runs, "requeued")["Restarts"] == "1"
    compare_relogged(runs, "requeued", before, resumed_from(text))
    compare(runs, "requeued")


def test_stopped_at_the_time_limit(runs: Runs) -> None:
    """Slurm's signal before the limit: the run saves, requeues itself and resumes with no iteration lost."""
    words = [
        "train.exit_iteration=null",
        "checkpoint.save_interval=1000",
        "cluster.time=4",
        "cluster.signal_delay_s=140",
    ]
    process = runs.popen(*command(runs, "limited", *words))
    eventually(lambda: process.poll() is not None or "resuming from" in whole_log(runs, "limited"))
    start = resumed_from(whole_log(runs, "limited"))
    reached(runs, "limited", start + 5, process)
    runs("-m", "nano3", "cancel", "limited")
    runs.finish(process, code=143)
    job = show_job(runs, "limited")
    assert job["JobState"] == "CANCELLED" and int(job["Restarts"]) >= 1
    starts = [
        m for m in map(json.loads, (runs.dir("limited") / "metrics.jsonl").read_text().splitlines()) if "start" in m
    ]
    note(runs, f"limited: stopped and saved at {start}, iterations lost: {starts[-1]['lost_iterations']}")
    assert start >= 1 and all(again["lost_iterations"] == 0 for again in starts[1:])
    compare(runs, "limited", last=None)


def test_a_killed_rank(runs: Runs) -> None:
    """The job restarts the run from its newest checkpoint, and the attached command stays."""
    process = runs.popen(*command(runs, "killed"))
    before = reached(runs, "killed", SAVED + 5, process)
    rank_process(runs.dir("killed")).send_signal(signal.SIGKILL)
    text = runs.finish(process)
    assert "failed with exit code 137" in text and show_job(runs, "killed")["Restarts"] == "1"
    start = resumed_from(text)
    assert start < max(before)
    compare_relogged(runs, "killed", before, start)
    compare(runs, "killed")


def test_two_points_take_turns_on_one_gpu(runs: Runs) -> None:
    words = [
        "-m",
        *on_data(runs),
        *ON_GPU,
        "run.name=sweep",
        "optimizer.lr=5e-4,1e-3",
        f"cluster.sbatch_args=['--nodelist={SWEEP_NODE}']",
    ]
    runs.finish(runs.popen("-m", "nano3.pretrain", *words))
    points = sorted(p.parent.name for p in runs.dir("sweep").glob("*/finished.json"))
    assert len(points) == 2
    jobs = sorted((show_job(runs, f"sweep/{point}") for point in points), key=lambda job: job["StartTime"])
    for job in jobs:
        at = f"on {job['NodeList']} from {job['StartTime']} to {job['EndTime']}"
        note(runs, f"sweep: {job['ArrayJobId']}_{job['ArrayTaskId']} {at}")
    assert {(job["JobState"], job["NodeList"]) for job in jobs} == {("COMPLETED", SWEEP_NODE)}
    assert len({job["ArrayJobId"] for job in jobs}) == 1 and jobs[1]["StartTime"] >= jobs[0]["EndTime"]
    compare(runs, f"sweep/{next(point for point in points if '0.0005' in point)}")


def test_preparation_then_training(runs: Runs) -> None:
    """One command: two tasks prepare the data without a GPU, and a dependent job trains on it."""
    prepare = [
        "-m",
        "nano3.data_prep",
        "data_blend=sample",
        "valid_fraction=0.05",
        f"engine={ENGINE}",
        "output_dir=chained",
    ]
    runs(*prepare, *CLUSTER, "cluster.tasks=2", ELSEWHERE, "--then", *SETTINGS, *ON_GPU, ELSEWHERE, "run.name=chained")
    assert (runs.folder / "chained/manifest.json").exists()
    compare(runs, "chained")
