"""A file whose damage ends a process is named; the program goes on to report it."""

import faulthandler
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pytest
from data_helpers import options, plan_build, run, source, texts, write

from nano3.data.build.worker_pool import COMPARE_ENGINES, WorkerPool
from nano3.data.sources import readers
from nano3.data.sources.reader_process import ReaderProcess, find_crashing_file
from nano3.data.sources.readers import Batch, FileRange
from nano3.utils.errors import Failure, UserError


def whole(path: Path, kind: str = "arrow") -> FileRange:
    size = path.stat().st_size
    return FileRange(str(path.parent), path.name, kind, size, size, 0, size, "text")


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process that reads an Arrow file, as damage that pyarrow does not notice."""

    def read(f: IO[bytes], file_range: FileRange) -> Iterator[Batch]:
        yield from ()
        end_process(file_range, signal.SIGSEGV)

    monkeypatch.setitem(readers.READERS, "arrow", read)


def test_documents_arrive_as_they_are_read_in_this_process(tmp_path: Path) -> None:
    for name, kind in (("a.arrow", "arrow"), ("a.parquet", "parquet"), ("a.jsonl", "jsonl")):
        file_range = whole(write(tmp_path / name, texts(100)), kind)
        with ReaderProcess() as process:
            for _ in range(2):
                assert [t for b in process.documents(file_range) for t in b.texts] == texts(100)
            next(process.documents(file_range))  # not read to the end
            assert process.call(len_of_texts, file_range) == 100


def len_of_texts(file_range: FileRange) -> int:
    return sum(len(batch.texts) for batch in readers.read_documents(file_range))


def test_errors_of_the_reader_are_raised_here(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", texts(5))
    with ReaderProcess() as process:
        with pytest.raises(UserError, match="no column 'body'"):
            list(process.documents(FileRange(**{**whole(path).__dict__, "text_field": "body"})))
        with pytest.raises(RuntimeError, match=r"while reading .*a\.arrow:\n(?s:.*)ZeroDivisionError"):
            process.call(divide, whole(path))
        assert process.call(len_of_texts, whole(path)) == 5


def divide(file_range: FileRange) -> float:
    return 1 / 0


def end_process(file_range: FileRange, number: int) -> None:
    faulthandler.disable()  # pytest's, inherited: its stacks in the tests' output would look like a crash of the tests
    os.kill(os.getpid(), number)


def test_a_process_that_dies_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", texts(5))
    with ReaderProcess() as process:
        for number, message in (
            (signal.SIGSEGV, r"a\.arrow: reading it ended a process \(SIGSEGV\), so it is damaged"),
            (signal.SIGABRT, r"\(SIGABRT\)"),
            (signal.SIGKILL, r"a\.arrow: .*out of memory is the usual cause"),
        ):
            with pytest.raises(Failure, match=message):
                process.call(end_process, whole(path), number)
        assert process.call(len_of_texts, whole(path)) == 5


@pytest.mark.parametrize("keys", [{}, {"sample": 3}])
def test_a_plan_names_the_file_that_crashes(tmp_path: Path, byte_bpe: Path, crash: None, keys: dict) -> None:
    write(tmp_path / "in" / "b.arrow", texts(20))
    with pytest.raises(Failure, match=r"dataset 'd': .*b\.arrow: reading it ended a process \(SIGSEGV\)"):
        run(tmp_path / "in", tmp_path / "out", byte_bpe, **keys)


def test_a_dead_worker_names_the_file_that_crashes(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for name in ("a.jsonl", "b.arrow", "c.arrow"):
        write(tmp_path / "in" / name, texts(20))
    plan_path = plan_build([source(tmp_path / "in")], options(tmp_path / "out", byte_bpe), "test")
    for task in (("unit", 0), COMPARE_ENGINES):
        with WorkerPool(plan_path, 1, fast=True) as pool:
            pool._server.process.kill()
            pool._server.process.wait()
            pool.submit(0, task)
            with pytest.raises(Failure, match=r"worker process died during (unit 0|the comparison).*a\.jsonl"):
                list(pool.results())
            if task == ("unit", 0):
                request.getfixturevalue("crash")
                assert "b.arrow: reading it ended a process" in str(pool._death(task, None))
                monkeypatch.undo()


def test_only_files_that_may_crash_are_read_again(tmp_path: Path, crash: None) -> None:
    text = whole(write(tmp_path / "a.jsonl", texts(5)), "jsonl")
    parquet = whole(write(tmp_path / "a.parquet", texts(5)), "parquet")
    assert find_crashing_file([text, parquet]) is None
    arrow = whole(write(tmp_path / "a.arrow", texts(5)))
    assert "a.arrow" in str(find_crashing_file([text, arrow, parquet]))


# What pyarrow follows blindly


def damaged_offsets(kind: str) -> pa.Array:
    """Return ten strings, one of which ends far behind the buffer."""
    array = pa.array([f"text {i}" for i in range(10)], pa.string())
    if kind == "view":
        array = pa.array(["a text that is too long to be stored in its view" * 9] * 3, pa.string_view())
        valid, views, data = array.buffers()
        raw = bytearray(views.to_pybytes())
        raw[12:16] = (1 << 30).to_bytes(4, "little")
        return pa.Array.from_buffers(array.type, 3, [valid, pa.py_buffer(raw), data])
    if kind == "dictionary":
        indices = pa.array([0, 1, 10**6], pa.int32())
        return pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    valid, offsets, data = array.buffers()
    raw = bytearray(offsets.to_pybytes())
    raw[20:24] = (1 << 30).to_bytes(4, "little")
    return pa.Array.from_buffers(array.type, 10, [valid, pa.py_buffer(raw), data])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "field"), [(k, "text") for k in ("string", "view", "dictionary")] + [("string", "s.t")]
)
def test_offsets_outside_of_a_buffer_are_damage(
    tmp_path: Path, byte_bpe: Path, kind: str, field: str, stream: bool
) -> None:
    array = damaged_offsets(kind)
    if "." in field:
        array = pa.StructArray.from_arrays([array], ["t"])
    batch = pa.RecordBatch.from_arrays([array], [field.partition(".")[0]])
    (tmp_path / "in").mkdir()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(tmp_path / "in" / "a.arrow", batch.schema) as out:
        out.write_batch(batch)
    with pytest.raises(Failure, match=r"a\.arrow: damaged Arrow file: (?s:.*)Copy the file again"):
        run([source(tmp_path / "in", text_field=field)], tmp_path / "out", byte_bpe)


@pytest.mark.parametrize("dictionary", [False, True])
def test_text_that_is_not_utf8_is_a_bad_row_not_damage(tmp_path: Path, byte_bpe: Path, dictionary: bool) -> None:
    array = pa.array([b"good", b"\xff", b"fine"], pa.binary()).view(pa.string())
    if dictionary:
        array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), array)
    batch = pa.RecordBatch.from_arrays([array], ["text"])
    (tmp_path / "in").mkdir()
    with pa.ipc.new_file(tmp_path / "in" / "a.arrow", batch.schema) as out:
        out.write_batch(batch)
    with pytest.raises(Failure, match=r"row 2 .*not UTF-8 at byte 0"):
        run(tmp_path / "in", tmp_path / "out", byte_bpe)
    dataset = run(tmp_path / "in", tmp_path / "out", byte_bpe, bad_rows="skip", max_bad_rows=1).datasets[0]
    assert (dataset.documents, dataset.skipped) == (2, {"not_utf8": 1})
