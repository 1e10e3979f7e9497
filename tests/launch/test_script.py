"""launch.script and launch.job_end: the job script, run by bash with a fake srun that records its call."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_helpers import with_cluster

import launch
from launch.submit import Batch
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import UserError

HOSTILE = [
    "plain",
    "with space",
    "it's",
    'say "hi"',
    "$HOME `id` $(id)",
    "; rm -rf x",
    "two\nlines",
    "#SBATCH --wrap=x\n#SBATCH --array=1-9",
    "back\\slash",
    "*?[a]{b,c}~!",
    "tab\tand\rreturn",
    "é€😀",
    "-n",
    "",
    "a=b=c",
    "|&<>()",
]


def run_script(text: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "SLURM_JOB_ID": "7", **environment}
    return subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=False)


def srun_call(recorder: Path) -> tuple[list[str], dict[str, str]]:
    words, environment = json.loads((recorder / "srun.json").read_text())
    return words, environment


def batch_of(job: launch.Job) -> Batch:
    (job.run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    return Batch([job], job.name, job.run_dir / "slurm")


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("runtime", ["none", "apptainer"])
def test_environment_values_are_unchanged(make_job: Any, recorder: Path, value: str, runtime: str) -> None:
    job = make_job(kind="slurm", env={"VALUE": value}, container_runtime=runtime, container="image")
    done = run_script(batch_of(job).script_text())
    assert (done.returncode, done.stderr) == (0, "")
    _words, environment = srun_call(recorder)
    assert environment["VALUE"] == value
    if runtime == "apptainer":
        assert environment["APPTAINERENV_VALUE"] == value


@pytest.mark.parametrize("name", [h for h in HOSTILE if h and not set(h) & set("\\\n\r\t%")])
def test_names_and_folders_are_unchanged(make_job: Any, recorder: Path, name: str) -> None:
    job = make_job(kind="slurm", name=name)
    text = batch_of(job).script_text()
    assert run_script(text).returncode == 0
    words, _ = srun_call(recorder)
    folder = str(job.run_dir / "slurm")
    assert words[words.index("--output") + 1] == f"{folder}/%j_%t_log.out"
    assert words[-3:-1] == ["-m", "launch.task"] and words[-1].startswith(f"{folder}/tasks-")
    assert not list(Path.cwd().glob("x"))
    headers = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all("wrap" not in line and "array" not in line for line in headers)


@pytest.mark.parametrize("image", [*HOSTILE[:6], "a,b"])
@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_image_is_one_word(make_job: Any, recorder: Path, image: str, runtime: str) -> None:
    job = make_job(kind="slurm", container_runtime=runtime, container=image)
    assert run_script(batch_of(job).script_text()).returncode == 0
    words, _ = srun_call(recorder)
    wanted = {"pyxis": f"--container-image={image}", "apptainer": f"docker://{image}"}
    assert wanted[runtime] in words


@pytest.mark.parametrize("argument", ["--comment=a b", "--comment='; rm'", '--comment="$(id)"', "--constraint=a|b&c"])
def test_extra_arguments_are_one_word_each(make_job: Any, recorder: Path, argument: str) -> None:
    job = make_job(kind="slurm", srun_args=[argument])
    assert run_script(batch_of(job).script_text()).returncode == 0
    assert argument in srun_call(recorder)[0]


def test_profile_keys_in_the_script(make_job: Any, recorder: Path) -> None:
    job = make_job(
        kind="slurm", name="my run", account="proj", partition="batch", qos="high", nodes=2, ntasks_per_node=8,
        gpus_per_node=8, cpus_per_task=12, mem="0", time="1-12:00:00", signal_delay_s=300, mpi="pmix",
        sbatch_args=["--exclusive", "--constraint=h100"], srun_args=["--cpu-bind=none"], after=("5", "6_1"),
        setup=["module load cuda"],
    )  # fmt: skip
    lines = batch_of(job).script_text().splitlines()
    for wanted in [
        "--job-name=my-run", "--account=proj", "--partition=batch", "--qos=high", "--nodes=2", "--ntasks-per-node=8",
        "--gpus-per-node=8", "--cpus-per-task=12", "--mem=0", "--time=1-12:00:00", "--signal=USR2@300", "--exclusive",
        "--constraint=h100", "--requeue", "--dependency=afterok:5:6_1", "--kill-on-invalid-dep=yes",
        "--open-mode=append",
    ]:  # fmt: skip
        assert f"#SBATCH {wanted}" in lines, wanted
    assert "module load cuda" in lines
    srun = next(line for line in lines if line.startswith("srun"))
    options = ["--kill-on-bad-exit=1", "--wait=0", "--open-mode=append"]
    for word in [*options, "--cpus-per-task=12", "--mpi=pmix", "--cpu-bind=none"]:
        assert f" {word} " in srun
    assert not [line for line in lines if "wckey" in line or "submitit" in line.partition("=")[2][:9]]


def test_pyxis_options(make_job: Any, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    job = make_job(
        kind="slurm", container_runtime="pyxis", container="img", mounts=[f"{data}:/data:ro"], env={"A": "1", "B": "2"}
    )
    run_script(batch_of(job).script_text())
    words, _ = srun_call(recorder)
    assert "--container-image=img" in words
    mounts = next(word for word in words if word.startswith("--container-mounts=")).partition("=")[2].split(",")
    assert sorted(mounts) == sorted([f"{here}:{here}", f"{job.run_dir}:{job.run_dir}", f"{data}:/data:ro"])
    assert f"--container-workdir={here}" in words
    assert "--container-env=A,B" in words
    assert words[words.index("-u") - 2] == "python", "the image's Python, not this one"


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_everything_a_run_uses_is_mounted_once(
    make_job: Any, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    for name in ("work", "lustre/data", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "work")
    folders = ("inside", "link", f"{tmp_path}/lustre/data/part", f"{tmp_path}/lustre/data", f"{tmp_path}/lustre/data2")
    job = make_job(kind="slurm", container_runtime=runtime, container="img", folders=folders)
    text = batch_of(job).script_text()
    run_script(text)
    words, _ = srun_call(recorder)
    if runtime == "pyxis":
        mounts = next(word for word in words if word.startswith("--container-mounts=")).partition("=")[2].split(",")
    else:
        mounts = [words[i + 1] for i, word in enumerate(words) if word == "--bind"]
    names = ("run", "work", "elsewhere", "lustre/data", "lustre/data2")
    assert sorted(mounts) == sorted(f"{tmp_path / name}:{tmp_path / name}" for name in names)
    assert launch.run([job], dry_run=True) == 1 and text == batch_of(job).script_text()


def test_apptainer_command(make_job: Any, recorder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(
        kind="slurm", container_runtime="apptainer", container="my image.sif", gpus_per_node=8, python="python3.12"
    )
    run_script(batch_of(job).script_text())
    words, _ = srun_call(recorder)
    start = words.index("apptainer")
    assert words[start : start + 9] == [
        "apptainer", "exec", "--nv", "--bind", f"{tmp_path}:{tmp_path}", "--pwd", str(tmp_path), "my image.sif",
        "python3.12",
    ]  # fmt: skip


def test_python_of_the_profile(make_job: Any, recorder: Path) -> None:
    run_script(batch_of(make_job(kind="slurm")).script_text())
    assert sys.executable in srun_call(recorder)[0]
    run_script(batch_of(make_job(kind="slurm", python="/opt/my python")).script_text())
    assert "/opt/my python" in srun_call(recorder)[0]


@pytest.mark.parametrize(
    ("srun_code", "again", "failed", "restarts", "state", "code", "requeued"),
    [
        ("0", False, None, "0", "RUNNING", 0, False),
        ("3", False, "3 1 node1", "0", "RUNNING", 3, False),
        ("137", False, "3 1 node1", "0", "RUNNING", 3, False),
        ("137", False, None, "0", "RUNNING", 137, False),
        ("1", False, "1 1 node1 restart", "0", "RUNNING", 1, True),
        ("1", False, "1 1 node1 restart", "2", "RUNNING", 1, False),
        ("1", False, "1 1 node1 restart", "0", "CANCELLED", 1, False),
        ("1", False, "1 1 node1 give-up", "0", "RUNNING", 1, False),
        ("1", False, "1 1 node1 end", "0", "RUNNING", 1, False),
        ("0", True, None, "0", "RUNNING", 75, True),
        ("0", True, None, "1", "RUNNING", 75, True),
        ("0", True, None, "2", "RUNNING", 75, False),
        ("0", True, None, "0", "CANCELLED", 75, False),
        ("137", True, "9 0 node1", "0", "RUNNING", 9, False),
        ("1", True, None, "0", "RUNNING", 1, False),
        ("77", False, None, "0", "RUNNING", 75, True),
        ("77", False, None, "2", "RUNNING", 75, False),
        ("77", False, "9 0 node1", "0", "RUNNING", 9, False),
        ("75", False, None, "0", "RUNNING", 75, False),
    ],
    ids=[
        "success", "rank fails", "rank fails, others killed", "no record", "crash", "crash too often",
        "crash of a cancelled job", "crash without progress", "mistake", "saved", "saved again", "too often",
        "cancelled", "one saved, one failed", "one saved, one lost", "saved, unmarked", "saved, unmarked, too often",
        "one unmarked, one failed", "stopped, unmarked",
    ],
)  # fmt: skip
def test_end_of_the_script(
    make_job: Any, recorder: Path, srun_code: str, again: bool, failed: str | None, restarts: str, state: str,
    code: int, requeued: bool,
) -> None:  # fmt: skip
    job = make_job(kind="slurm", max_requeues=2)
    text = batch_of(job).script_text()
    marks = [f"touch {job.run_dir}/slurm/7.again"] if again else []
    marks += [f"echo '{failed}' >{job.run_dir}/slurm/7.exit"] if failed else []
    srun = recorder / "srun"
    srun.write_text("#!/bin/sh\n" + "\n".join([*marks, f"exit {srun_code}"]) + "\n")
    done = run_script(text, SLURM_RESTART_COUNT=restarts, JOB_STATE=state)
    assert done.returncode == code, done.stderr
    calls = recorder / "scontrol.txt"
    assert (calls.exists() and "requeue 7" in calls.read_text()) == requeued


@pytest.mark.parametrize(
    ("earlier", "failed", "excluded", "accepted", "update"),
    [
        ("node1\n", "9 2 node1 restart", "(null)", True, "jobid=7 excnodelist=node1"),
        ("node2\nnode1\n-\n", "76 2 node1 restart", "node[3-4]", True, "jobid=7 excnodelist=node[3-4],node1"),
        ("node1\n", "9 2 node1 restart", "(null)", False, None),
        ("node2\nnode11\n", "9 2 node1 restart", "(null)", True, None),
        ("-\n", "76 2 - restart", "(null)", True, None),
        ("node1\n", "9 2 node1 end", "(null)", True, None),
    ],
    ids=["twice", "besides others", "needed", "another", "unknown", "no restart"],
)
def test_a_node_that_failed_twice_is_excluded_from_the_next_start(
    make_job: Any, recorder: Path, earlier: str, failed: str, excluded: str, accepted: bool, update: str | None
) -> None:
    job = make_job(kind="slurm")
    text = batch_of(job).script_text()
    (job.run_dir / "slurm" / "7.failed").write_text(earlier)
    (recorder / "srun").write_text(f"#!/bin/sh\necho '{failed}' >{job.run_dir}/slurm/7.exit\nexit 9\n")
    show = f'echo "JobId=1 JobState=RUNNING Reason=None NodeList=node1 ExcNodeList={excluded} X=y"'
    (recorder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>{recorder}/scontrol.txt\n{show}\n')
    (recorder / "sbatch").write_text(f'#!/bin/sh\necho "$@" >{recorder}/sbatch.txt\nexit {0 if accepted else 1}\n')
    done = run_script(text, SLURM_RESTART_COUNT="1")
    assert done.returncode == int(failed.split()[0])
    calls = (recorder / "scontrol.txt").read_text() if (recorder / "scontrol.txt").exists() else ""
    assert [line.removeprefix("update ") for line in calls.splitlines() if "update" in line] == [update] * bool(update)
    assert ("requeue 7" in calls) == ("restart" in failed)
    assert ("failed twice; this job continues without it" in done.stderr) == bool(update)
    assert ("failed twice, but this job cannot run without it" in done.stderr) == (not accepted)
    if update:
        nodes = update.partition("excnodelist=")[2]
        assert f"--test-only --dependency= --exclude={nodes}" in (recorder / "sbatch.txt").read_text()
    assert (job.run_dir / "slurm" / "7.failed").read_text() == f"{earlier}{failed.split()[2]}\n"


def test_failures_of_an_earlier_job_with_the_same_id_are_removed(make_job: Any, recorder: Path) -> None:
    job = make_job(kind="slurm")
    text = batch_of(job).script_text()
    files = [job.run_dir / "slurm" / name for name in ("7.failed", "7.starts.json")]
    for count, kept in (("1", True), ("0", False)):
        for file in files:
            file.write_text("x")
        run_script(text, SLURM_RESTART_COUNT=count)
        assert [file.exists() for file in files] == [kept, kept]


@pytest.mark.parametrize(("also_requested", "requeued"), [(False, False), (True, True)])
def test_a_run_that_stopped_by_itself_is_not_requeued(
    make_job: Any, recorder: Path, also_requested: bool, requeued: bool
) -> None:
    """It is requeued only if Slurm asked another rank to stop at the same time."""
    job = make_job(kind="slurm")
    text = batch_of(job).script_text()
    marks = [f"touch {job.run_dir}/slurm/7.stopped"] + [f"touch {job.run_dir}/slurm/7.again"] * also_requested
    (recorder / "srun").write_text("#!/bin/sh\n" + "\n".join(marks) + "\n")
    done = run_script(text)
    assert done.returncode == 75 and ("stopped by itself" in done.stderr) == (not also_requested)
    calls = recorder / "scontrol.txt"
    assert (calls.exists() and "requeue 7" in calls.read_text()) == requeued


def test_markers_of_an_earlier_start_are_removed(make_job: Any, recorder: Path) -> None:
    job = make_job(kind="slurm")
    text = batch_of(job).script_text()
    for name in ("7.again", "7.exit", "7.stopped"):
        (job.run_dir / "slurm" / name).write_text("5 0 node1\n")
    assert run_script(text).returncode == 0


def test_task_of_an_array_requeues_itself_only(make_job: Any, recorder: Path) -> None:
    """For the last task of an array SLURM_JOB_ID is the id of the whole array."""
    job = make_job(kind="slurm")
    text = batch_of(job).script_text()
    (recorder / "srun").write_text(f"#!/bin/sh\ntouch {job.run_dir}/slurm/7_3.again\n")
    run_script(text, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert "requeue 7_3\n" in (recorder / "scontrol.txt").read_text()


def test_setup_may_use_set_e(make_job: Any, recorder: Path) -> None:
    text = batch_of(make_job(kind="slurm", setup=["set -eu"])).script_text()
    (recorder / "srun").write_text("#!/bin/sh\nexit 4\n")
    assert run_script(text).returncode == 4


def test_dry_run_prints_the_script_and_the_error_of_sbatch(
    make_job: Any, recorder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(kind="slurm", preview="resolved: config\n")
    text = Batch([job], job.name, job.run_dir / "slurm").script_text()
    assert launch.run([job], dry_run=True) == 1
    out = capfd.readouterr().out
    assert text in out and "sbatch: error: not today" in out and "resolved: config" in out
    assert not job.run_dir.exists()


def test_dry_run_of_a_sweep_that_has_finished(make_job: Any, recorder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job(kind="slurm", name=f"s/p{i}", label=f"p{i}") for i in range(2)]
    for job in jobs:
        job.run_dir.mkdir(parents=True)
        (job.run_dir / "finished.json").write_text("{}")
    assert launch.run(jobs, sweep=True, dry_run=True) == 0
    assert "all 2 points have finished: there is nothing to submit" in capfd.readouterr().err
    assert launch.run(jobs, sweep=True) == 0
    assert "2 of 2 points finished" in capfd.readouterr().err


def test_a_finished_run_is_not_submitted_again(
    make_job: Any, recorder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(kind="slurm")
    job.run_dir.mkdir()
    (job.run_dir / "finished.json").write_text("{}")
    assert launch.run([job]) == 0
    assert f"{job.run_dir} has finished: nothing to do" in capfd.readouterr().err
    with pytest.raises(UserError, match="Slurm rejected"):  # it is submitted
        launch.run([replace(job, changed=True)])


@pytest.mark.parametrize("image", [None, "nvcr.io/nvidia/nemo:25.11"])
def test_an_array_has_a_container_only_if_it_has_an_image(
    tmp_path: Path, recorder: Path, capfd: pytest.CaptureFixture[str], image: str | None
) -> None:
    cluster = ClusterConfig(kind="slurm", container_runtime="pyxis", python="python3", mounts=["/tmp:/data"])
    launch.run_array(
        "prep", tmp_path / "prep", entry="launch_entries:part", args=(str(tmp_path), ""), tasks=3,
        finalize="launch_entries:gather", cluster=cluster, dry_run=True, container=image, folders=("/var/data",),
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert err.count("prep runs without a container: its key container is not set") == (image is None)
    assert out.count("--container-image=nvcr.io#nvidia/nemo:25.11") == (2 if image else 0)
    assert out.count("/var/data:/var/data") == (2 if image else 0)
    assert out.count(f"{sys.executable} ") == (0 if image else 2), "the profile's Python is that of the container"


def test_array_script(make_job: Any, recorder: Path) -> None:
    jobs = [make_job(kind="slurm", name=f"p{i}", array_parallelism=2) for i in range(4)]
    text = Batch(jobs, "sweep", jobs[0].run_dir.parent / "slurm").script_text()
    assert "#SBATCH --array=0-3%2" in text
    text = Batch(
        [with_cluster(job, array_parallelism=None) for job in jobs], "sweep", jobs[0].run_dir.parent
    ).script_text()
    assert "#SBATCH --array=0-3%4" in text


def test_a_line_of_setup_that_fails_ends_the_job(make_job: Any, recorder: Path) -> None:
    good = ["[ -e /nowhere ] && true", "if false; then exit 9; fi", "value=$(echo x)", "export Y=$value"]
    text = batch_of(make_job(kind="slurm", setup=good)).script_text()
    assert run_script(text).returncode == 0
    assert json.loads((recorder / "srun.json").read_text())[1]["Y"] == "x"
    (recorder / "srun.json").unlink()
    done = run_script(batch_of(make_job(kind="slurm", setup=["true", "cat /nowhere/module", "true"])).script_text())
    assert done.returncode == 1 and "cluster.setup failed with exit code 1: cat /nowhere/module" in done.stderr
    assert not (recorder / "srun.json").exists(), "the ranks are not started"


def test_teardown_runs_at_every_end_and_does_not_change_it(make_job: Any, recorder: Path, tmp_path: Path) -> None:
    lines = ["set -e", f'echo "$code it\'s" >>{tmp_path}/ends', "cd /", "false", "exit 7"]
    job = make_job(kind="slurm", teardown=lines)
    text = batch_of(job).script_text()
    for code in (0, 3):
        done = run_script(text, SRUN_CODE=str(code))
        assert done.returncode == code
        assert "cluster.teardown failed with exit code" in done.stderr
    (recorder / "srun").write_text(f"#!/bin/sh\ntouch {job.run_dir}/slurm/7.again\n")
    assert run_script(text).returncode == 75
    assert "requeue 7" in (recorder / "scontrol.txt").read_text()
    assert (tmp_path / "ends").read_text() == "0 it's\n3 it's\n0 it's\n"
    good = batch_of(make_job(kind="slurm", teardown=[f"rm -f {tmp_path}/ends"])).script_text()
    assert (run_script(good).stderr, (tmp_path / "ends").exists()) == ("", False)


def test_options_of_sbatch_by_their_own_names(make_job: Any, srun_on_path: None) -> None:
    keys = {"comment": "it's mine; $x", "reservation": "r1", "exclude": "node[3-4]", "begin": "now+1hour"}
    text = batch_of(make_job(kind="slurm", mail_type="END,FAIL", mail_user="a@b.c", **keys)).script_text()
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    words = [word for line in lines for word in shlex.split(line)]
    assert {"--comment=it's mine; $x", "--reservation=r1", "--exclude=node[3-4]", "--begin=now+1hour"} <= set(words)
    assert {"--mail-type=END,FAIL", "--mail-user=a@b.c"} <= set(words)
