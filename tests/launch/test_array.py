"""launch.array without Slurm: missing tasks in the finalizer, and submission as a whole or not at all."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launch
from launch import array, job_records, script, sweep
from launch.array import Array, finalize_main
from launch.submit import Batch
from nano3.config.cluster import ClusterConfig
from nano3.utils.errors import Failure, UserError


@given(st.lists(st.integers(0, 300), unique=True).map(sorted))
def test_ranges_name_exactly_the_missing_tasks(numbers: list[int]) -> None:
    text = array._format_ranges(numbers)
    parts = [part.partition("-") for part in text.split(", ") if part]
    assert [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)] == numbers
    assert len(parts) == sum(n - 1 not in numbers for n in numbers), "as short as can be"


def finalize(tmp_path: Path, tasks: int, mode: str, done: list[int]) -> int:
    """Run the finalizer of array 70, of which the tasks `done` have finished."""
    folder = tmp_path / "slurm"
    folder.mkdir(exist_ok=True)
    for index in done:
        (folder / (f"70_{index}.done" if tasks > 1 else "70.done")).touch()
        (tmp_path / f"part_{index}").write_text(f"{index} of {tasks}")
    entries = ("launch_entries:part", "launch_entries:gather")
    return finalize_main(str(folder), "70", str(tasks), *entries, str(tmp_path), mode)


@pytest.mark.parametrize(
    ("tasks", "done", "repeated"),
    [
        pytest.param(3, [0, 1, 2], [], id="all done"),
        pytest.param(3, [0, 2], [1], id="one lost"),
        pytest.param(1, [], [0], id="an array of one has no index in its id"),
        pytest.param(5, [4], [0, 1, 2, 3], id="as many as are repeated"),
    ],
)
def test_lost_tasks_are_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tasks: int, done: list[int], repeated: list[int]
) -> None:
    assert finalize(tmp_path, tasks, "", done) == 0
    assert (tmp_path / "gathered").read_text() == "\n".join(f"{i} of {tasks}" for i in range(tasks))
    output = capfd.readouterr().out
    assert [i for i in range(tasks) if f"task {i} did not finish; repeating it here" in output] == repeated
    assert sorted(int(p.name.rpartition("_")[2]) for p in tmp_path.glob("tried_*")) == repeated
    # Started again, the finalizer repeats nothing.
    finalize(tmp_path, tasks, "always:0", [])
    assert "repeating" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "done", "mode", "expected", "tried"),
    [
        pytest.param(3, [0, 1], "always:2", "1 of 3 tasks did not finish: 2. See {slurm}/70_2_0_log", 1, id="again"),
        pytest.param(1, [], "always:0", "1 of 1 tasks did not finish: 0. See {slurm}/70_0_log.out.", 1, id="of one"),
        pytest.param(8, [0, 4, 6], "", "5 of 8 tasks did not finish: 1-3, 5, 7. See ", 0, id="too many to repeat"),
    ],
)  # fmt: skip
def test_missing_tasks_are_named_and_the_finalizer_does_not_run(
    tmp_path: Path, tasks: int, done: list[int], mode: str, expected: str, tried: int
) -> None:
    with pytest.raises(Failure) as caught:
        finalize(tmp_path, tasks, mode, done)
    assert expected.format(slurm=tmp_path / "slurm") in caught.value.problems[0]
    assert "Run the same command again to do the missing tasks." in caught.value.problems[0]
    assert len(list(tmp_path.glob("tried_*"))) == tried and not (tmp_path / "gathered").exists()


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake_slurm(n): a Slurm that accepts n jobs, 101 and so on, rejects the next, and records the calls in bin/."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(count: int) -> Path:
        programs = {
            "sbatch": f"taken = len(list(here.glob('1*.sh')))\nif taken == {count}:\n"
            "    sys.exit('sbatch: error: no more today')\n"
            "(here / f'{101 + taken}.sh').write_bytes(pathlib.Path(sys.argv[-1]).read_bytes())\n"
            "print('Submitted batch job', 101 + taken)",
            "scancel": "(here / 'cancelled').write_text(' '.join(sys.argv[1:]))",
            "srun": "",
            "sinfo": "print('batch')",
            "scontrol": "print('MaxArraySize = 1001')",
        }
        for name, program in programs.items():
            text = f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path({str(folder)!r})\n{program}\n"
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return make


def headers(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def run_array(tmp_path: Path, then: launch.Job | None = None, **keys: Any) -> int:
    cluster = ClusterConfig(kind="slurm", mode="detached", **keys)
    return launch.run_array(
        "prep", tmp_path / "prep", entry="launch_entries:part", args=(str(tmp_path), ""), tasks=3,
        finalize="launch_entries:gather", cluster=cluster, then=then,
    )  # fmt: skip


def test_each_job_of_an_array_depends_on_the_previous_job(
    make_job: Any, fake_slurm: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dependency of the profile is kept."""
    slurm, then = fake_slurm(3), make_job(kind="slurm", name="train", sbatch_args=["--dependency=singleton"])
    assert run_array(tmp_path, then, sbatch_args=["--dependency=after:9", "--comment=x"]) == 0
    parts, final, train = (headers((slurm / f"{job}.sh").read_text()) for job in (101, 102, 103))
    assert "--array=0-2%3" in parts and "--dependency=after:9" in parts
    assert [line for line in final if "dependency" in line] == ["--dependency=afterany:101"]
    assert [line for line in train if "dependency" in line] == ["--dependency=afterok:102,singleton"]
    (one,), (two,) = job_records.read_records(tmp_path / "prep"), job_records.read_records(then.run_dir)
    assert (one.ids, two.ids) == (["101", "102"], ["103"])
    assert Path(one.script).name == "102_submission.sh" and Path(one.script).exists()
    assert "submitted array 101 of 3 tasks, finalizer 102, then job 103" in capfd.readouterr().err


@pytest.mark.parametrize(("count", "cancelled"), [(0, None), (1, "101"), (2, "101 102")])
def test_a_partly_rejected_array_is_canceled(
    make_job: Any, fake_slurm: Any, tmp_path: Path, count: int, cancelled: str | None
) -> None:
    slurm, then = fake_slurm(count), make_job(kind="slurm", name="train")
    with pytest.raises(UserError, match="Slurm rejected the job: no more today"):
        run_array(tmp_path, then)
    asked = slurm / "cancelled"
    assert (asked.read_text() if asked.exists() else None) == cancelled
    assert job_records.read_records(then.run_dir) == []


def test_a_partly_rejected_sweep_is_canceled(make_job: Any, fake_slurm: Any, capfd: pytest.CaptureFixture[str]) -> None:
    slurm = fake_slurm(1)
    jobs = [make_job(kind="slurm", name=f"s/p{n}", label=f"p{n}", nodes=n, mode="detached") for n in (1, 2)]
    with pytest.raises(UserError, match="no more today"):
        launch.run(jobs, sweep=True)
    assert (slurm / "cancelled").read_text() == "101"
    assert "canceled 101: a sweep is submitted as a whole or not at all" in capfd.readouterr().err


def test_points_with_equal_resources_are_one_array(make_job: Any, recorder: Path) -> None:
    jobs = [make_job(kind="slurm", name=f"s/p{n}", label=f"p{n}", nodes=1 + n % 2) for n in range(5)]
    jobs[2].run_dir.mkdir(parents=True)
    (jobs[2].run_dir / "finished.json").write_text("{}")
    made = sweep.make_batches(jobs)
    assert [[job.label for job in batch.jobs] for batch in made] == [["p0", "p4"], ["p1", "p3"]]
    assert {batch.folder for batch in made} == {jobs[0].run_dir.parent / "slurm"}
    assert ["--array=0-1%2" in headers(batch.script_text()) for batch in made] == [True, True]


def test_tasks_of_an_array_have_no_gpu_and_one_node_each(recorder: Path, tmp_path: Path) -> None:
    cluster = ClusterConfig(kind="slurm", nodes=4, ntasks_per_node=8, gpus_per_node=8, max_crashes=2, max_requeues=5)
    one = Array("prep", tmp_path, "launch_entries:part", ("a",), 2, "launch_entries:gather", cluster)
    lines = headers(one.task_batch().script_text())
    assert {"--nodes=1", "--ntasks-per-node=1"} <= set(lines) and not [line for line in lines if "gpus" in line]
    tasks = one.task_batch().tasks
    assert [(t.array_task, t.retries, t.max_crashes, t.args) for t in tasks] == [
        ((i, 2), 2, 6, ("a",)) for i in range(2)
    ]
    final = one.finalizer_batch("77").tasks[0]
    assert final.args == (str(tmp_path / "slurm"), "77", "2", "launch_entries:part", "launch_entries:gather", "a")
    json.dumps([vars(task) for task in tasks])  # plain values: a container unpickles them


WORDS = st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(st.lists(WORDS, max_size=3), WORDS)
def test_paths_in_the_job_script_are_quoted(folders: list[str], image: str) -> None:
    """The shell splits the command line of a rank into the intended words."""
    cluster = ClusterConfig(kind="slurm", container_runtime="apptainer", mounts=[f"/m/{f}:/in" for f in folders])
    job = launch.Job("n", Path("/runs/x"), "a:b", (), cluster, container=f"oras://{image}")
    binds = [f"/{f}:/{f}" for f in folders]
    words = shlex.split(script.python_command(job, Path("/a b/boot.py"), binds, "/usr/bin/python3"))
    assert words[:2] == ["apptainer", "exec"] and words[-3:] == [f"oras://{image}", "python", "/a b/boot.py"]
    assert [words[i + 1] for i, word in enumerate(words[:-3]) if word == "--bind"][: len(binds)] == binds


def test_one_batch_does_not_change_the_next(make_job: Any, recorder: Path) -> None:
    """`script_text` of an array sets the number of tasks and resets it."""
    job = make_job(kind="slurm")
    alone = Batch([job], "n", job.run_dir / "slurm")
    before = alone.script_text()
    assert "array" not in before
    Batch([job, job], "n", job.run_dir / "slurm").script_text()
    assert alone.script_text() == before


def test_local_array(tmp_path: Path) -> None:
    from nano3.config.cluster import ClusterConfig

    code = launch.run_array(
        "prep", tmp_path, entry="launch_entries:part", args=(str(tmp_path), ""), tasks=3,
        finalize="launch_entries:gather", cluster=ClusterConfig(),
    )  # fmt: skip
    assert code == 0 and (tmp_path / "gathered").read_text() == "0 of 3\n1 of 3\n2 of 3"


def test_local_array_stops_at_a_failure(tmp_path: Path) -> None:
    from nano3.config.cluster import ClusterConfig

    code = launch.run_array(
        "prep", tmp_path, entry="launch_entries:part", args=(str(tmp_path), "always:1"), tasks=3,
        finalize="launch_entries:gather", cluster=ClusterConfig(),
    )  # fmt: skip
    assert code == 9 and not (tmp_path / "gathered").exists()
