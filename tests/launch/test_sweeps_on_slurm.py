"""Sweeps, arrays with a finalizer, and the tools, on a real Slurm."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import eventually, last_id, with_cluster

import launch
from launch import job_records, slurm
from nano3.config.cluster import ClusterConfig
from nano3.tools import cancel, jobs, tail
from nano3.utils.errors import UserError

pytestmark = pytest.mark.slurm


def points(slurm_job: Any, count: int, *options: str, **keys: Any) -> list[launch.Job]:
    return [
        slurm_job(f"steps={i + 1}", *options, name=f"sweep/steps={i + 1}", label=f"steps={i + 1}", **keys)
        for i in range(count)
    ]


def arrays(jobs: list[launch.Job]) -> set[str]:
    return {last_id(job.run_dir).partition("_")[0] for job in jobs}


def test_sweep_of_four_points_is_one_array(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    made = points(slurm_job, 4, array_parallelism=2)
    assert launch.run(made, sweep=True) == 0
    out, err = capfd.readouterr()
    assert len(arrays(made)) == 1 and "4 of 4 points finished" in err
    assert re.search(r"^steps=4\s+\d+_3\s+COMPLETED\s+4\s+0.2500\s+\d+ \w+\s+0$", out, re.MULTILINE)
    script = next((made[0].run_dir.parent / "slurm").glob("*_submission.sh")).read_text()
    assert "#SBATCH --array=0-3%2" in script
    assert {e.state for job in made for e in job_records.read_records(job.run_dir)} == {"COMPLETED"}


def test_failed_point_and_rerun(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    made = points(slurm_job, 3)
    bad = replace(made[1], args=(*made[1].args, "fail_rank=0", "fail_code=7"))
    assert launch.run([made[0], bad, made[2]], sweep=True) == 7
    err = capfd.readouterr().err
    assert "2 of 3 points finished, 1 failed" in err and "boom on rank 0" in err
    assert [job.finished for job in made] == [True, False, True]
    assert launch.run(made, sweep=True) == 0
    assert [len(job_records.read_records(job.run_dir)) for job in made] == [1, 2, 1], "only unfinished points run again"


def test_crashed_points_restart_and_leave_out_a_node_that_failed_twice(slurm_job: Any) -> None:
    words = ("fail_rank=0", "fail_code=9", "fail_node=node1")
    made = points(slurm_job, 2, *words, restart_after_crash=True, max_crashes=5)
    assert launch.run(made, sweep=True) == 0
    nodes = [json.loads((job.run_dir / "environment_0.json").read_text())["SLURMD_NODENAME"] for job in made]
    states = slurm.states([last_id(job.run_dir) for job in made])
    assert nodes == ["node2", "node2"] and {state.restarts for state in states.values()} == {2}


def test_points_with_other_resources_get_their_own_array(slurm_job: Any) -> None:
    made = points(slurm_job, 4)
    made[2:] = [with_cluster(job, nodes=2) for job in made[2:]]
    assert launch.run(made, sweep=True) == 0
    assert len(arrays(made)) == 2
    worlds = [json.loads((j.run_dir / "environment_0.json").read_text())["WORLD_SIZE"] for j in made]
    assert worlds == ["1", "1", "2", "2"]


def test_a_sweep_is_submitted_as_a_whole_or_not_at_all(slurm_job: Any) -> None:
    made = points(slurm_job, 3, "pause=60", mode="detached")
    made[2] = with_cluster(made[2], gpus_per_node=9)
    with pytest.raises(UserError, match="Slurm rejected"):
        launch.run(made, sweep=True)
    states = slurm.states([last_id(made[0].run_dir)])
    assert eventually(lambda: {s.state for s in slurm.states(list(states)).values()} == {"CANCELLED"})


def test_tail_of_a_sweep_names_the_rank_that_failed(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    made = points(slurm_job, 3, "pause=0.3", mode="detached", ntasks_per_node=2)
    made[1] = replace(made[1], args=(*made[1].args, "fail_rank=1", "fail_code=7"))
    base = made[0].run_dir.parent
    assert launch.run(made, sweep=True) == 0
    assert f"Follow it with `nano3 tail {base}`" in capfd.readouterr().err
    words = argparse.Namespace(run=str(base), lines=5, rank=0, no_follow=False)
    for _ in range(2):  # while it runs, and after its end
        assert tail.run(words) == 7
        err = capfd.readouterr().err
        assert "steps=2: rank 1 failed with exit code 7" in err and "boom on rank 1" in err
        assert "2 of 3 points finished, 1 failed" in err


def test_detached_sweep_then_jobs_and_cancel(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    made = points(slurm_job, 3, "pause=60", mode="detached", array_parallelism=1)
    base = made[0].run_dir.parent
    assert launch.run(made, sweep=True) == 0
    capfd.readouterr()

    def reported() -> bool:
        assert jobs.run(argparse.Namespace(folders=[base], active=False, watch=None)) == 0
        out = capfd.readouterr().out
        return out.count("RUNNING on node1") == 1 and out.count("PENDING (JobArrayTaskLimit: ") == 2

    eventually(reported)
    assert cancel.run(argparse.Namespace(runs=[str(base)])) == 0
    eventually(lambda: all(s.ended for s in slurm.states([last_id(job.run_dir) for job in made]).values()))
    capfd.readouterr()
    assert cancel.run(argparse.Namespace(runs=[str(base)])) == 0
    assert "is running or pending" in capfd.readouterr().out


def test_tail_follows_to_the_end(slurm_job: Any, capfd: pytest.CaptureFixture[str]) -> None:
    job = slurm_job("pause=0.5", "steps=4", "fail_rank=1", "fail_code=5", ntasks_per_node=2, mode="detached")
    launch.run([job])
    capfd.readouterr()
    arguments = argparse.Namespace(run=str(job.run_dir), lines=20, rank=0, no_follow=False)
    assert tail.run(arguments) == 5
    out, err = capfd.readouterr()
    assert out.count("fresh start") == 1 and "rank 1 on node1 failed first" in err
    assert tail.run(arguments) == 5, "the job has ended: its log is shown"
    assert "FAILED" in capfd.readouterr().err


def run_array(tmp_path: Path, mode: str, tasks: int = 4, **more: Any) -> int:
    cluster = ClusterConfig(kind="slurm", poll_s=0.3, mem="200M", time="10", **more.pop("keys", {}))
    return launch.run_array(
        "prep", tmp_path / "prep", entry="launch_entries:part", args=(str(tmp_path), mode), tasks=tasks,
        finalize="launch_entries:gather", cluster=cluster, **more,
    )  # fmt: skip


@pytest.mark.parametrize("tasks", [1, 4])
def test_array_then_finalizer(slurm_job: Any, tmp_path: Path, tasks: int) -> None:
    assert run_array(tmp_path, "", tasks) == 0
    assert (tmp_path / "gathered").read_text() == "\n".join(f"{i} of {tasks}" for i in range(tasks))


def test_a_failed_task_is_requeued_alone(slurm_job: Any, tmp_path: Path) -> None:
    assert run_array(tmp_path, "once:2") == 0
    assert len((tmp_path / "gathered").read_text().splitlines()) == 4
    array = job_records.read_records(tmp_path / "prep")[-1].parts[0]
    states = slurm.states(f"{array}_{i}" for i in range(4))
    assert [states[f"{array}_{i}"].restarts for i in range(4)] == [0, 0, 1, 0]


def test_a_lost_task_is_repeated_by_the_finalizer(slurm_job: Any, tmp_path: Path) -> None:
    after = slurm_job(name="train")
    assert run_array(tmp_path, "vanish:1", then=after) == 0
    assert len((tmp_path / "gathered").read_text().splitlines()) == 4
    assert (after.run_dir / "finished.json").exists()


def test_the_finalizer_names_missing_tasks(slurm_job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    after = slurm_job(name="train")
    assert run_array(tmp_path, "always:3", then=after, keys={"max_crashes": 1}) == 1
    out, _err = capfd.readouterr()
    assert "1 of 4 tasks did not finish: 3. See " in out
    assert not (tmp_path / "gathered").exists()
    eventually(lambda: slurm.states([last_id(after.run_dir)])[last_id(after.run_dir)].state == "CANCELLED")


def test_array_dry_run(slurm_job: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_array(tmp_path, "", dry_run=True, then=slurm_job(name="train", preview="resolved")) == 0
    out = capfd.readouterr().out
    assert "--array=0-3" in out and "--dependency=afterany:ARRAY_JOB_ID" in out and "resolved" in out
    assert "--dependency=afterok:FINALIZER_JOB_ID" in out and not (tmp_path / "prep").exists()


def test_array_detached(slurm_job: Any, tmp_path: Path) -> None:
    assert run_array(tmp_path, "", keys={"mode": "detached", "sbatch_args": ["--hold"]}) == 0
    with pytest.raises(UserError, match="of this run is"):
        run_array(tmp_path, "")
    subprocess.run(["scontrol", "release", *job_records.read_records(tmp_path / "prep")[-1].ids], check=True)
    eventually(lambda: (tmp_path / "gathered").exists())


def test_an_array_larger_than_slurm_allows(slurm_job: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster.tasks=2002 is more than .* 2001 at most"):
        run_array(tmp_path, "", tasks=2002, keys={"mode": "detached"})


APP = """
import sys
from pathlib import Path
import hydra
import launch
from nano3.config.cluster import ClusterConfig

def make_job(cfg, run_dir, label):
    cluster = ClusterConfig(kind="slurm", poll_s=0.3, mem="200M", time="10", nodes=cfg.nodes)
    args = (str(run_dir), f"steps={cfg.steps}")
    return launch.Job("app", run_dir, "launch_entries:count", args, cluster, label=label)

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    sys.exit(launch.run([make_job(cfg, Path(cfg.dir).absolute(), "")], dry_run=cfg.dry_run))

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [_self_, {override hydra/launcher: nano3}, {override hydra/job_logging: none}]
steps: 2
nodes: 1
dir: runs
dry_run: false
hydra: {output_subdir: null, run: {dir: .}, sweep: {dir: "${dir}"}, launcher: {job_factory: app.make_job}}
"""


def test_multirun(slurm_job: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG)

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "app.py", *words], cwd=tmp_path, capture_output=True, text=True)

    dry = run("-m", "steps=1,2", "dry_run=true")
    assert dry.returncode == 0 and dry.stdout.count("#SBATCH --array=0-1") == 1, dry.stderr
    assert not (tmp_path / "runs").exists()
    done = run("-m", "steps=1,2", "nodes=1,2")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "runs").iterdir() if p.name != "slurm")
    assert names == ["nodes=1__steps=1", "nodes=1__steps=2", "nodes=2__steps=1", "nodes=2__steps=2"]
    assert json.loads((tmp_path / "runs" / names[3] / "environment_0.json").read_text())["WORLD_SIZE"] == "2"
    single = run("steps=1", "dir=single")
    assert single.returncode == 0 and "counted to 1" in single.stdout
