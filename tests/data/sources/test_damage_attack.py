"""Attack the readers with damaged and random files: none crashes or hangs, and checksums leave no damage unseen.

The slow tests make the counts in docs/reliability.md; the fast ones a sample of the same.
"""

import gzip
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import jsonl, pack, texts

from nano3.data.sources.formats import FORMATS, detect_format
from nano3.data.sources.reader_process import ReaderProcess
from nano3.data.sources.readers import READERS, FileRange, read_documents
from nano3.utils.errors import Nano3Error

TEXTS = texts(120, longest=30)
CHECKSUMS = ("parquet-checksums", "gz", "bz2", "xz")  # no damage is silent
DAMAGES = 850


def column_file(kind: str) -> bytes:
    """Return TEXTS as parquet or Arrow."""
    column = pa.array(TEXTS, pa.string_view() if kind == "arrow-view" else pa.string())
    table = pa.table({"text": column.dictionary_encode() if kind == "arrow-dictionary" else column})
    out = pa.BufferOutputStream()
    if kind.startswith("parquet"):
        pq.write_table(table, out, row_group_size=40, write_page_checksum=kind == "parquet-checksums")
        return out.getvalue().to_pybytes()
    with (pa.ipc.new_stream if kind == "arrow-stream" else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, 40)
    return out.getvalue().to_pybytes()


def make(kind: str) -> tuple[str, bytes]:
    """Return the name and the content of an intact file."""
    if kind.startswith(("parquet", "arrow")):
        return f"a.{kind.partition('-')[0]}", column_file(kind)
    if kind == "json":
        return "a.json", json.dumps([{"text": text} for text in TEXTS]).encode()
    if kind == "txt":
        return "a.txt", "\n".join(TEXTS).encode()
    return f"a.jsonl.{kind}".removesuffix(".jsonl"), pack(jsonl(TEXTS), f".{kind}")


KINDS = (
    "jsonl", "json", "txt", "parquet", "parquet-checksums", "arrow", "arrow-stream", "arrow-view", "arrow-dictionary",
    "gz", "zst", "bz2", "xz",
)  # fmt: skip


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Flip a bit, cut the end off, zero a page, or swap two blocks."""
    bad = bytearray(data)
    size = min(4096, len(data) // 8)
    a, b = rng.randrange(len(data) - size), rng.randrange(len(data) - size)
    how = rng.choice(("flip", "cut", "zero", "swap"))
    if how == "flip":
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del bad[rng.randrange(len(bad)) :]
    elif how == "zero":
        bad[a : a + size] = bytes(size)
    else:
        bad[a : a + size], bad[b : b + size] = data[b : b + size], data[a : a + size]
    return how, bytes(bad)


def read_all(file_range: FileRange) -> tuple[list[str], int]:
    batches = list(read_documents(file_range))
    return [text for batch in batches for text in batch.texts], sum(len(batch.bad) for batch in batches)


def outcome(process: ReaderProcess, path: Path, good: list[str]) -> str:
    """Read a damaged file: "error", "bad rows", "same", "other text", or "other count" of documents.

    Any exception but a Nano3Error, and a Nano3Error without the file's name, fails the test.
    """
    data = path.read_bytes()
    kind = detect_format(data[: 1 << 16], path.name)
    if not data or kind not in FORMATS:
        return "error"  # refused before it is read
    size = len(data)
    file_range = FileRange(str(path.parent), path.name, kind, size, size * 4, 0, size * 4, "text")
    try:
        found, bad = process.call(read_all, file_range)
    except Nano3Error as error:
        assert path.name in str(error)
        assert "ended a process" not in str(error), "damage that pyarrow follows blindly"
        return "error"
    if bad or found == good:
        return "bad rows" if bad else "same"
    return "other text" if len(found) == len(good) else "other count"


def attack(folder: Path, kind: str, count: int) -> Counter[tuple[str, str]]:
    """Return how often each (damage, outcome) occurs in `count` damaged files of a format."""
    name, data = make(kind)
    good = ["\n".join(TEXTS)] if kind == "txt" else TEXTS
    rng = random.Random(kind)
    path = folder / name
    found: Counter[tuple[str, str]] = Counter()
    with ReaderProcess() as process:
        path.write_bytes(data)
        assert outcome(process, path, good) == "same"
        while found.total() < count:
            how, bad = damage(data, rng)
            if bad == data:
                continue
            path.write_bytes(bad)
            result = outcome(process, path, good)
            if how == "cut" and result.startswith("other") and bad[-1:] in (b"\n", b"}"):
                result = "cut at the end of a line"
            found[how, result] += 1
    return found


def check_attack(folder: Path, kind: str, count: int) -> None:
    found = attack(folder, kind, count)
    print(f"{kind}: {dict(found)}")
    silent = {key: n for key, n in found.items() if key[1].startswith("other")}
    if kind in CHECKSUMS:
        assert not silent
    # Without checksums nothing shows that whole lines stand where others stood.
    assert not [how for how, result in silent if result == "other count" and how != "swap"], "documents are lost"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    check_attack(tmp_path, kind, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(tmp_path: Path, kind: str) -> None:
    check_attack(tmp_path, kind, DAMAGES)


# Random JSON lines against Python's json module


def random_value(rng: random.Random, depth: int = 0) -> object:
    pick = rng.randrange(9 if depth < 4 else 7)
    if pick == 7:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if pick == 8:
        keys = [rng.choice(("text", "te", "Text", "", "\u2028", "é")) for _ in range(rng.randrange(4))]
        return {key: random_value(rng, depth + 1) for key in keys}
    text = "".join(rng.choices('ab"\\\n\r\t\x85\u2028\x00é日😀{}[],:0 ', k=rng.randrange(12)))
    return (text, text, text, rng.randrange(-(1 << 70), 1 << 70), rng.random() * 1e300, None, rng.random() < 0.5)[pick]


def random_line(rng: random.Random) -> bytes:
    value = random_value(rng)
    row: object = {"id": 1, "text": random_value(rng, 4), "x": value} if rng.random() < 0.8 else value
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
    if rng.random() < 0.1:
        line = line.replace(rng.choice((b"}", b'"', b":", b"e", b" ")), rng.choice((b"", b"\xff", b"\r", b"\x0c")), 1)
    return line


def expected(line: bytes) -> str | None:
    """Return the text of a line, None for a bad one. Bytes that are not UTF-8 matter only within the text."""
    try:
        row = json.loads(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    text = row.get("text") if isinstance(row, dict) else None
    return text if isinstance(text, str) and not re.search("[\udc80-\udcff]", text) else None


def fuzz_lines(files: int) -> Iterator[int]:
    for seed in range(files):
        rng = random.Random(seed)
        lines = [random_line(rng) for _ in range(rng.randrange(1, 30))]
        data = rng.choice((b"\n", b"\r\n")).join(lines) + rng.choice((b"", b"\n", b"\n\n"))
        kind = rng.choice(("jsonl", "gz"))
        stored = gzip.compress(data) if kind == "gz" else data
        size = len(stored)
        file_range = FileRange("/x", "a.jsonl", kind, size, size, 0, size, "text")
        if kind == "gz" and detect_format(data, "a.jsonl", unpacked=True) != "jsonl":
            continue
        batches = list(READERS[kind](io.BytesIO(stored), file_range))
        lines = [line for line in data.split(b"\n") if line.strip()]
        wanted = [expected(line.strip()) for line in lines]
        assert [t for b in batches for t in b.texts] == [text for text in wanted if text is not None], seed
        assert sum(len(b.bad) for b in batches) == wanted.count(None), seed
        yield len(lines)


def test_random_lines() -> None:
    assert sum(fuzz_lines(60)) > 500


@pytest.mark.slow
def test_many_random_lines() -> None:
    assert sum(fuzz_lines(600)) > 5000
