"""Samples: the requested number of rows, counted without decoding text."""

import re
from pathlib import Path

import pytest
from data_helpers import documents, options, pack, reference, run, source, texts, write

from nano3.data.build.run import print_plan
from nano3.data.planning import sampling
from nano3.data.planning.planner import make_plan, make_request
from nano3.data.planning.sampling import count_lines, count_rows
from nano3.data.sources.readers import read_documents

KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "json", "arrow", "arrows"]


@pytest.mark.parametrize("blank", [b"", b"\n \n", b"\n"])
def test_quota_of_a_blank_file_goes_to_others(tmp_path: Path, byte_bpe: Path, blank: bytes) -> None:
    write(tmp_path / "in" / "0.jsonl", []).write_bytes(blank)
    write(tmp_path / "in" / "1.jsonl", []).write_bytes(b"\n")
    write(tmp_path / "in" / "2.jsonl", texts(300))
    for wanted in (1, 2, 7, 300, 500):
        manifest = run(tmp_path / "in", tmp_path / f"out{wanted}", byte_bpe, sample=wanted)
        assert manifest.datasets[0].rows == min(wanted, 300), wanted
    assert documents(tmp_path / "out1") == reference(byte_bpe, texts(300)[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_count_is_the_number_of_rows_read(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", texts(230))
    (dataset,) = make_request([source(path)], options(tmp_path / "out", byte_bpe), "b").datasets
    read = sum(len(b.keys) + len(b.bad) for b in read_documents(dataset.whole_file(0)))
    assert [count_rows(dataset.whole_file(0), limit).rows for limit in (1, 229, 230, 231, 10**6)] == [
        1,
        229,
        230,
        230,
        230,
    ]
    assert read == 230


UNUSUAL_LINES = {
    "blank_lines": b'\n{"text": "a"}\n\n  \n{"text": "b"}',
    "carriage_returns": b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
    "byte_order_mark": b'\xef\xbb\xbf\n{"text": "a"}\n{"text": "b"}\n',
    "bad_rows": b'nonsense\n{"text": null}\n',
    "no_newline": b'{"text": "a"}\n{"text": "b"}',
}


@pytest.mark.parametrize("data", UNUSUAL_LINES.values(), ids=UNUSUAL_LINES.keys())
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("chunk", [5, 9, 1000])
def test_unusual_lines_are_counted_as_read(
    tmp_path: Path, byte_bpe: Path, data: bytes, suffix: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(data, suffix))
    (dataset,) = make_request([source(path)], options(tmp_path / "out", byte_bpe), "b").datasets
    read = sum(len(b.keys) + len(b.bad) for b in read_documents(dataset.whole_file(0)))
    assert count_rows(dataset.whole_file(0), 100).rows == read == 2


def test_counting_stops_reading_at_the_limit() -> None:
    reads = []

    def read(size: int) -> bytes:
        reads.append(size)
        return b'{"text": "x"}\n' * 1000

    assert count_lines(read, 10) == (10, 140)
    assert len(reads) == 1


def test_counting_decodes_no_text(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        write(tmp_path / "in" / f"a.{kind}", texts(500))
    request = make_request(
        [source(tmp_path / "in")], options(tmp_path / "out", byte_bpe, sample=900, valid_fraction=0.0), "b"
    )
    monkeypatch.setattr(sampling, "read_documents", None)
    monkeypatch.setattr("nano3.data.planning.planner.set_bounds", lambda *_: None)
    assert sum(make_plan(request).datasets[0].rows or []) == 900


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz", "json"])
def test_dry_run_estimates_text_of_the_sample(
    tmp_path: Path, byte_bpe: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = ["word " * 2000] * 400
    path = write(tmp_path / f"a.{kind}", wanted, use_dictionary=False) if kind == "parquet" else None
    path = path or write(tmp_path / f"a.{kind}", wanted)
    print_plan(make_request([source(path)], options(tmp_path / "out", byte_bpe, sample=300), "b"))
    found = re.search(r"about ([\d.]+) MB of text", capfd.readouterr().out)
    assert found
    assert 2.5 < float(found[1]) < 3.5
