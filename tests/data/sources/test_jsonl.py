"""JSON lines: blocks in reused memory, and the same rows as with Python's json module."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano3.data.sources import jsonl
from nano3.data.sources.jsonl import Block, JsonRows, has_one_object_per_line, line_blocks, line_starts, skip_to_line

SMALL = 32


@pytest.fixture
def small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", SMALL)


def slow(data: bytes, most: int) -> jsonl.Fill:
    """Return a function that fills memory like a network: sometimes with less than fits."""
    f = io.BytesIO(data)
    return lambda memory: f.readinto(memory[: max(1, min(most, len(memory)))])


def blocks(data: bytes, start: int = 0, stop: int | None = None, most: int = 1 << 20) -> list[tuple[int, bytes]]:
    """Offset and bytes of each block, copied before the next one overwrites them."""
    found = line_blocks(slow(data[start:], most), start, stop)
    return [(block.offset, bytes(block.data[: block.size])) for block in found]


# Blocks

SHAPES = {
    "nothing": b"",
    "one_newline": b"\n",
    "newlines_only": b"\n" * (3 * SMALL),
    "no_last_newline": b"a\nb",
    "a_line_of_just_a_block": b"x" * (SMALL - 1) + b"\n",
    "two_lines_of_just_a_block": (b"x" * (SMALL - 1) + b"\n") * 2,
    "newline_first_in_the_next_block": b"x" * SMALL + b"\n" + b"y\n",
    "a_line_of_two_blocks": b"x" * (2 * SMALL - 1) + b"\n",
    "a_line_of_two_blocks_and_no_newline": b"x" * (2 * SMALL),
    "three_blocks_without_a_newline": b"x" * (3 * SMALL + 5),
    "short_long_short": b"a\n" + b"x" * (5 * SMALL) + b"\n" + b"b\n",
    "long_lines_one_after_another": (b"x" * (2 * SMALL + 3) + b"\n") * 3,
    "a_block_full_of_a_begun_line": b"a\n" + b"x" * (SMALL - 2) + b"\nb\n",
}


@pytest.mark.usefixtures("small_block")
@pytest.mark.parametrize("most", [1, 3, SMALL - 1, 1 << 20])
@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES.keys())
def test_blocks_are_whole_lines_in_order(data: bytes, most: int) -> None:
    found = blocks(data, most=most)
    assert b"".join(part for _, part in found) == data
    assert [offset for offset, _ in found] == np.cumsum([0, *(len(p) for _, p in found)])[:-1].tolist()
    assert all(data.endswith(b"\n") for _, data in found[:-1]), "only the last line may lack its newline"


@pytest.mark.usefixtures("small_block")
@pytest.mark.parametrize("data", SHAPES.values(), ids=SHAPES.keys())
def test_a_stop_at_any_byte_includes_the_lines_that_start_before_it(data: bytes) -> None:
    starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n") and i + 1 < len(data))] if data else []
    for stop in range(len(data) + 2):
        end = min([s for s in starts if s >= stop], default=len(data))
        assert b"".join(part for _, part in blocks(data, 0, stop)) == (data[:end] if stop else b""), stop


lines = st.lists(st.binary(max_size=3 * SMALL).map(lambda b: b.replace(b"\n", b".")), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=lines, last=st.booleans(), cut=st.integers(0, 400), most=st.integers(1, 80))
@pytest.mark.usefixtures("small_block")
def test_two_adjacent_readers_read_every_line_once(lines: list[bytes], last: bool, cut: int, most: int) -> None:
    data = b"\n".join(lines) + (b"\n" if last else b"")
    cut = min(cut, len(data))
    got = b"".join(part for _, part in blocks(data, 0, cut, most))
    start = skip_to_line(io.BytesIO(data), cut, len(data))
    assert start == (0 if cut == 0 else len(got)), "the second starts where the first ended"
    if start < len(data):
        got += b"".join(part for _, part in blocks(data, start, len(data), most))
    assert got == data


@pytest.mark.usefixtures("small_block")
def test_short_blocks_share_memory_and_a_long_one_has_its_own() -> None:
    data = b"a\n" * SMALL + b"x" * (2 * SMALL) + b"\n" + b"b\n" * SMALL
    seen = [(id(b.data), b.size) for b in line_blocks(slow(data, 1 << 20), 0, None)]
    memory = {at for at, size in seen if size <= SMALL}
    assert len(memory) == 1
    assert [size for at, size in seen if at not in memory] == [max(size for _, size in seen)]


@pytest.mark.usefixtures("small_block")
def test_leftovers_of_an_earlier_block_are_not_read() -> None:
    """The last block is short, and its memory still contains rows of a longer one."""
    rows = [f'{{"text": "{i}"}}\n'.encode() for i in range(9)]
    texts: list[str] = []
    for block in line_blocks(slow(b"".join(rows) + b'{"text": "9"}', 1 << 20), 0, None):
        found, keys, bad = JsonRows("text").parse_lines(block)
        assert not bad
        assert keys[0] == block.offset
        texts += found
    assert texts == [str(i) for i in range(10)]


@given(st.lists(st.sampled_from([b"", b"{}", b"x" * 9]), max_size=30), st.booleans(), st.integers(0, 40))
def test_both_ways_of_finding_lines_agree(lines: list[bytes], last: bool, behind: int) -> None:
    data = b"\n".join(lines) + (b"\n" if last else b"")
    block = Block(0, bytearray(data + b"\n" * behind), len(data))  # bytes after the block do not belong to it
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for short in (1 << 30, 1):  # no line is short; nearly all are
            patch.setattr(jsonl, "SHORT_LINE", short)
            patch.setattr(jsonl, "LINE_SAMPLE", 8)
            found.append(line_starts(block).tolist())
    wanted = np.cumsum([0, *(len(line) for line in data.splitlines(keepends=True))])[:-1].tolist()
    assert found == [wanted, wanted]


# Rows


def python_text(line: bytes) -> str | None:
    """Return the text of a line by Python's json module, or None if there is none that can be encoded."""
    try:
        row = json.loads(line.decode(errors="surrogateescape"))
        text = row["text"]
        text.encode()
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeEncodeError, RecursionError):
        return None
    return str(text) if isinstance(row, dict) else None


def python_rows(data: bytes) -> tuple[list[tuple[int, str]], list[int]]:
    """Return (key, text) of the good rows and keys of the bad ones, by Python's json module."""
    good, bad, key = [], [], 0
    for line in data.split(b"\n"):
        if line.strip():
            text = python_text(line.strip())
            if text is None:
                bad.append(key)
            else:
                good.append((key, text))
        key += len(line) + 1
    return good, bad


def rows_of(data: bytes) -> tuple[list[tuple[int, str]], list[int]]:
    """Return the same by nano3."""
    texts, keys, bad = JsonRows("text").parse_lines(Block(0, data, len(data)))
    return list(zip(keys.tolist(), texts, strict=True)), [key for key, _, _ in bad]


NOT_LINES = {
    "an_object_on_two_lines_and_two_on_one": b'{"text":"a","x":\n{"y":1}}\n{"text":"b"}{"text":"c"}\n',
    "an_array_of_objects_on_two_lines": b'{"text":"a","x":[{},\n{"y":1}]}\n{"text":"b"}{"text":"c"}',
    "two_on_a_line_and_a_blank_one": b'{"text":"a"}{"text":"b"}\n\n',
    "two_on_a_line_and_one_that_is_cut": b'{"text":"a"} {"text":"b"}\n{\n',
    "an_object_on_two_lines_of_windows": b'{"text":"a","x":\r\n{"y":1}}\r\n{"text":"b"}{"text":"c"}\r\n',
}


@pytest.mark.parametrize("data", NOT_LINES.values(), ids=NOT_LINES.keys())
def test_as_many_objects_as_lines_are_rows_only_if_each_has_its_own_line(data: bytes) -> None:
    """The fast path decodes the objects of a block without splitting it into lines."""
    assert rows_of(data) == python_rows(data)
    assert rows_of(data)[1], "there are bad rows"


FRAGMENTS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\n", b"\r\n", b" ", b"\\", b'"text"', b'"x"', b'{"text":"a"}',
    b'{"text": "b", "x": {}}', b'{"text":null}', b"1", b"-0.5e3", b"NaN", b"true", b"null", b"\xff", b"\\ud800", b"\t",
    b"\x00", "é".encode(), b'"text":"c"', b'{"text":"d","x":', b"{}}", b'{"text":1,"text":"e"}',
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map(b"".join))
def test_any_bytes_have_the_same_rows_as_with_pythons_json(data: bytes) -> None:
    assert rows_of(data) == python_rows(data)


objects = st.dictionaries(
    st.sampled_from(["text", "x", "te"]),
    st.one_of(st.text(max_size=8), st.none(), st.integers(), st.lists(st.text(max_size=3), max_size=2)),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(objects, max_size=8), st.booleans(), st.sampled_from(["\n", "\r\n", " \n", "\n\n"]), st.booleans())
def test_rows_that_json_wrote_come_back(rows: list[dict[str, Any]], ascii: bool, end: str, last: bool) -> None:
    data = end.join(json.dumps(row, ensure_ascii=ascii) for row in rows).encode()
    assert rows_of(data + end.encode() * last) == python_rows(data + end.encode() * last)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("last", [True, False], ids=["last_newline", "none"])
def test_plain_rows_are_decoded_by_the_fast_path(end: bytes, last: bool) -> None:
    """It is several times as fast, also for files with Windows line endings."""
    data = end.join([b'{"text": "a"}'] * 3) + (end if last else b"")
    assert has_one_object_per_line(np.frombuffer(data, np.uint8), line_starts(Block(0, data, len(data))))


@pytest.mark.parametrize(
    ("data", "keys"),
    [(b"", []), (b"\n", []), (b'{"text": ""}', [3]), (b'\n{"text": ""}\n', [4])],
    ids=["nothing_else", "newline", "row", "row_on_the_second_line"],
)
def test_a_byte_order_mark_is_not_a_row_but_counts_in_keys(data: bytes, keys: list[int]) -> None:
    whole = b"\xef\xbb\xbf" + data
    assert rows_of(whole) == ([(key, "") for key in keys], [])


def test_a_byte_order_mark_in_the_middle_makes_a_bad_row() -> None:
    """As left by `cat` of two files."""
    line = b'{"text": "a"}\n'
    assert rows_of(line + b"\xef\xbb\xbf" + line) == ([(0, "a")], [len(line)])
