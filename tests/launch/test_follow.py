"""Following a job's log and end, sweeps on a terminal, and names that a terminal's markup would take apart."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_helpers import ROOT

import launch
from launch import container, follow, local, slurm, sweep
from launch.follow import LogStream, read_tail_and_size, report_failure, tail
from launch.names import sweep_labels
from launch.submit import Submitted
from nano3.config.cluster import ClusterConfig

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12), max_size=9)


@settings(max_examples=60)
@given(LINES, st.booleans(), st.integers(0, 12))
def test_the_tail_is_the_end_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], whole: bool, wanted: int
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    written = "\n".join(lines) + "\n" * (whole and bool(lines))
    log.write_bytes(written.encode())
    text, size = read_tail_and_size(log, wanted)
    assert written.endswith(text) and size == len(written.encode())
    assert len(tail(log, wanted)) <= wanted


def test_a_log_that_comes_in_pieces_is_copied_byte_for_byte(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Cut in the middle of characters and of lines, with bytes of no encoding."""
    written = "é€😀 ".encode() * 3 + b"\xff\x00\r50%\r100%\n" + b"no end"
    stream = LogStream(tmp_path / "log")
    with (tmp_path / "log").open("ab", buffering=0) as log:
        for byte in written:
            log.write(bytes([byte]))
            stream.copy()
    assert capfdbinary.readouterr().out == written


@pytest.mark.parametrize(
    ("record", "streamed", "told", "shown"),
    [
        pytest.param("42 3 node2\n", 0, "rank 3 on node2 failed first, with exit code 42", True, id="another rank"),
        pytest.param("42 3 node2\n", 3, "rank 3 on node2 failed first, with exit code 42", False, id="the one shown"),
        pytest.param(None, 0, "job 7_1 ended as FAILED with exit code 42", False, id="nobody told"),
    ],
)
def test_who_failed_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], record: str | None, streamed: int, told: str, shown: bool
) -> None:
    one = Submitted("7_1", tmp_path / "run", tmp_path)
    one.log(3).write_text("".join(f"line {n}\n" for n in range(40)))
    if record:
        (tmp_path / "7_1.exit").write_text(record)
    report_failure(one, slurm.JobState("FAILED", 42), streamed)
    err = capfd.readouterr().err
    assert told in err and f"logs: {tmp_path}/7_1_*_log.out" in err
    assert ("line 39" in err and "line 15" in err) == shown and "line 14\n" not in err


def test_following_ends_with_the_code_of_the_job_and_notes_it(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log is copied once more after the end: the last words come late."""
    run_dir = make_job().run_dir
    one = Submitted("7", run_dir, run_dir, poll_s=0.01)
    run_dir.mkdir()
    launch.job_records.add_record(
        run_dir, launch.job_records.JobRecord("7", "run", "2026-01-01T00:00:00+00:00", "/log", "/s")
    )
    answers = [slurm.JobState("PENDING", reason="Priority"), slurm.JobState("RUNNING"), slurm.JobState("TIMEOUT", 124)]

    def states(ids: Any) -> dict[str, slurm.JobState]:
        with one.log().open("a") as log:
            log.write(f"{answers[0].state}\n")
        return dict.fromkeys(ids, answers.pop(0) if len(answers) > 1 else answers[0])

    monkeypatch.setattr(slurm, "states", states)
    assert follow.follow(one) == 124
    out, err = capfd.readouterr()
    assert out == "PENDING\nRUNNING\nTIMEOUT\nTIMEOUT\n"
    assert [line for line in err.splitlines() if line.startswith("launch: job 7 ")][:3] == [
        "launch: job 7 PENDING (Priority)", "launch: job 7 RUNNING", "launch: job 7 TIMEOUT",
    ]  # fmt: skip
    (noted,) = launch.job_records.read_records(run_dir)
    assert (noted.state, noted.exit_code) == ("TIMEOUT", 124)


def on_a_terminal(program: str) -> str:
    """What a program writes to a terminal of 200 columns, without colours."""
    mine, theirs = pty.openpty()
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "PYTHONPATH": f"{ROOT}", "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            new = os.read(mine, 1 << 16)
        except OSError:  # EIO: the other end has closed
            break
        if not new:
            break
        written += new
    os.close(mine)
    assert process.wait() == 0, written.decode()
    return written.decode()


SHOW = """
from pathlib import Path
from launch import Job
from launch.sweep import Row, View
from nano3.config.cluster import ClusterConfig
job = Job("n", Path("/nowhere"), "a:b", (), ClusterConfig(), label="lr=1")
with View([Row(job, "7_0", {state!r})]):
    pass
"""


@pytest.mark.parametrize("state", ["RUNNING on rack[a1-a4]", "RUNNING on n[1-2]", "PENDING (x[/bold])", "a:100:b"])
def test_a_state_on_a_terminal_is_shown_as_it_is(state: str) -> None:
    assert state in on_a_terminal(SHOW.format(state=state))


PLACES = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "c d"]), max_size=4).map(lambda p: Path("/", *p)), max_size=8
)


@given(PLACES)
def test_every_folder_is_in_exactly_one_mount(folders: list[Path]) -> None:
    """One that lies in another is not mounted again, whatever their order; `ab` does not lie in `a`."""
    job = launch.Job("n", Path("/r"), "a:b", (), ClusterConfig(kind="slurm", mounts=["/x:/y:ro"]))
    *own, given_one = container.mounts(job, folders)
    assert given_one == "/x:/y:ro" and all(bind.partition(":")[0] == bind.partition(":")[2] for bind in own)
    roots = [Path(bind.partition(":")[0]) for bind in own]
    assert set(roots) <= set(folders)
    assert all(sum(folder.is_relative_to(root) for root in roots) == 1 for folder in folders)


def test_places_of_a_job_are_absolute_and_where_links_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    (tmp_path / "gone").symlink_to("unmounted")
    monkeypatch.chdir(tmp_path)
    job = launch.Job("n", Path("runs/x"), "a:b", (), ClusterConfig(), folders=("gone", "disk"))
    names = ["", "runs/x", "disk/x", "gone", "unmounted", "disk"]
    assert container.places(job) == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("folders", "base"),
    [
        pytest.param(["/s/lr=1", "/s/lr=2"], "/s", id="side by side"),
        pytest.param(["/s/lr=1"], "/s", id="one point"),
        pytest.param(["/s/a/lr=1", "/s/ab/lr=2"], "/s", id="in folders whose names begin alike"),
        pytest.param(["s/1", "s/2"], "{here}/s", id="relative"),
        pytest.param(["s/1", "{here}/s/2"], "{here}/s", id="relative and absolute"),
    ],
)
def test_the_folder_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], base: str) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [launch.Job("n", Path(f.format(here=tmp_path)), "a:b", (), ClusterConfig()) for f in folders]
    assert str(sweep.base_folder(jobs)) == base.format(here=tmp_path)


def test_points_with_values_of_any_encoding_have_labels() -> None:
    labels = sweep_labels([[f"k={os.fsdecode(value)}"] for value in (b"caf\xe9", b"caf\xe8", b"caf")])
    assert len(set(labels)) == 3 and all(label.isascii() and label.startswith("k=caf") for label in labels)


@pytest.mark.parametrize("unfinished", ["0", "1"])
def test_a_rank_that_ended_while_it_wrote_its_code_hides_no_other(tmp_path: Path, unfinished: str) -> None:
    """torchrun ends the others with SIGTERM when one fails, wherever they are."""
    failed = "1" if unfinished == "0" else "0"
    (tmp_path / f"{failed}.exit").write_text("42")
    (tmp_path / f"{unfinished}.exit").write_text("")
    (tmp_path / "torchrun.log").write_text("")
    job = launch.Job("n", tmp_path, "a:b", (), ClusterConfig(nproc_per_node=2))
    code, why = local._torchrun_outcome(job, tmp_path, 1)
    assert code == 42 and f"rank {failed} failed first, with exit code 42" in why


TORCHRUN_LOG = """
Failures:
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 4)
------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 5)
"""


def test_the_rank_that_was_killed_is_named_and_not_the_one_that_torchrun_ended(tmp_path: Path) -> None:
    (tmp_path / "0.exit").write_text("1")
    (tmp_path / "rank_1.log").write_text("its last words\n")
    (tmp_path / "torchrun.log").write_text(TORCHRUN_LOG)
    job = launch.Job("n", tmp_path, "a:b", (), ClusterConfig(nproc_per_node=2))
    code, why = local._torchrun_outcome(job, tmp_path, 1)
    assert code == 137 and "rank 1 failed first, with exit code 137" in why and "its last words" in why
