"""Reading what Slurm prints, watching states, the ledger of a run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch import follow, job_records, slurm
from launch.api import how_to_follow
from launch.follow import LogStream, Watch, describe_state
from launch.slurm import UNKNOWN, JobState, parse_sacct, parse_scontrol
from nano3.utils.errors import Failure, UserError


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "JobId=7 JobName=a JobState=RUNNING Reason=None Dependency=(null) Restarts=2 NodeList=node[1-2] ",
            {"7": JobState("RUNNING", 0, "", "node[1-2]", 2)},
        ),
        (
            "JobId=7 JobName=a JobState=PENDING Reason=Resources Restarts=0 ExitCode=0:0 ReqNodeList=n9 NodeList= ",
            {"7": JobState("PENDING", 0, "Resources")},
        ),
        ("JobId=7 JobState=FAILED Reason=NonZero ExitCode=3:0", {"7": JobState("FAILED", 3, "NonZero")}),
        ("JobId=7 JobState=FAILED Reason=X ExitCode=0:9", {"7": JobState("FAILED", 137, "X")}),
        ("JobId=7 JobState=CANCELLED Reason=None ExitCode=0:15", {"7": JobState("CANCELLED", 143)}),
        ("JobId=7 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15", {"7": JobState("TIMEOUT", 124, "TimeLimit")}),
        ("JobId=7 JobState=OUT_OF_MEMORY ExitCode=0:125", {"7": JobState("OUT_OF_MEMORY", 137)}),
        ("JobId=7 JobState=NODE_FAIL ExitCode=0:0", {"7": JobState("NODE_FAIL", 1)}),
        ("JobId=9 ArrayJobId=7 ArrayTaskId=3 JobState=COMPLETED ExitCode=0:0", {"7_3": JobState("COMPLETED")}),
        (
            "JobId=7 ArrayJobId=7 ArrayTaskId=1-2,5%2 JobState=PENDING Reason=Priority",
            {f"7_{i}": JobState("PENDING", 0, "Priority") for i in (1, 2, 5)},
        ),
        ("JobId=7 ArrayJobId=7 ArrayTaskId=4294967294 JobState=CANCELLED", {"7": JobState("CANCELLED", 143)}),
        ("", {}),
        ("No jobs in the system", {}),
    ],
)  # fmt: skip
def test_scontrol(line: str, found: dict[str, JobState]) -> None:
    assert dict(parse_scontrol(line)) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("7|COMPLETED|0:0|node1", {"7": JobState("COMPLETED", 0, "", "node1")}),
        ("7|CANCELLED by 1000|0:0|node1", {"7": JobState("CANCELLED", 143, "", "node1")}),
        ("7_3|FAILED|42:0|node2", {"7_3": JobState("FAILED", 42, "", "node2")}),
        ("7_[0-1%4]|PENDING|0:0|None assigned", {"7_0": JobState("PENDING"), "7_1": JobState("PENDING")}),
        ("", {}),
        ("Slurm accounting storage is disabled", {}),
    ],
)
def test_sacct(line: str, found: dict[str, JobState]) -> None:
    assert dict(parse_sacct(line)) == found


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (JobState("PENDING", reason="Resources"), "PENDING (Resources)"),
        (JobState("RUNNING", nodes="node[1-2]"), "RUNNING on node[1-2]"),
        (JobState("RUNNING", nodes="n1", restarts=2), "RUNNING on n1 restart 2"),
        (JobState("FAILED", 3, "NonZeroExitCode", "n1"), "FAILED"),
    ],
)
def test_describe(state: JobState, text: str) -> None:
    assert describe_state(state) == text


def watch_of(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> Watch:
    """A watch of job 7 that gets these answers, the last one for ever."""

    def states(ids: Any) -> dict[str, JobState]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict.fromkeys(ids, answer)

    monkeypatch.setattr(slurm, "states", states)
    return Watch(["7"], 1e-9)


def test_watch_believes_an_end_when_it_is_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is preempted and requeued may show as ended for a moment."""
    ended, waits, done = JobState("PREEMPTED", 143), JobState("PENDING", restarts=1), JobState("COMPLETED")
    watch = watch_of(monkeypatch, [ended, waits, done])
    seen = []
    for _ in range(3):
        watch.look()
        seen.append((watch.states["7"].state, watch.ended))
    assert seen == [("PREEMPTED", False), ("PENDING", False), ("COMPLETED", True)]


def test_watch_sees_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watch_of(monkeypatch, [JobState("FAILED", 3)])
    watch.look()
    assert not watch.ended
    watch.look()
    assert watch.ended


def test_watch_waits_for_a_silent_controller(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch = watch_of(monkeypatch, [Failure("Slurm does not answer"), Failure("x"), JobState("COMPLETED")])
    assert [watch.look(), watch.look(), watch.look(), watch.ended] == [False, False, True, True]
    assert capfd.readouterr().err.count("does not answer. Still asking") == 1


def test_watch_gives_up_on_a_forgotten_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_FORGOTTEN_S", 0)
    watch = watch_of(monkeypatch, [UNKNOWN])
    with pytest.raises(Failure, match="knows nothing of job 7"):
        watch.look() and watch.look()


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


def entry(job_id: str, **more: Any) -> job_records.JobRecord:
    return job_records.JobRecord(job_id, "run", "2026-01-01T00:00:00+00:00", "/log", "/script", **more)


def test_ledger_keeps_what_it_is_given(tmp_path: Path) -> None:
    assert job_records.read_records(tmp_path) == []
    job_records.add_record(tmp_path, entry("7", parts=("5", "6")))
    job_records.add_record(tmp_path, entry("8_1"))
    job_records.record_end(tmp_path, "7", JobState("FAILED", 3))
    assert job_records.read_records(tmp_path) == [
        entry("7", parts=("5", "6"), state="FAILED", exit_code=3),
        entry("8_1"),
    ]
    assert job_records.read_records(tmp_path)[0].ids == ["5", "6", "7"]


def test_ledger_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="has format 2; this nano3 reads format 1"):
        job_records.read_records(tmp_path)


@pytest.mark.parametrize(
    ("state", "refused"),
    [(JobState("RUNNING"), True), (JobState("PENDING"), True), (JobState("COMPLETED"), False), (UNKNOWN, False)],
)
def test_one_job_for_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: JobState, refused: bool
) -> None:
    job_records.add_record(tmp_path, entry("7"))
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, state))
    if refused:
        with pytest.raises(UserError, match=f"job 7 of this run is {state.state}"):
            job_records.check_not_active([tmp_path])
    else:
        job_records.check_not_active([tmp_path])


def test_all_active_runs_are_told_at_once_and_slurm_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def states(ids: Any) -> dict[str, JobState]:
        asked.append(list(ids))
        return dict.fromkeys(asked[-1], JobState("RUNNING"))

    monkeypatch.setattr(slurm, "states", states)
    folders = [tmp_path / name for name in ("new", "a", "b")]
    for number, folder in enumerate(folders[1:]):
        job_records.add_record(folder, entry(f"7_{number}"))
    with pytest.raises(UserError) as caught:
        job_records.check_not_active(folders)
    assert len(caught.value.problems) == 2 and asked == [["7_0", "7_1"]]


def test_what_is_to_be_typed_next_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a; rm -rf y"
    assert how_to_follow(folder) == f"Follow it with `nano3 tail '{folder}'`, end it with `nano3 cancel '{folder}'`."
    job_records.add_record(folder, entry("7"))
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, JobState("RUNNING")))
    with pytest.raises(UserError, match=re.escape(f"`nano3 cancel '{folder}'`")):
        job_records.check_not_active([folder])


@pytest.mark.parametrize("at", ["submitted", "detaching"])
def test_ctrl_c_while_something_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], at: str
) -> None:
    """The first one detaches, or the second cancels, wherever it comes."""
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
    assert follow.attached("submitted job 7", work, ["7"], "how") == 130
    assert cancelled == (["7"] if at == "detaching" else [])
    assert ("detached; 7 goes on" in capfd.readouterr().err) == (at == "submitted")


def test_following_goes_on_where_the_tail_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
