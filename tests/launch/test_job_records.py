"""launch.job_records: reading, writing and damaged files."""

import argparse
import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import job_records, slurm
from launch.slurm import UNKNOWN, JobState
from nano3.tools import jobs
from nano3.utils.errors import Failure, UserError
from nano3.utils.records import DamagedRecordError

RECORD = {
    "id": "7",
    "name": "run",
    "submitted": "2026-01-01T00:00:00+00:00",
    "log": "/log",
    "script": "/s",
    "parts": [],
}


def make_record(job_id: str = "7", **more: Any) -> job_records.JobRecord:
    return job_records.JobRecord(**{**RECORD, "id": job_id, "parts": (), **more})


DAMAGE = {
    "empty": "",
    "cut off": '{"format": 1, "jobs": [{"id": "7", "na',
    "zeros after a power cut": "\0" * 64,
    "a list": "[]",
    "null": "null",
    "no jobs": '{"format": 1}',
    "jobs that are no list": '{"format": 1, "jobs": 7}',
    "a job that is no object": '{"format": 1, "jobs": ["7"]}',
    "a job without its parts": '{"format": 1, "jobs": [{"id": "7"}]}',
    "a job with too little": '{"format": 1, "jobs": [{"id": "7", "parts": []}]}',
    "a job with a key of the future": json.dumps({"format": 1, "jobs": [{**RECORD, "colour": "red"}]}),
    "not UTF-8": b'{"format": 1, "jobs": "\xe9\xff"}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_with_the_fix(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / job_records.FILE
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (job_records.read_records, lambda run_dir: job_records.add_record(run_dir, make_record())):
        with pytest.raises(DamagedRecordError) as caught:
            read(tmp_path)
        (message,) = caught.value.problems
        assert message.startswith(f"{file}: damaged (") and "squeue" in message and "remove the file" in message
    # The only record of a job that may still run is not overwritten.
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_concurrent_writes_lose_no_record(tmp_path: Path) -> None:
    """One thread records the end of job 0 while others add records."""
    job_records.add_record(tmp_path, make_record("0"))
    ended = slurm.JobState("COMPLETED", 0)
    work = [lambda n=n: job_records.add_record(tmp_path, make_record(str(n))) for n in range(1, 40)]
    work[20:20] = [lambda: job_records.record_end(tmp_path, "0", ended)] * 3
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(one) for one in work]:
            done.result()
    entries = {e.id: e.state for e in job_records.read_records(tmp_path)}
    assert entries == {"0": "COMPLETED", **dict.fromkeys(map(str, range(1, 40)), "")}


def test_a_folder_instead_of_the_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / job_records.FILE).mkdir()
    with pytest.raises(UserError, match=r"jobs\.json: cannot be read: Is a directory"):
        job_records.read_records(tmp_path)


@pytest.mark.parametrize(
    ("content", "code"),
    [pytest.param("{", 2, id="damaged"), pytest.param('{"format": 9, "jobs": []}', 2, id="of a newer nano3")],
)
def test_an_unreadable_run_hides_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: str, code: int
) -> None:
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("RUNNING", nodes="n1")))
    for name, job in (("a", "5"), ("c", "6")):
        job_records.add_record(tmp_path / name, make_record(job))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / job_records.FILE).write_text(content)
    assert jobs.run(argparse.Namespace(folders=[tmp_path], active=False, watch=None)) == code
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [[f"{tmp_path}/a", "5"], [f"{tmp_path}/c", "6"]]
    assert err.startswith(f"error: {tmp_path}/b/{job_records.FILE}") and len(err.splitlines()) == 1


def test_the_end_of_an_unknown_job_changes_no_record(tmp_path: Path) -> None:
    job_records.add_record(tmp_path, make_record())
    job_records.record_end(tmp_path, "8", slurm.JobState("FAILED", 3))
    assert job_records.read_records(tmp_path) == [make_record()]


def test_only_the_newest_job_of_a_run_prevents_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older job without a recorded end has ended, because another job was submitted after it."""
    asked: list[str] = []

    def states(ids: Any) -> dict[str, slurm.JobState]:
        asked.extend(ids)
        return dict.fromkeys(asked, slurm.UNKNOWN)

    monkeypatch.setattr(slurm, "states", states)
    for job in ("7", "8"):
        job_records.add_record(tmp_path, make_record(job))
    job_records.check_not_active([tmp_path])
    assert asked == ["8"]


def test_slurm_is_not_needed_without_open_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job_records.add_record(tmp_path / "ended", make_record(state="COMPLETED", exit_code=0))
    job_records.check_not_active([tmp_path / "ended", tmp_path / "new"])
    job_records.add_record(tmp_path / "open", make_record())
    with pytest.raises(Failure, match="This machine has no scontrol"):
        job_records.check_not_active([tmp_path / "open"])


HOSTILE = ["a b", "it's", "$(touch pwned)", "`id`", "-rf", "new\nline", 'say "x"', "*", "é😀", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_suggested_commands_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run_dir = tmp_path / name
    job_records.add_record(run_dir, make_record(name=name, log=str(run_dir / "log")))
    assert job_records.read_records(run_dir) == [make_record(name=name, log=str(run_dir / "log"))]
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("PENDING")))
    with pytest.raises(UserError) as caught:
        job_records.check_not_active([run_dir])
    commands = caught.value.problems[0].split("`nano3 ")[1:]
    words = [shlex.split("nano3 " + command.rpartition("`")[0]) for command in commands]
    assert words == [["nano3", "tail", str(run_dir)], ["nano3", "cancel", str(run_dir)]]


NAMES = st.binary(min_size=1, max_size=20).map(os.fsdecode)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.from_regex(r"[1-9]\d{0,6}(_\d{1,4})?", fullmatch=True), NAMES), max_size=5))
def test_added_records_are_read_in_order(tmp_path_factory: pytest.TempPathFactory, added: list) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    records = [make_record(job, name=name, log=f"/{name}", parts=(job,)) for job, name in added]
    for one in records:
        job_records.add_record(run_dir, one)
    assert job_records.read_records(run_dir) == records
    assert (run_dir / job_records.FILE).exists() == bool(records)


def test_records_are_read_as_written(tmp_path: Path) -> None:
    assert job_records.read_records(tmp_path) == []
    job_records.add_record(tmp_path, make_record("7", parts=("5", "6")))
    job_records.add_record(tmp_path, make_record("8_1"))
    job_records.record_end(tmp_path, "7", JobState("FAILED", 3))
    assert job_records.read_records(tmp_path) == [
        make_record("7", parts=("5", "6"), state="FAILED", exit_code=3),
        make_record("8_1"),
    ]
    assert job_records.read_records(tmp_path)[0].ids == ["5", "6", "7"]


def test_records_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="has format 2; this nano3 reads format 1"):
        job_records.read_records(tmp_path)


@pytest.mark.parametrize(
    ("state", "refused"),
    [(JobState("RUNNING"), True), (JobState("PENDING"), True), (JobState("COMPLETED"), False), (UNKNOWN, False)],
)
def test_a_run_folder_has_one_active_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: JobState, refused: bool
) -> None:
    job_records.add_record(tmp_path, make_record("7"))
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, state))
    if refused:
        with pytest.raises(UserError, match=f"job 7 of this run is {state.state}"):
            job_records.check_not_active([tmp_path])
    else:
        job_records.check_not_active([tmp_path])


def test_all_active_runs_are_reported_with_one_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def states(ids: Any) -> dict[str, JobState]:
        asked.append(list(ids))
        return dict.fromkeys(asked[-1], JobState("RUNNING"))

    monkeypatch.setattr(slurm, "states", states)
    folders = [tmp_path / name for name in ("new", "a", "b")]
    for number, folder in enumerate(folders[1:]):
        job_records.add_record(folder, make_record(f"7_{number}"))
    with pytest.raises(UserError) as caught:
        job_records.check_not_active(folders)
    assert len(caught.value.problems) == 2 and asked == [["7_0", "7_1"]]


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, UNKNOWN),
        ({"finished.json": "{}"}, JobState("COMPLETED")),
        ({"finished.json": "{}", "slurm/7.exit": "9 1 node2"}, JobState("FAILED", 9)),
        ({"slurm/7.stopped": ""}, JobState("FAILED", 75)),
    ],
    ids=["nothing", "finished", "failed", "stopped"],
)
def test_the_run_folder_shows_the_end_of_a_job_that_slurm_forgot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], state: JobState
) -> None:
    (tmp_path / "slurm").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, UNKNOWN))
    record = make_record(log=str(tmp_path / "slurm/7_0_log.out"))
    assert job_records.job_states({tmp_path: record}) == {tmp_path: state}
    later = make_record(log=record.log, submitted="2100-01-01T00:00:00+00:00")
    assert (job_records.end_without_slurm(tmp_path, later) == state) == (
        "finished.json" not in files or len(files) == 2
    )


def test_the_end_in_the_folder_of_another_user_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_records.add_record(tmp_path, make_record())

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(job_records, "wait_for_lock", refuse)  # root may write everywhere
    job_records.record_end(tmp_path, "7", JobState("FAILED", 3))
    assert job_records.read_records(tmp_path)[0].state == ""
