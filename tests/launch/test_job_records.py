"""jobs.json of a run when it is damaged, odd, or about runs with names that a shell would take apart."""

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
from nano3.tools import jobs
from nano3.utils.errors import Failure, UserError

ENTRY = {"id": "7", "name": "run", "submitted": "2026-01-01T00:00:00+00:00", "log": "/log", "script": "/s", "parts": []}


def entry(**more: Any) -> job_records.JobRecord:
    return job_records.JobRecord(**{**ENTRY, "parts": (), **more})


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
    "a job with a key of the future": json.dumps({"format": 1, "jobs": [{**ENTRY, "colour": "red"}]}),
    "not UTF-8": b'{"format": 1, "jobs": "\xe9\xff"}',
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / job_records.FILE
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (job_records.read_records, lambda run_dir: job_records.add_record(run_dir, entry())):
        with pytest.raises(Failure) as caught:
            read(tmp_path)
        (told,) = caught.value.problems
        assert told.startswith(f"{file}: damaged (") and "squeue" in told and "remove the file" in told
    # The only trace of a job that may still run is not written over.
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_nothing_is_lost_when_several_write_at_once(tmp_path: Path) -> None:
    """One follows job 0 to its end while others submit."""
    job_records.add_record(tmp_path, entry(id="0"))
    ended = slurm.JobState("COMPLETED", 0)
    work = [lambda n=n: job_records.add_record(tmp_path, entry(id=str(n))) for n in range(1, 40)]
    work[20:20] = [lambda: job_records.record_end(tmp_path, "0", ended)] * 3
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(one) for one in work]:
            done.result()
    entries = {e.id: e.state for e in job_records.read_records(tmp_path)}
    assert entries == {"0": "COMPLETED", **dict.fromkeys(map(str, range(1, 40)), "")}


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / job_records.FILE).mkdir()
    with pytest.raises(Failure, match=r"jobs\.json: damaged \(.*Is a directory"):
        job_records.read_records(tmp_path)


@pytest.mark.parametrize(
    ("content", "code"),
    [pytest.param("{", 1, id="damaged"), pytest.param('{"format": 9, "jobs": []}', 1, id="of a newer nano3")],
)
def test_one_unreadable_run_hides_no_other_from_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: str, code: int
) -> None:
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("RUNNING", nodes="n1")))
    for name, job in (("a", "5"), ("c", "6")):
        job_records.add_record(tmp_path / name, entry(id=job))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / job_records.FILE).write_text(content)
    assert jobs.run(argparse.Namespace(folders=[tmp_path])) == code
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [[f"{tmp_path}/a", "5"], [f"{tmp_path}/c", "6"]]
    assert err.startswith(f"error: {tmp_path}/b/{job_records.FILE}") and len(err.splitlines()) == 1


def test_the_end_of_a_job_that_is_not_there_changes_no_other(tmp_path: Path) -> None:
    job_records.add_record(tmp_path, entry())
    job_records.record_end(tmp_path, "8", slurm.JobState("FAILED", 3))
    assert job_records.read_records(tmp_path) == [entry()]


def test_only_the_newest_job_of_a_run_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one whose end nobody noted was followed by another start, so it had ended."""
    asked: list[str] = []

    def states(ids: Any) -> dict[str, slurm.JobState]:
        asked.extend(ids)
        return dict.fromkeys(asked, slurm.UNKNOWN)

    monkeypatch.setattr(slurm, "states", states)
    for job in ("7", "8"):
        job_records.add_record(tmp_path, entry(id=job))
    job_records.check_not_active([tmp_path])
    assert asked == ["8"]


def test_without_open_jobs_slurm_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job_records.add_record(tmp_path / "ended", entry(state="COMPLETED", exit_code=0))
    job_records.check_not_active([tmp_path / "ended", tmp_path / "new"])
    job_records.add_record(tmp_path / "open", entry())
    with pytest.raises(Failure, match="This machine has no scontrol"):
        job_records.check_not_active([tmp_path / "open"])


HOSTILE = ["a b", "it's", "$(touch pwned)", "`id`", "-rf", "new\nline", 'say "x"', "*", "é😀", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_that_is_told_means_this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run_dir = tmp_path / name
    job_records.add_record(run_dir, entry(name=name, log=str(run_dir / "log")))
    assert job_records.read_records(run_dir) == [entry(name=name, log=str(run_dir / "log"))]
    monkeypatch.setattr(slurm, "states", lambda ids: dict.fromkeys(ids, slurm.JobState("PENDING")))
    with pytest.raises(UserError) as caught:
        job_records.check_not_active([run_dir])
    commands = caught.value.problems[0].split("`nano3 ")[1:]
    words = [shlex.split("nano3 " + command.rpartition("`")[0]) for command in commands]
    assert words == [["nano3", "tail", str(run_dir)], ["nano3", "cancel", str(run_dir)]]


NAMES = st.binary(min_size=1, max_size=20).map(os.fsdecode)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.from_regex(r"[1-9]\d{0,6}(_\d{1,4})?", fullmatch=True), NAMES), max_size=5))
def test_whatever_is_added_is_read_in_its_order(tmp_path_factory: pytest.TempPathFactory, added: list) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    entries = [entry(id=job, name=name, log=f"/{name}", parts=(job,)) for job, name in added]
    for one in entries:
        job_records.add_record(run_dir, one)
    assert job_records.read_records(run_dir) == entries
    assert (run_dir / job_records.FILE).exists() == bool(entries)
