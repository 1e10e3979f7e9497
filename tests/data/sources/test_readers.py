"""Read texts from every format, from ranges cut at any offset, and with every kind of bad row."""

import gzip
import json
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import data_helpers as helpers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.sources import jsonl
from nano3.data.sources.formats import FORMATS, detect_format
from nano3.data.sources.jsonl import Block, JsonRows, line_blocks, skip_to_line
from nano3.data.sources.readers import READERS, FileRange, read_documents, row_number
from nano3.utils.errors import Failure, Nano3Error, UserError

FILE_NAMES = [
    "a.parquet",
    "a.arrow",
    "a.arrows",
    "a.jsonl",
    "a.json",
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.jsonl.bz2",
    "a.jsonl.xz",
    "a.json.gz",
]


def file_range(
    path: Path, start: int = 0, stop: int | None = None, field: str = "text", rows: int | None = None
) -> FileRange:
    """Return a range of a file as the plan makes it."""
    kind = detect_format(path.read_bytes()[:65536], path.name)
    assert kind
    size = path.stat().st_size
    cost = size * FORMATS[kind].text_per_byte
    return FileRange(str(path.parent), path.name, kind, size, cost, start, cost if stop is None else stop, field, rows)


def read(chosen: FileRange) -> tuple[list[str], list[int], list[int], list]:
    """Return the texts, keys, offsets, and bad rows of a range."""
    texts, keys, offsets, bad = [], [], [], []
    for batch in read_documents(chosen):
        assert len(batch.texts) == len(batch.keys) == len(batch.offsets)
        texts += batch.texts
        keys += batch.keys.tolist()
        offsets += batch.offsets.tolist()
        bad += batch.bad
    return texts, keys, offsets, bad


def test_every_format_has_a_reader_and_a_file_here() -> None:
    assert READERS.keys() == FORMATS.keys()
    suffixes = {suffix for name in [*FILE_NAMES, "a.txt"] for suffix in Path(name).suffixes}
    assert all(suffixes & set(known.suffixes) for known in FORMATS.values())


@pytest.mark.parametrize("name", FILE_NAMES)
def test_every_format_yields_the_texts(tmp_path: Path, name: str) -> None:
    wanted = helpers.texts(100)
    path = helpers.write(tmp_path / name, wanted, row_group_size=30)
    got, keys, offsets, bad = read(file_range(path))
    assert got == wanted
    assert not bad
    assert keys == sorted(set(keys))
    assert offsets == sorted(offsets)
    assert 0 <= offsets[0] <= offsets[-1] < file_range(path).estimated_bytes


@pytest.mark.parametrize("name", FILE_NAMES)
def test_the_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    path = helpers.write(tmp_path / name, ["one", "two"])
    other = path.rename(tmp_path / "data.bin")
    assert read(file_range(other))[0] == ["one", "two"]


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("rows", [1, 8, 31, 500])
def test_first_rows(tmp_path: Path, name: str, rows: int) -> None:
    wanted = helpers.texts(100)
    path = helpers.write(tmp_path / name, wanted, row_group_size=30)
    got, _, offsets, _ = read(file_range(path, rows=rows))
    assert got == wanted[:rows]
    assert offsets == [4096 * i for i in range(min(rows, 100))]


@pytest.mark.parametrize("text", ["plain", "{ not json", "[link](x)\n", "a\r\nb\x00\n", "é日本😀"])
def test_txt_is_one_document(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert read(file_range(path))[0] == [text]
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(file_range(packed))[0] == [text]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.text(max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    block=st.sampled_from([16, 40, 1 << 20]),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
    last=st.booleans(),
)
def test_adjacent_ranges_of_json_lines_read_every_row_once(
    rows: list[str], cuts: list[int], block: int, newline: str, last: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = newline.join(json.dumps({"text": t}) for t in rows).encode() + (newline.encode() if last and rows else b"")
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_bytes(data)
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    got: list[tuple[int, str]] = []
    before, jsonl.BLOCK = jsonl.BLOCK, block
    try:
        with path.open("rb") as f:
            for low, high in pairwise(edges):
                f.seek(0)
                start = skip_to_line(f, low, high)
                for lines in line_blocks(f.readinto, start, high):
                    texts, keys, bad = JsonRows("text").parse_lines(lines)
                    assert not bad
                    assert all(low <= k < high for k in keys.tolist())
                    got += zip(keys.tolist(), texts, strict=True)
    finally:
        jsonl.BLOCK = before
    assert [text for _, text in got] == rows
    assert [k for k, _ in got] == sorted({k for k, _ in got})


def test_a_long_line_crosses_many_blocks(tmp_path: Path) -> None:
    wanted = ["a" * 9_000_000, "b", "é" * 5_000_000]
    path = helpers.write(tmp_path / "a.jsonl", wanted)
    assert read(file_range(path))[0] == wanted
    middle = path.stat().st_size // 2
    first, second = read(file_range(path, 0, middle)), read(file_range(path, middle))
    assert first[0] + second[0] == wanted


def test_row_groups_belong_to_the_range_they_start_in(tmp_path: Path) -> None:
    wanted = helpers.texts(1000)
    path = helpers.write(tmp_path / "a.parquet", wanted, row_group_size=90)
    cost = file_range(path).estimated_bytes
    edges = [0, 1, cost // 3, cost // 2, cost // 2 + 1, cost - 1, cost]
    got = [read(file_range(path, a, b)) for a, b in pairwise(edges)]
    assert [t for texts, *_ in got for t in texts] == wanted
    assert [k for _, keys, *_ in got for k in keys] == list(range(1000))


LINES = {
    "null": (b'{"text": null}', "null", "is null"),
    "missing": (b'{"body": "a"}', "no_text", "its fields: body"),
    "number": (b'{"text": 3}', "no_text", "number, not a string"),
    "list": (b'{"text": ["a"]}', "no_text", "list, not a string"),
    "array_row": (b'["a"]', "not_json", "not an object"),
    "null_row": (b"null", "not_json", "not an object"),
    "cut_short": (b'{"text": "a', "not_json", "not valid JSON"),
    "two_on_a_line": (b'{"text": "a"}{"text": "b"}', "not_json", "not valid JSON"),
    "raw_nul": (b'{"text": "a\x00b"}', "not_json", "not valid JSON"),
    "not_utf8": (b'{"text": "a\xffb"}', "not_utf8", "not UTF-8"),
    "half_surrogate": (b'{"text": "\\ud83d"}', "not_utf8", "surrogate"),
    "deep": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "a"}', "not_json", "not valid JSON"),
}


@pytest.mark.parametrize(("line", "kind", "what"), LINES.values(), ids=LINES.keys())
def test_bad_lines(line: bytes, kind: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    texts, _keys, _, bad = read(file_range(path))
    assert texts == ["one", "two"]
    assert [(b[0], b[1]) for b in bad] == [(17, kind)]
    assert what in bad[0][2]
    assert row_number(file_range(path), 17) == 3


ODD_LINES = {
    "nul_escape": (b'{"text": "a\\u0000b"}', "a\x00b"),
    "pair": (b'{"text": "\\ud83d\\ude00"}', "😀"),
    "twice": (b'{"text": "a", "text": "b"}', "b"),
    "nan": (b'{"text": "a", "x": NaN, "y": -Infinity, "z": 1e999}', "a"),
    "big": (b'{"text": "a", "x": 123456789012345678901234567890}', "a"),
    "bad_bytes_elsewhere": (b'{"text": "a", "x": "\xff"}', "a"),
    "half_surrogate_elsewhere": (b'{"text": "a", "x": "\\ud800"}', "a"),
    "escaped_key": (b'{"te\\u0078t": "a"}', "a"),
    "nested": (b'{"meta": {"text": "no"}, "text": "a"}', "a"),
    "spaces": (b'  { "text" :  "a" }  \r', "a"),
    "empty": (b'{"text": ""}', ""),
}


@pytest.mark.parametrize(("line", "text"), ODD_LINES.values(), ids=ODD_LINES.keys())
@pytest.mark.parametrize("neighbor", [b'{"text": "n"}', b"broken"], ids=["fast", "one_by_one"])
def test_odd_lines_are_read_as_pythons_json_reads_them(line: bytes, text: str, neighbor: bytes) -> None:
    lines = line + b"\n" + neighbor
    texts, _, _ = JsonRows("text").parse_lines(Block(0, lines, len(lines)))
    assert texts[0] == text


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert read(file_range(path))[:2] == (["a", "b"], [3, 17])
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa")
    assert read(file_range(path))[0] == ["a"]


COLUMNS = {
    "large_string": pa.array(["a", "é"], pa.large_string()),
    "string_view": pa.array(["a", "é"], pa.string_view()),
    "binary": pa.array([b"a", "é".encode()], pa.binary()),
    "dictionary": pa.array(["a", "é"]).dictionary_encode(),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS.keys())
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_column_types(tmp_path: Path, column: pa.Array, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    table = pa.table({"text": column})
    if suffix == "parquet":
        if pa.types.is_string_view(column.type) and int(pa.__version__.partition(".")[0]) < 25:
            pytest.skip("this version of pyarrow writes no string_view")
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
    assert read(file_range(path))[0] == ["a", "é"]


def test_bad_column_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    wrong = pa.array([b"a", None, b"\xff", b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": wrong}), path)
    texts, keys, _, bad = read(file_range(path))
    assert (texts, keys) == (["a", "b"], [0, 3])
    assert [(key, kind) for key, kind, _ in bad] == [(1, "null"), (2, "not_utf8")]
    assert row_number(file_range(path), 2) == 3


def test_wrong_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)
    with pytest.raises(UserError, match="Columns: body, n"):
        read(file_range(path))
    with pytest.raises(UserError, match="is int64, not text"):
        read(file_range(path, field="n"))


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.xz", "a.parquet", "a.arrow", "a.arrows"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_files_are_never_read_quietly(tmp_path: Path, name: str, damage: str) -> None:
    path = helpers.write(tmp_path / name, helpers.texts(3000, longest=30))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    else:
        for i in (
            range(len(data) - 40, len(data) - 3)
            if "parquet" in name or "arrow" in name
            else range(len(data) // 2, len(data) // 2 + 60)
        ):
            data[i] ^= 0x5A
    path.write_bytes(data)
    if name == "a.arrows" and damage == "flipped":
        pytest.skip("an Arrow stream's last bytes are its end marker only")
    with pytest.raises(Nano3Error, match=r"a.") as caught:
        read(file_range(path))
    assert str(path) in str(caught.value)


def test_concatenated_streams_are_one(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst", ".bz2", ".xz"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(helpers.pack(b'{"text": "a"}\n', suffix) + helpers.pack(b'{"text": "b"}\n', suffix))
        assert read(file_range(path))[0] == ["a", "b"], suffix


def test_concatenated_arrow_streams_are_one(tmp_path: Path) -> None:
    """`cat a.arrows b.arrows`; the order of the columns may differ."""
    one = helpers.write(tmp_path / "one.arrows", ["a", "b"]).read_bytes()
    table = pa.table({"n": [1], "text": ["c"]})
    with pa.ipc.new_stream(tmp_path / "two.arrows", table.schema) as out:
        out.write_table(table)
    path = tmp_path / "a.arrows"
    path.write_bytes(one + (tmp_path / "two.arrows").read_bytes())
    texts, keys, offsets, _ = read(file_range(path))
    assert (texts, keys) == (["a", "b", "c"], [0, 1, 2])
    assert offsets == sorted(offsets)
    path.write_bytes(one + b"garbage after the end of a stream")
    with pytest.raises(Failure, match="damaged Arrow file"):
        read(file_range(path))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "arrows"])
def test_a_column_name_that_occurs_twice(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    table = pa.table([["a"], ["b"], ["http://c"]], names=["text", "text", "url"])
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with (pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream)(path, table.schema) as out:
            out.write_table(table)
    with pytest.raises(UserError, match="there are 2 columns 'text'"):
        read(file_range(path))
    assert read(file_range(path, field="url"))[0] == ["http://c"]


def test_a_dictionary_that_holds_a_null(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    with pa.ipc.new_file(path, pa.schema([("text", column.type)])) as out:
        out.write_batch(pa.record_batch([column], names=["text"]))
    texts, keys, _, bad = read(file_range(path))
    assert (texts, keys, [(key, kind) for key, kind, _ in bad]) == (["a", "a"], [0, 2], [(1, "null")])


def test_a_zst_that_begins_with_a_skippable_frame(tmp_path: Path) -> None:
    """As written by pzstd."""
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00\xff\x00\x00\x00"
    packed = helpers.pack(b'{"text": "a"}\n', ".zst")
    path.write_bytes(skippable + packed + skippable + helpers.pack(b'{"text": "b"}\n', ".zst"))
    assert read(file_range(path))[0] == ["a", "b"]


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (b"\x5d\x00\x00\x80", "a.jsonl.lzma", None),
        (b"\x5d\x00\x00\x80", "a.txt.lzma", None),
        (b'{"text": "a"}', "a.jsonl.gz", "jsonl"),
        (b"\x00\x01", "a.jsonl.zst", None),
        (b"no object", "a.jsonl", "jsonl"),
    ],
    ids=["lzma", "lzma text", "plain after all", "no magic", "bad line"],
)
def test_a_suffix_of_compression_does_not_describe_the_bytes(head: bytes, name: str, kind: str | None) -> None:
    assert detect_format(head, name) == kind


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not installed")
def test_a_zst_with_a_large_window_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    text = b'{"text": "a"}\n' * 10
    packed = subprocess.run(["zstd", "--long=31", "--ultra", "-22"], input=text, capture_output=True, check=True)
    path.write_bytes(packed.stdout)
    with pytest.raises(UserError, match=r"window too large .*zstd -dc --long=31"):
        read(file_range(path))


ARRAYS = {
    "nan": (b'[{"text": "a", "score": NaN}, {"text": "b"}]', ["a", "b"], []),
    "half a pair": (
        b'[{"text": "a"}, {"text": "\\ud83d"}, {"text": "\\ud83d\\ude00"}]',
        ["a", "\U0001f600"],
        ["not_utf8"],
    ),
    "no utf-8": (b'[{"text": "a"}, {"text": "\xff"}]', ["a"], ["not_utf8"]),
    "no object": (b'[{"text": "a", "n": -Infinity}, 7, {"n": 1}]', ["a"], ["not_json", "no_text"]),
}


@pytest.mark.parametrize(("data", "texts", "kinds"), ARRAYS.values(), ids=ARRAYS.keys())
def test_a_json_array_has_the_same_rows_as_with_pythons_json(
    tmp_path: Path, data: bytes, texts: list[str], kinds: list[str]
) -> None:
    """A bad element is a bad row, not a bad file."""
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + data)
    found, _, _, bad = read(file_range(path))
    assert (found, [kind for _, kind, _ in bad]) == (texts, kinds)
    path.write_bytes(data[:-1])
    with pytest.raises(Failure, match="starts like a JSON array, but is not one"):
        read(file_range(path))


def test_a_changed_file_is_reported(tmp_path: Path) -> None:
    path = helpers.write(tmp_path / "a.jsonl", ["a"])
    p = file_range(path)
    path.write_bytes(path.read_bytes() + b'{"text": "b"}\n')
    with pytest.raises(Failure, match=r"when the plan was made.*Run the same command again"):
        read(p)


def test_row_number_of_a_compressed_line(tmp_path: Path) -> None:
    lines = [b'{"text": "%d"}\n' % i for i in range(30_000)]
    lines[20_000] = b"broken\n"
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines)))
    _, _, _, bad = read(file_range(path))
    assert row_number(file_range(path), bad[0][0]) == 20_001


def test_offsets_of_compressed_lines_are_spread_over_the_file(tmp_path: Path) -> None:
    path = helpers.write(tmp_path / "a.jsonl.zst", helpers.texts(20_000))
    p = file_range(path)
    _, _, offsets, _ = read(p)
    quarters = np.bincount(np.array(offsets) * 4 // p.estimated_bytes, minlength=4)
    assert quarters.min() > 0.7 * quarters.max()


COMPRESSED = [".gz", ".bz2", ".xz", ".zst"]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(COMPRESSED), st.data())
def test_a_truncated_or_changed_stream_never_yields_other_text(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    """At any position. As pyarrow writes it, zstd has no checksum, so only truncation is detected."""
    rows = helpers.texts(40, seed=3)
    path = helpers.write(tmp_path_factory.mktemp("packed") / f"a.jsonl{suffix}", rows)
    whole, planned = path.read_bytes(), file_range(path)
    at = data.draw(st.integers(1, len(whole) - 1))
    if suffix == ".zst" or data.draw(st.booleans()):
        path.write_bytes(whole[:at])
        allowed = None
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
        allowed = rows  # a header has bytes without meaning
    planned = replace(planned, size=path.stat().st_size)
    try:
        found = [text for batch in read_documents(planned) for text in batch.texts]
    except (Failure, UserError) as error:
        assert str(path) in str(error)
    else:
        assert found == allowed
