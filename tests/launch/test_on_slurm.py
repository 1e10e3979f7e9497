"""Single jobs on a real Slurm of two nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, last_id, log_of, read_until, start_attached, state_of, with_cluster

import launch
from launch import job_records, slurm, submissions
from launch.submit import Batch
from nano3.tools._local_runs import local_state
from nano3.utils.errors import UserError

pytestmark = pytest.mark.slurm
# A run that is disturbed while counting must not end before: it ends by `more`, or is canceled.
ENDLESS = ("pause=0.1", "steps=100000")


def progress(run_dir: Path) -> int:
    file = run_dir / "progress.json"
    return json.loads(file.read_text())["step"] if file.exists() and file.read_text() else 0


def test_attached_success(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("pause=0.1", nodes=2, ntasks_per_node=2, env={"HELLO": "a 'b'\n$c"})
    assert launch.run([job]) == 0
    out, err = capfd.readouterr()
    assert out.count("fresh start") == 1 and "counted to 3" in out, "rank 0's log and no other's"
    assert "COMPLETED" in err
    ranks = [json.loads((job.run_dir / f"environment_{rank}.json").read_text()) for rank in range(4)]
    assert [r["RANK"] for r in ranks] == ["0", "1", "2", "3"]
    assert [r["LOCAL_RANK"] for r in ranks] == ["0", "1", "0", "1"]
    assert {(r["WORLD_SIZE"], r["LOCAL_WORLD_SIZE"], r["HELLO"]) for r in ranks} == {("4", "2", "a 'b'\n$c")}
    assert len({(r["MASTER_ADDR"], r["MASTER_PORT"]) for r in ranks}) == 1 and ranks[0]["MASTER_ADDR"] == "node1"
    assert [e.state for e in job_records.read_records(job.run_dir)] == ["COMPLETED"]


def test_rank_0_may_end_after_the_others(slurm_job: Any) -> None:
    """Whatever the site's WaitTime, which SLURM_WAIT overrides."""
    job = slurm_job(entry="launch_entries:end_last", ntasks_per_node=2, env={"SLURM_WAIT": "1"})
    assert launch.run([job]) == 0
    assert (job.run_dir / "finished.json").exists()


def test_one_task_for_each_gpu(slurm_job: Any) -> None:
    job = slurm_job(nodes=1, ntasks_per_node=4, gpus_per_node=4, cpus_per_task=2)
    assert launch.run([job]) == 0
    ranks = [json.loads((job.run_dir / f"environment_{rank}.json").read_text()) for rank in range(4)]
    assert {r["CUDA_VISIBLE_DEVICES"] for r in ranks} == {"0,1,2,3"}
    assert {r["SLURM_CPUS_PER_TASK"] for r in ranks} == {"2"}


def test_exit_code_of_the_rank_that_failed(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("pause=0.2", "steps=100", "fail_rank=3", "fail_code=42", nodes=2, ntasks_per_node=2)
    assert launch.run([job]) == 42
    err = capfd.readouterr().err
    assert "rank 3 on node2 failed first, with exit code 42" in err and "boom on rank 3" in err
    assert state_of(job.run_dir) == slurm.JobState("FAILED", 42, "NonZeroExitCode", "node[1-2]", 0)


def test_a_killed_rank_ends_the_job(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job(*ENDLESS, nodes=2, ntasks_per_node=2, mode="detached")
    assert launch.run([job]) == 0
    eventually(lambda: all((job.run_dir / f"environment_{rank}.json").exists() for rank in range(4)))
    ranks = subprocess.run(
        ["pgrep", "-f", f"launch.rank launch_entries:count {job.run_dir}"], capture_output=True, text=True
    )
    victim = next(
        int(pid) for pid in ranks.stdout.split() if b"\0RANK=2\0" in Path(f"/proc/{pid}/environ").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    state = eventually(lambda: (s := state_of(job.run_dir)).ended and s)
    assert (state.state, state.code) == ("FAILED", 137)
    assert "the rank was ended by SIGKILL" in log_of(job.run_dir, 2)
    survivors = subprocess.run(["pgrep", "-f", f"launch_entries:count {job.run_dir}"], capture_output=True, text=True)
    assert survivors.stdout == ""


def test_detached_returns_immediately(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("pause=60", mode="detached")
    assert launch.run([job]) == 0
    assert not state_of(job.run_dir).ended, "it did not wait for the job"
    err = capfd.readouterr().err
    assert f"submitted job {last_id(job.run_dir)}: {job.run_dir}" in err and f"nano3 tail {job.run_dir}" in err
    with pytest.raises(UserError, match="of this run is"):
        launch.run([job])


def test_dry_run_shows_the_submitted_script(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job(nodes=2, mode="detached", preview="model: big")
    assert launch.run([job], dry_run=True) == 0
    out = capfd.readouterr().out
    assert not job.run_dir.exists() and "to start at" in out and "model: big" in out
    launch.run([job])
    script = (job.run_dir / "slurm" / f"{last_id(job.run_dir)}_submission.sh").read_text()
    assert script in out
    assert out.startswith("# ---- job script\n" + script + "# ---- sbatch --test-only")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"partition": "urgent", "time": "60"}, "Requested time limit is invalid"),
        ({"gpus_per_node": 9}, "Requested node configuration is not available"),
        ({"nodes": 3}, "Node count specification invalid|More processors requested|not available"),
    ],
    ids=["time", "gpus", "nodes"],
)
def test_jobs_rejected_by_slurm(slurm_job: Any, keys: dict[str, Any], says: str) -> None:
    job = slurm_job(**keys)
    assert launch.run([job], dry_run=True) == 1
    with pytest.raises(UserError, match=f"Slurm rejected the job: .*({says})"):
        launch.run([job])
    assert not (job.run_dir / "jobs.json").exists()
    assert local_state(job.run_dir).name == "refused"


def test_a_dry_run_while_the_nodes_are_drained(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = ["scontrol", "update", "nodename=node1,node2"]
    subprocess.run([*nodes, "state=drain", "reason=test"], check=True)
    try:
        assert launch.run([slurm_job()], dry_run=True) == 0
        assert "2 of 2 nodes are out of service. The job would wait" in capfd.readouterr().out
    finally:
        subprocess.run([*nodes, "state=resume"], check=True)


@pytest.fixture
def slow_sbatch(tmp_path: Path) -> dict[str, str]:
    """An environment with an sbatch that makes a file `began` and waits two seconds before it submits."""
    (tmp_path / "bin").mkdir()
    slow = f'#!/bin/sh\ntouch {tmp_path}/began\nsleep 2\nexec {shutil.which("sbatch")} "$@"\n'
    (tmp_path / "bin/sbatch").write_text(slow)
    (tmp_path / "bin/sbatch").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"}


def test_a_job_that_sbatch_submits_during_ctrl_c_is_recorded(
    slurm_job: Any, tmp_path: Path, slow_sbatch: dict[str, str]
) -> None:
    """A Ctrl-C reaches every process of the terminal: the command and sbatch."""
    job = slurm_job(*ENDLESS)
    command = start_attached(job, detach_s=0.1, env=slow_sbatch, start_new_session=True)
    eventually((tmp_path / "began").exists)
    os.killpg(command.pid, signal.SIGINT)
    _out, err = command.communicate(timeout=100)
    assert command.returncode == 130 and "Traceback" not in err
    assert f"warning: {last_id(job.run_dir)} was submitted before this interrupt and keeps running" in err
    assert state_of(job.run_dir).state in ("PENDING", "CONFIGURING", "RUNNING")


@pytest.mark.parametrize("points", [1, 3])
def test_the_job_of_a_command_that_was_killed_is_found_again(
    slurm_job: Any, tmp_path: Path, slow_sbatch: dict[str, str], capfd: pytest.CaptureFixture[str], points: int
) -> None:
    """kill -9 while sbatch works: the job runs, is found by its script, and is followed and canceled as any other."""
    names = [f"sweep/p{i}" for i in range(points)] if points > 1 else ["run"]
    made = [slurm_job(*ENDLESS, name=name, label=name) for name in names]
    command = start_attached(*made, env=slow_sbatch, start_new_session=True)
    eventually((tmp_path / "began").exists)
    os.killpg(command.pid, signal.SIGKILL)
    command.communicate()
    with pytest.raises(UserError, match="another command is submitting a job of this run now"):
        submissions.check_not_active([made[-1].run_dir])
    run_dirs = [job.run_dir for job in made]
    eventually(lambda: not submissions.recover(run_dirs))
    assert capfd.readouterr().err.count("was submitted by a command that was killed; it is recorded now") == points
    indices = [str(i) for i in range(points)] if points > 1 else [""]
    assert [last_id(run).partition("_")[2] for run in run_dirs] == indices
    eventually(lambda: all(progress(run) > 1 for run in run_dirs))
    with pytest.raises(UserError, match="of this run is RUNNING"):
        submissions.check_not_active(run_dirs)


@pytest.mark.parametrize("name", ['it\'s a "b"', "; touch pwned; $(touch pwned)", "a=b,c:dé😀"])
def test_hostile_names(slurm_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    job = slurm_job(name=name, args=("",), entry="launch_entries:write_argument")
    text = f"{name}\n'\"$x"
    job = launch.Job(name, job.run_dir, job.entry, (str(tmp_path / "out"), text), job.cluster)
    assert launch.run([job]) == 0
    assert (tmp_path / "out").read_text() == text
    assert not (tmp_path / "pwned").exists()


def test_scancel_is_reported(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job(*ENDLESS)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 1)
    slurm.cancel([last_id(job.run_dir)])
    _out, err = command.communicate(timeout=200)
    assert command.returncode == 143 and "CANCELLED" in err
    time.sleep(1)  # a requeue would follow at once
    assert state_of(job.run_dir).state == "CANCELLED", "a cancelled job whose ranks saved must not come back"


def test_a_requeued_run_resumes(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS, "more=3", nodes=2)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 2)
    subprocess.run(["scontrol", "requeue", last_id(job.run_dir)], check=True)
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0 and "restart 1" in err
    assert "resuming from step" in out and out.count("fresh start") == 1


def test_a_requeue_that_cannot_be_marked(slurm_job: Any) -> None:
    """As on a full disk: the tasks ask for the requeue by their exit code."""
    job = slurm_job(*ENDLESS, "more=3", nodes=2)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 1)
    marker = job.run_dir / "slurm" / f"{last_id(job.run_dir)}.again"
    marker.symlink_to(job.run_dir / "missing" / marker.name)
    subprocess.run(["scancel", "--signal=USR2", last_id(job.run_dir)], check=True)
    out, err = command.communicate(timeout=200)
    assert command.returncode == 0, out + err
    assert "the end of this rank cannot be recorded" in out and "resuming from step" in out


def test_usr2_requeues_up_to_max_requeues(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS, max_requeues=1)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 1)
    subprocess.run(["scancel", "--signal=USR2", last_id(job.run_dir)], check=True)
    eventually(lambda: "resuming from step" in log_of(job.run_dir))
    subprocess.run(["scancel", "--signal=USR2", last_id(job.run_dir)], check=True)
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 75
    assert "stopped after cluster.max_requeues=1 requeues; run the same command to continue" in out


def test_crash_loop_stops(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS, "saves=0", max_crashes=1)
    command = start_attached(job)
    eventually(lambda: "fresh start" in log_of(job.run_dir))
    subprocess.run(["scancel", "--signal=USR2", last_id(job.run_dir)], check=True)
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 1 and "Gave up: the last 1 starts of this job made no progress" in out


@pytest.mark.parametrize("code", [9, 76], ids=["crash", "hang"])
def test_a_crashed_run_restarts_and_resumes(slurm_job: Any, capfd: pytest.CaptureFixture[str], code: int) -> None:
    words = ("pause=0.1", "steps=8", "fail_rank=1", f"fail_code={code}", "fail_at=3", "fail_starts=1")
    job = slurm_job(*words, ntasks_per_node=2, restart_after_crash=True, max_crashes=1)
    assert launch.run([job]) == 0
    out, err = capfd.readouterr()
    where = f"{'-' if code == 76 else 'node1'} failed with exit code {code}"
    assert f"launch: rank 1 on {where} ({job.run_dir}/slurm/{last_id(job.run_dir)}_1_log.out); restarting" in out
    assert "resuming from step" in out and "counted to 8" in out and "restart 1" in err


def test_a_run_that_crashes_without_progress_is_given_up(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("fail_rank=0", "fail_code=9", nodes=2, restart_after_crash=True, max_crashes=2)
    assert launch.run([job]) == 9
    out, err = capfd.readouterr()
    assert out.count("fresh start") == 2 and "rank 0 on node1 failed first, with exit code 9" in err
    assert "launch: not restarted: 2 starts in a row ended without a new checkpoint (cluster.max_crashes)" in out
    assert (state_of(job.run_dir).state, state_of(job.run_dir).code) == ("FAILED", 9)


def test_a_mistake_of_the_user_does_not_restart_a_run(slurm_job: Any) -> None:
    job = slurm_job("fail_rank=0", "fail_code=2", restart_after_crash=True)
    assert launch.run([job]) == 2
    assert state_of(job.run_dir).restarts == 0


def test_a_node_that_failed_twice_is_left_out(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("pause=0.1", "fail_rank=0", "fail_code=9", "fail_node=node1")
    job = slurm_job(*words, restart_after_crash=True, max_crashes=5)
    assert launch.run([job]) == 0
    out = capfd.readouterr().out
    assert out.count("fresh start") == 3
    assert "launch: node1 failed twice; this job continues without it" in out
    assert json.loads((job.run_dir / "environment_0.json").read_text())["SLURMD_NODENAME"] == "node2"


def test_a_node_that_the_job_needs_is_not_left_out(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("pause=0.2", "steps=20", "saves=0", "fail_rank=1", "fail_code=9", "fail_starts=2")
    job = slurm_job(*words, nodes=2, restart_after_crash=True, max_crashes=3)
    assert launch.run([job]) == 0
    assert "launch: node2 failed twice, but this job cannot run without it" in capfd.readouterr().out


def test_preemption(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS, "more=3", nodes=2, cpus_per_task=16)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 2)
    urgent = slurm_job(name="urgent", nodes=2, cpus_per_task=16, partition="urgent", mode="detached")
    assert launch.run([urgent]) == 0
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 0 and "resuming from step" in out and "saved step" in out
    assert (urgent.run_dir / "finished.json").exists()


def test_preemption_where_the_site_cancels(slurm_job: Any) -> None:
    """PreemptMode=CANCEL: the job requeues itself in the grace time, if it saves in time."""
    job = slurm_job(*ENDLESS, "more=3", nodes=2, cpus_per_task=16, partition="scavenge")
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 2)
    urgent = slurm_job(name="urgent", nodes=2, cpus_per_task=16, partition="urgent", mode="detached")
    assert launch.run([urgent]) == 0
    out, _err = command.communicate(timeout=200)
    assert command.returncode == 0 and "resuming from step" in out


def test_a_run_that_stops_by_itself_is_not_requeued(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job(*ENDLESS, "limit=2", nodes=2)
    assert launch.run([job]) == 75
    assert "stopped by itself before its end and saved its state" in capfd.readouterr().out
    assert (state_of(job.run_dir).state, state_of(job.run_dir).restarts) == ("FAILED", 0)


def test_ranks_that_are_rolled_back_start_again_in_the_same_job(
    slurm_job: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """On two nodes: each task starts its rank again, all meet on another port, and Slurm requeues nothing."""
    job = slurm_job(entry="launch_entries:roll_back", nodes=2, ntasks_per_node=2, args=())
    job = replace(job, args=(str(job.run_dir), "2"))
    assert launch.run([job]) == 0
    ports = [(job.run_dir / f"starts_{rank}.txt").read_text().splitlines() for rank in range(4)]
    assert ports[1:] == ports[:1] * 3 and len(set(ports[0])) == len(ports[0]) == 3
    assert "restart" not in capfd.readouterr().err and state_of(job.run_dir).restarts == 0


@pytest.mark.timeout(600)
def test_time_limit_with_and_without_saving(slurm_job: Any) -> None:
    """Two jobs at once, because Slurm checks limits only every half minute: one saves, one ignores the signal."""
    keys = {"time": "2", "signal_delay_s": 30, "mode": "detached", "max_requeues": 1}
    good = slurm_job(*ENDLESS, name="good", **keys)
    deaf = slurm_job(*ENDLESS, "deaf=1", name="deaf", **keys)
    assert launch.run([good]) == 0 and launch.run([deaf]) == 0
    for job, words in ((good, "saved step"), (deaf, "not stopped 15 s after SIGUSR2: killing the rank and requeueing")):
        eventually(lambda run_dir=job.run_dir: state_of(run_dir).restarts == 1, 240)
        assert words in log_of(job.run_dir)
        eventually(lambda run_dir=job.run_dir: "resuming from step" in log_of(run_dir))


def test_ctrl_c_detaches(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS)
    command = start_attached(job)
    eventually(lambda: progress(job.run_dir) > 1)
    command.send_signal(signal.SIGINT)
    _out, err = command.communicate(timeout=200)
    assert command.returncode == 130 and "detached" in err and "Traceback" not in err
    assert state_of(job.run_dir).state == "RUNNING"


def test_second_ctrl_c_cancels(slurm_job: Any) -> None:
    job = slurm_job(*ENDLESS)
    command = start_attached(job, detach_s=100)  # the second comes when this process gets to it
    eventually(lambda: progress(job.run_dir) > 1)
    command.send_signal(signal.SIGINT)
    read_until(command.stderr, "detaching from")
    command.send_signal(signal.SIGINT)
    read_until(command.stderr, f"canceled {last_id(job.run_dir)}")
    assert command.wait() == 130
    eventually(lambda: state_of(job.run_dir).state == "CANCELLED")


def test_later_edits_do_not_reach_a_queued_job(slurm_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "edited_entry.py"
    module.write_text("def main(path):\n    open(path, 'w').write('old')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # `python -m` would take the working folder first
    job = slurm_job(entry="edited_entry:main", args=(str(tmp_path / "out"),), sbatch_args=["--hold"], mode="detached")
    assert launch.run([job]) == 0
    module.write_text("def main(path):\n    open(path, 'w').write('new')\n")
    subprocess.run(["scontrol", "release", last_id(job.run_dir)], check=True)
    eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text())
    assert (tmp_path / "out").read_text() == "old"


def test_submitting_from_inside_an_allocation(slurm_job: Any, tmp_path: Path) -> None:
    """The inner job must not inherit the resources of the outer job, and must find the cluster."""
    inner = slurm_job(name="inner", ntasks_per_node=1, nodes=1)
    program = tmp_path / "inner.py"
    program.write_text(
        "import sys, launch\nfrom pathlib import Path, PosixPath\nfrom nano3.config.cluster import ClusterConfig\n"
        f"Job = launch.Job\nsys.exit(launch.run([{inner!r}]))\n"
    )
    done = subprocess.run(
        ["srun", "-n1", "-N1", "--mem=500", "-t5", "-J", "outer", sys.executable, str(program)],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((inner.run_dir / "environment_0.json").read_text())["WORLD_SIZE"] == "1"
    assert "SBATCH" not in done.stderr


def test_the_profile_overrides_sbatch_defaults_of_the_user(slurm_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    job = slurm_job(partition="batch", mode="detached")
    assert launch.run([job]) == 0
    shown = subprocess.run(["scontrol", "show", "job", last_id(job.run_dir)], capture_output=True, text=True).stdout
    assert "Partition=batch" in shown and "TimeLimit=00:10:00" in shown
    free = with_cluster(slurm_job(name="free", mode="detached"), partition=None)
    assert launch.run([free]) == 0
    shown = subprocess.run(["scontrol", "show", "job", last_id(free.run_dir)], capture_output=True, text=True).stdout
    assert "Partition=urgent" in shown, "the user's default applies where the profile is unset"


def test_containers_through_pyxis(slurm_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test cluster's pyxis accepts the options and starts no container, so this Python replaces the image's."""
    if "container-image" not in subprocess.run(["srun", "--help"], capture_output=True, text=True).stdout:
        pytest.skip("the cluster was started without --pyxis")
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(tmp_path)
    job = slurm_job(
        container_runtime="pyxis", container="nvcr.io#nvidia/nemo:25.11", mounts=[f"{data}:/data:ro"], env={"A": "x y"},
        python=sys.executable,
    )  # fmt: skip
    assert launch.run([job]) == 0
    environment = json.loads((job.run_dir / "environment_0.json").read_text())
    assert environment["FAKE_PYXIS_IMAGE"] == "nvcr.io#nvidia/nemo:25.11"
    assert f"{data}:/data:ro" in environment["FAKE_PYXIS_MOUNTS"].split(",")
    assert environment["FAKE_PYXIS_ENV"] == "A" and environment["A"] == "x y"
    assert environment["PWD"] == str(tmp_path) or environment["FAKE_PYXIS_WORKDIR"] == str(tmp_path)


def test_dependency(slurm_job: Any) -> None:
    first = slurm_job("pause=0.5", name="first", mode="detached")
    assert launch.run([first]) == 0
    second = slurm_job(name="second", after=(last_id(first.run_dir),))
    assert launch.run([second]) == 0
    assert (first.run_dir / "finished.json").exists()


def test_dependency_on_runs_by_name(slurm_job: Any) -> None:
    first = slurm_job("pause=1", name="first", mode="detached")
    assert launch.run([first]) == 0
    second = slurm_job(name="second", dependency="first")
    assert launch.run([second]) == 0
    assert (first.run_dir / "finished.json").stat().st_mtime < (second.run_dir / "environment_0.json").stat().st_mtime
    assert launch.run([slurm_job(name="third", dependency="first")]) == 0, "the first has finished"


def test_dependency_on_a_run_that_failed_is_refused(slurm_job: Any) -> None:
    first = slurm_job("fail_rank=0", "fail_code=5", name="first")
    assert launch.run([first]) == 5
    with pytest.raises(UserError, match=r"first: job \d+ ended as FAILED with exit code 5"):
        launch.run([slurm_job(name="second", dependency="first")])
    assert launch.run([slurm_job(name="third", dependency="afterany:first")]) == 0


def test_teardown_runs_after_each_start(slurm_job: Any, tmp_path: Path) -> None:
    words = ("pause=0.1", "steps=8", "fail_rank=0", "fail_code=9", "fail_at=3", "fail_starts=1")
    lines = [f'echo "$(hostname) $code" >>{tmp_path}/ends', "exit 4"]
    job = slurm_job(*words, restart_after_crash=True, teardown=lines)
    assert launch.run([job]) == 0
    assert (tmp_path / "ends").read_text() == "node1 9\nnode1 0\n"


def test_dependency_that_fails_cancels(slurm_job: Any) -> None:
    first = slurm_job("pause=0.5", "fail_rank=0", "fail_code=5", name="first", mode="detached")
    assert launch.run([first]) == 0
    second = slurm_job(name="second", after=(last_id(first.run_dir),))
    assert launch.run([second]) == 143
    assert not (second.run_dir / "finished.json").exists()


def test_end_of_a_job_from_accounting(slurm_job: Any) -> None:
    if (
        "accounting_storage/none"
        in subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    ):
        pytest.skip("the cluster has no accounting")
    job = slurm_job("fail_rank=0", "fail_code=6")
    assert launch.run([job]) == 6
    job_id = last_id(job.run_dir)
    shown = eventually(lambda: (found := slurm._from_sacct([job_id])) and found[job_id].ended and found[job_id])
    assert (shown.state, shown.code, shown.nodes) == ("FAILED", 6, "node1")


def test_script_text_needs_no_submission(slurm_job: Any) -> None:
    job = slurm_job()
    Batch([job], job.name, job.run_dir / "slurm").script_text()
    assert not job.run_dir.exists()
