"""launch.follow: logs, states, exit codes and Ctrl-C."""

import datetime
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from launch import follow, job_records, slurm
from launch.follow import LogStream, Watch, follow_hint, read_tail_and_size, report_failure, tail_lines
from launch.slurm import UNKNOWN, JobState
from launch.state_text import describe_state, waiting_text
from launch.submit import SubmittedJob
from nano3.utils.errors import Failure, UserError

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
    assert len(tail_lines(log, wanted)) <= wanted


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 100_000 + b"\n" + b"one\n" * 3 + b"two")
    assert read_tail_and_size(tmp_path / "log", 2) == ("one\ntwo", 100_016)
    (tmp_path / "log").write_bytes(b"one\n" + b"x" * 100_000 + b"\n")
    assert read_tail_and_size(tmp_path / "log", 2) == ("", 100_005), "a line is cut"


def test_a_growing_log_is_copied_byte_for_byte(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The log is cut inside characters and lines and has invalid bytes."""
    written = "é€😀 ".encode() * 3 + b"\xff\r50%\r100%\n" + b"no end"
    stream = LogStream(tmp_path / "log")
    with (tmp_path / "log").open("ab", buffering=0) as log:
        for byte in written:
            log.write(bytes([byte]))
            stream.copy()
    assert capfdbinary.readouterr().out == written


@pytest.mark.parametrize(
    ("record", "streamed", "expected", "shown"),
    [
        pytest.param("42 3 node2\n", 0, "rank 3 on node2 failed first, with exit code 42", True, id="another rank"),
        pytest.param("42 3 node2\n", 3, "rank 3 on node2 failed first, with exit code 42", False, id="the one shown"),
        pytest.param(None, 0, "job 7_1 ended as FAILED with exit code 42", False, id="no record"),
    ],
)
def test_report_of_the_first_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], record: str | None, streamed: int, expected: str, shown: bool
) -> None:
    one = SubmittedJob("7_1", tmp_path / "run", tmp_path)
    one.log(3).write_text("".join(f"line {n}\n" for n in range(40)))
    if record:
        (tmp_path / "7_1.exit").write_text(record)
    report_failure(one, slurm.JobState("FAILED", 42), streamed)
    err = capfd.readouterr().err
    assert expected in err and f"logs: {tmp_path}/7_1_*_log.out" in err
    assert ("line 39" in err and "line 15" in err) == shown and "line 14\n" not in err


def test_follow_returns_and_records_the_exit_code(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log is copied once more after the end, because its last lines come late."""
    run_dir = make_job().run_dir
    one = SubmittedJob("7", run_dir, run_dir, poll_s=0.01)
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
        "launch: job 7 PENDING (Priority: jobs of higher priority come first)",
        "launch: job 7 RUNNING",
        "launch: job 7 TIMEOUT",
    ]
    (recorded,) = launch.job_records.read_records(run_dir)
    assert (recorded.state, recorded.exit_code) == ("TIMEOUT", 124)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (JobState("PENDING", reason="Resources"), "PENDING (Resources: the nodes it needs are busy)"),
        (
            JobState("PENDING", reason="DependencyNeverSatisfied"),
            "PENDING (DependencyNeverSatisfied: it can never start: a job that it depends on failed)",
        ),
        (JobState("PENDING", reason="Cleaning"), "PENDING (Cleaning)"),
        (JobState("RUNNING", nodes="node[1-2]"), "RUNNING on node[1-2]"),
        (JobState("RUNNING", nodes="n1", restarts=2), "RUNNING on n1 restart 2"),
        (JobState("FAILED", 3, "NonZeroExitCode", "n1"), "FAILED"),
    ],
)
def test_describe_state(state: JobState, text: str) -> None:
    assert describe_state(state) == text


def watch_of(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> Watch:
    """Return a watch of job 7 that gets these answers and then repeats the last one."""

    def states(ids: Any) -> dict[str, JobState]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict.fromkeys(ids, answer)

    monkeypatch.setattr(slurm, "states", states)
    return Watch(["7"], 1e-9)


def test_watch_needs_two_polls_to_accept_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is preempted and requeued may show as ended for a moment."""
    ended, waits, done = JobState("PREEMPTED", 143), JobState("PENDING", restarts=1), JobState("COMPLETED")
    watch = watch_of(monkeypatch, [ended, waits, done])
    seen = []
    for _ in range(3):
        watch.poll()
        seen.append((watch.states["7"].state, watch.ended))
    assert seen == [("PREEMPTED", False), ("PENDING", False), ("COMPLETED", True)]


def test_watch_accepts_a_repeated_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watch_of(monkeypatch, [JobState("FAILED", 3)])
    watch.poll()
    assert not watch.ended
    watch.poll()
    assert watch.ended


def test_watch_waits_for_a_silent_controller(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = watch_of(monkeypatch, [Failure("Slurm does not answer"), Failure("x"), JobState("COMPLETED")])
    assert [watch.poll(), watch.poll(), watch.poll(), watch.ended] == [False, False, True, True]
    assert capfd.readouterr().err.count("does not answer. Retrying") == 1


def test_watch_gives_up_on_a_forgotten_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_FORGOTTEN_S", 0)
    watch = watch_of(monkeypatch, [UNKNOWN])
    with pytest.raises(Failure, match="does not know job 7"):
        watch.poll() and watch.poll()


def test_log_stream(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    stream = LogStream(log)
    stream.copy()
    log.write_bytes(b"one\ntw")
    stream.copy()
    with log.open("ab") as f:
        f.write(b"o\n\xff\n")
    stream.copy()
    stream.copy()
    assert capfd.readouterr().out == "one\ntwo\n\ufffd\n"


def test_follow_hint_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a; rm -rf y"
    assert follow_hint(folder) == f"Follow it with `nano3 tail '{folder}'`, end it with `nano3 cancel '{folder}'`."
    job_records.add_record(folder, job_records.JobRecord("7", "run", "2026-01-01T00:00:00+00:00", "/log", "/script"))
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, JobState("RUNNING")))
    with pytest.raises(UserError, match=re.escape(f"`nano3 cancel '{folder}'`")):
        job_records.check_not_active([folder])


@pytest.mark.parametrize("at", ["submitted", "detaching"])
def test_ctrl_c_while_a_message_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], at: str
) -> None:
    """The first Ctrl-C detaches and the second cancels, at any point."""
    cancelled: list[str] = []
    real_say = follow.say

    def say(text: str) -> None:
        if text.startswith(at):
            raise KeyboardInterrupt
        real_say(text)

    def work() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "say", say)
    monkeypatch.setattr(follow, "_DETACH_S", 0.1)
    monkeypatch.setattr(slurm, "cancel", cancelled.extend)
    assert follow.follow_attached("submitted job 7", work, ["7"], "how") == 130
    assert cancelled == (["7"] if at == "detaching" else [])
    assert ("detached; 7 keeps running" in capfd.readouterr().err) == (at == "submitted")


def test_follow_continues_after_the_tail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    assert follow.read_tail_and_size(log, 2) == ("", 0)
    log.write_bytes(b"one\ntwo\nthr")
    text, size = follow.read_tail_and_size(log, 2)
    with log.open("ab") as f:
        f.write(b"ee\nfour\n")
    print(text, end="", flush=True)
    LogStream(log, size).copy()
    assert capfd.readouterr().out == "two\nthree\nfour\n"
    assert follow.read_tail_and_size(log, 0)[0] == ""


def test_how_long_a_job_waits_and_when_it_may_start() -> None:
    submitted = (datetime.datetime.now() - datetime.timedelta(minutes=5)).isoformat(timespec="seconds")
    pending = JobState("PENDING", start="2030-01-02T03:04:05", eligible=submitted)
    assert waiting_text(pending) == "waiting for 5 min, Slurm expects it to start at 2030-01-02 03:04:05"
    assert waiting_text(JobState("RUNNING", start="2030-01-02T03:04:05")) == ""


def test_a_forgotten_job_whose_run_folder_shows_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.UNKNOWN))
    monkeypatch.setattr(follow, "_FORGOTTEN_S", 0)
    watch = Watch(["7"], 0.001, lambda job: slurm.JobState("COMPLETED"))
    while not watch.ended:
        watch.poll()
    assert watch.states["7"].state == "COMPLETED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_says_that_the_job_continues(number: signal.Signals) -> None:
    program = (
        "import sys, time\nfrom launch.follow import follow_attached\n"
        "sys.exit(follow_attached('submitted', lambda: print('waits', flush=True) or time.sleep(60), ['7'], 'Hint.'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"this command was ended by {number.name}; 7 keeps running. Hint." in err


def test_nohup_keeps_its_effect() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        end = follow.follow_attached("submitted", lambda: os.kill(os.getpid(), signal.SIGHUP) or 3, ["7"], "Hint.")
        assert end == 3
    finally:
        signal.signal(signal.SIGHUP, before)
