"""launch.check: problems found before anything starts."""

import re
from pathlib import Path
from typing import Any

import pytest

import launch
from launch.check import check_jobs, unused_key_problems
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Failure, UserError


def problems(job: launch.Job) -> list[str]:
    try:
        check_jobs([job])
    except UserError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"nodes": 2},
            "cluster.nodes=2 is for Slurm jobs: add cluster=slurm, or leave it out; on this machine,",
        ),
        ({"gpus_per_node": 8}, "cluster.nproc_per_node sets the number of ranks."),
        ({"mode": "detached"}, "cluster.mode=detached is for Slurm jobs: add cluster=slurm, or leave it out."),
        ({"time": "1:00:00"}, "cluster.time=1:00:00 is for Slurm jobs"),
        ({"partition": "gpu"}, "cluster.partition=gpu is for Slurm jobs"),
        ({"sbatch_args": ["--exclusive"]}, "cluster.sbatch_args=['--exclusive'] is for Slurm jobs"),
        ({"setup": ["module load cuda"]}, "cluster.setup is for Slurm jobs only."),
        ({"container_runtime": "pyxis"}, "cluster.container_runtime works with cluster.kind=slurm only."),
        ({"python": "/p"}, "cluster.python=/p is for Slurm jobs"),
        ({"mounts": ["/a:/a"]}, "cluster.mounts=['/a:/a'] is for Slurm jobs"),
        ({"max_crashes": 1}, "cluster.max_crashes=1 is for Slurm jobs"),
        ({"nodes": 0}, "cluster.nodes=0 is too small. The minimum is 1."),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_slurm_keys_are_rejected_on_this_machine(make_job: Any, keys: dict[str, Any], says: str) -> None:
    found = problems(make_job(kind="local", **keys))
    assert len(found) == 1 and says in found[0]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"kind": "slurm", "comment": "a\nb"}, "cluster.comment='a\\nb' is empty or has control characters."),
        (
            {"kind": "slurm", "mail_type": "END", "sbatch_args": ["--mail-type=ALL"]},
            "cluster.mail_type and --mail-type in cluster.sbatch_args are the same option.",
        ),
        (
            {"kind": "slurm", "dependency": "afterok:7", "sbatch_args": ["--dependency=singleton"]},
            "cluster.dependency and --dependency in cluster.sbatch_args are the same option.",
        ),
        ({"kind": "slurm", "nproc_per_node": 8}, "cluster.nproc_per_node=8 sets the ranks on this machine."),
        ({"kind": "slrum"}, "cluster.kind=slrum is not known. Did you mean 'slurm'?"),
        ({"mode": "background"}, "cluster.mode=background is not known. Allowed: attached, detached."),
        ({"container_runtime": "docker"}, "cluster.container_runtime=docker is not known."),
        ({"nodes": 0}, "cluster.nodes=0 is too small. The minimum is 1."),
        ({"ntasks_per_node": -1}, "cluster.ntasks_per_node=-1 is too small"),
        ({"gpus_per_node": -1}, "cluster.gpus_per_node=-1 is too small. The minimum is 0."),
        ({"cpus_per_task": 0}, "cluster.cpus_per_task=0 is too small"),
        ({"signal_delay_s": 5}, "cluster.signal_delay_s=5 is too small. The minimum is 30."),
        ({"array_parallelism": 0}, "cluster.array_parallelism=0 is too small"),
        ({"poll_s": 0}, "cluster.poll_s=0 must be greater than 0."),
        ({"time": "4h"}, "cluster.time='4h' is not a time limit. Write it as HH:MM:SS"),
        ({"time": "01:00:00\n#SBATCH --wrap=x"}, "is not a time limit"),
        ({"time": "1"}, "cluster.time=1 leaves no time to work"),
        ({"mem": "64 GB"}, "cluster.mem='64 GB' is not a size"),
        ({"partition": "a b"}, "cluster.partition='a b' is not a valid Slurm name."),
        ({"account": "x; rm -rf /"}, "cluster.account='x; rm -rf /' is not a valid"),
        ({"qos": "a\nb"}, r"cluster.qos='a\nb' is not a valid"),
        ({"env": {"A B": "1"}}, "cluster.env: 'A B' is not a variable name"),
        ({"env": {"X=1; rm": "1"}}, "cluster.env: 'X=1; rm' is not a variable name"),
        ({"env": {"": "1"}}, "cluster.env: '' is not a variable name"),
        ({"sbatch_args": ["-C h100"]}, "cluster.sbatch_args: '-C h100' is not a long option in one word"),
        ({"sbatch_args": ["--constraint h100"]}, "is not a long option in one word"),
        ({"sbatch_args": ["--comment=a\nrm -rf x"]}, "is not a long option in one word"),
        ({"sbatch_args": ["--comment='a b'"]}, "there is no shell that removes these quotes. Write --comment=a b."),
        ({"srun_args": ['--constraint="[a|b]"']}, "removes these quotes. Write --constraint=[a|b]."),
        ({"sbatch_args": ["--output=/dev/null"]}, "cluster.sbatch_args: --output is set by launch"),
        ({"srun_args": ["--signal=TERM"]}, "cluster.srun_args: --signal is set by launch"),
        ({"container_runtime": "pyxis"}, "cluster.container_runtime=pyxis needs an image: set run.env.container."),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_invalid_values_are_rejected(make_job: Any, recorder: Path, keys: dict[str, Any], says: str) -> None:
    found = problems(make_job(**{"kind": "slurm", **keys}))
    assert len(found) == 1 and says in found[0]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"time": "7-00:00:00", "mem": "0", "partition": "batch,short", "account": "proj_1.a-b"},
        {"sbatch_args": ["--constraint=h100|a100", "--exclusive"], "srun_args": ["--mpi=pmix", "--cpu-bind=none"]},
        {"env": {"_X": "any\n'thing' $HOME; rm"}},
        {"time": "UNLIMITED"},
    ],
    ids=["defaults", "names", "arguments", "env", "no limit"],
)
def test_valid_values_are_accepted(make_job: Any, recorder: Path, keys: dict[str, Any]) -> None:
    assert problems(make_job(**{"kind": "slurm", **keys})) == []


def test_all_problems_at_once(make_job: Any, recorder: Path) -> None:
    job = make_job(kind="slurm", nodes=0, time="soon", mem="much", env={"1": ""}, mode="x", entry="nothing")
    assert len(problems(job)) == 6


def test_points_of_a_sweep_share_a_problem(make_job: Any, recorder: Path) -> None:
    jobs = [make_job(kind="slurm", nodes=0, name=f"p{i}") for i in range(3)]
    with pytest.raises(UserError) as caught:
        check_jobs(jobs)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["100%", "back\\slash", "new\nline", "tab\t", "%j"])
def test_run_folders_that_slurm_would_expand_are_rejected(make_job: Any, recorder: Path, name: str) -> None:
    assert "Rename the folder" in problems(make_job(kind="slurm", name=name))[0]


@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ("/data", "must be host:container"),
        ("/data:relative", "must be host:container"),
        ("/tmp:/a,/etc:/b", "must be host:container"),
        ("/no/such/folder:/data", "/no/such/folder does not exist here"),
    ],
)
def test_mounts(make_job: Any, recorder: Path, mount: str, says: str) -> None:
    job = make_job(kind="slurm", container_runtime="pyxis", container="image", mounts=[mount])
    assert says in problems(job)[0]


def test_missing_image_file(make_job: Any, recorder: Path) -> None:
    job = make_job(kind="slurm", container_runtime="apptainer", container="/no/such.sif")
    assert problems(job) == ["run.env.container=/no/such.sif: no such file."]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"container_runtime": "pyxis"}, "inside the container"),
        ({"setup": ["module load x"]}, "cluster.setup is for"),
        ({"teardown": ["rm -r /tmp/x"]}, "cluster.teardown=['rm -r /tmp/x'] is for Slurm jobs"),
        ({"dependency": "afterok:7"}, "cluster.dependency=afterok:7 is for Slurm jobs"),
    ],
)
def test_slurm_features_are_rejected_on_this_machine(make_job: Any, keys: dict[str, Any], says: str) -> None:
    assert says in problems(make_job(**keys))[0]


def test_unknown_partition(make_job: Any, recorder: Path) -> None:
    assert problems(make_job(kind="slurm", partition="bacth")) == [
        "cluster.partition=bacth: Slurm has no such partition. Did you mean 'batch'?"
    ]


def test_no_slurm_here(make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "has no sbatch and srun" in problems(make_job(kind="slurm"))[0]


def test_controller_without_an_answer(make_job: Any, recorder: Path) -> None:
    (recorder / "sinfo").write_text("#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(Failure, match=r"Slurm does not answer: .*Unable to contact"):
        check_jobs([make_job(kind="slurm", partition="batch")])


def test_an_sbatch_error_is_reported_and_leaves_no_job(make_job: Any, recorder: Path) -> None:
    job = make_job(kind="slurm")
    with pytest.raises(UserError, match="Slurm rejected the job: not today"):
        launch.run([job])
    assert not (job.run_dir / "jobs.json").exists()
    assert [p.name for p in (job.run_dir / "slurm").iterdir() if not re.match(r"code-|\.lock", p.name)] == []


def test_nothing_to_run() -> None:
    with pytest.raises(UserError, match="nothing to run"):
        launch.run([])


def test_several_jobs_are_a_sweep(make_job: Any) -> None:
    with pytest.raises(UserError, match="--multirun"):
        launch.run([make_job(name="a"), make_job(name="b")])


def test_mixed_sweep(make_job: Any, recorder: Path) -> None:
    with pytest.raises(UserError, match="partly local"):
        launch.run([make_job(name="a"), make_job(name="b", kind="slurm")], sweep=True)


def test_every_default_profile_key_is_accepted(make_job: Any, recorder: Path) -> None:
    assert problems(launch.Job("n", Path("x"), "a:b", (), ClusterConfig(kind="slurm"))) == []


def test_several_processes_of_torchrun_do_not_submit_the_same(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="torchrun has started this command 2 times"):
        launch.run([make_job(kind="slurm")])


@pytest.mark.parametrize(
    ("words", "preparation", "says"),
    [
        (
            ["cluster.nodes=2", "cluster.gpus_per_node=8"],
            True,
            "cluster.nodes=2 cluster.gpus_per_node=8: has no effect",
        ),
        (["cluster.nodes=1", "cluster.gpus_per_node=0", "cluster.tasks=4"], True, ""),
        (["cluster.nodes=2", "cluster.gpus_per_node=8"], False, ""),
        (["cluster.tasks=4"], False, "cluster.tasks=4 is for data preparations"),
        (["++cluster.mail_user=me"], False, "cluster.mail_user=me needs cluster.mail_type"),
        (["cluster.mail_user=me", "cluster.mail_type=END"], True, ""),
        (["cluster=mine"], True, ""),
    ],
)
def test_typed_keys_that_a_job_does_not_use(words: list[str], preparation: bool, says: str) -> None:
    values = {"nodes": 1, "tasks": 64}  # of the profile
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key != "cluster":
            values[key.removeprefix("cluster.")] = int(value) if value.isdecimal() else value
    found = unused_key_problems(ClusterConfig(kind="slurm", **values), words, preparation=preparation)
    assert len(found) == bool(says) and (not says or found[0].startswith(says))
