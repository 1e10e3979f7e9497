"""Test paths, templates, and lists of strings as text_field, in every format."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import documents, options, pack, reference, run, source

from nano3.config import SourceConfig
from nano3.config.blend import parse_datasets
from nano3.data.planning.planner import make_request
from nano3.data.sources.formats import FORMATS, detect_format
from nano3.data.sources.jsonl import JsonRows
from nano3.data.sources.readers import FileRange, read_documents
from nano3.data.sources.text_field import parse_text_field
from nano3.utils.errors import Failure, UserError

NAMES = ["a.jsonl", "a.json", "pretty.json", "a.jsonl.zst", "a.parquet", "a.arrow", "a.arrows"]
ROWS: list[dict[str, Any]] = [
    {"title": f"t{i}", "body": f"b\u00e9 {i}", "doc": {"text": f"nested {i}", "n": i}, "parts": [f"p{i}", "q", ""]}
    for i in range(50)
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix in (".parquet", ".arrow", ".arrows"):
        table = pa.Table.from_pylist(rows)
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=20)
        else:
            with (pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream)(path, table.schema) as out:
                out.write_table(table, 20)
    elif path.suffix == ".json":
        indented = "\n".join(json.dumps(row, indent=2) for row in rows)
        path.write_text(indented if path.name == "pretty.json" else json.dumps(rows))
    else:
        path.write_bytes(pack(lines, ".zst") if path.suffix == ".zst" else lines)
    return path


def read(path: Path, field: str, separator: str | None = None) -> tuple[list[str], list[str]]:
    """Return the texts and the reasons of the bad rows of a file."""
    kind = detect_format(path.read_bytes()[:65536], path.name)
    assert kind
    size = path.stat().st_size
    stop = size * FORMATS[kind].text_per_byte
    whole = FileRange(str(path.parent), path.name, kind, size, stop, 0, stop, field, None, separator)
    texts: list[str] = []
    bad: list[str] = []
    for batch in read_documents(whole):
        assert len(batch.texts) == len(batch.keys) == len(batch.offsets)
        texts += batch.texts
        bad += [f"{kind}: {reason}" for _, kind, reason in batch.bad]
    return texts, bad


CASES = {
    "path": ("doc.text", None, [row["doc"]["text"] for row in ROWS]),
    "template": ("{title}\n\n{body}", None, [f"{row['title']}\n\n{row['body']}" for row in ROWS]),
    "path in a template": ("{{{doc.text}}}", None, [f"{{{row['doc']['text']}}}" for row in ROWS]),
    "list": ("parts", "\n", ["\n".join(row["parts"]) for row in ROWS]),
    "empty separator": ("parts", "", ["".join(row["parts"]) for row in ROWS]),
    "list in a template": ("{title}: {parts}", " | ", [f"{r['title']}: {' | '.join(r['parts'])}" for r in ROWS]),
    "string with a separator": ("title", "\n", [row["title"] for row in ROWS]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("field", "separator", "wanted"), CASES.values(), ids=CASES.keys())
def test_every_format(tmp_path: Path, name: str, field: str, separator: str | None, wanted: list[str]) -> None:
    assert read(write_rows(tmp_path / name, ROWS), field, separator) == (wanted, [])


@pytest.mark.parametrize("name", NAMES)
def test_whole_name_has_precedence(tmp_path: Path, name: str) -> None:
    rows = [{"doc": {"text": "nested"}, "doc.text": "whole", "{doc}": "braces"}] * 3
    path = write_rows(tmp_path / name, rows)
    assert read(path, "doc.text") == (["whole"] * 3, [])
    assert read(path, "{doc.text}!") == (["whole!"] * 3, [])
    assert read(path, "{doc}") == (["braces"] * 3, [])


BAD = {
    "null": ("doc.text", None, {"doc": {"text": None}}, "null: 'doc.text' is null"),
    "null object": ("doc.text", None, {"doc": None}, "null: 'doc.text' is in an object that is null"),
    "missing": ("doc.text", None, {"doc": {"body": "a"}, "n": 1}, "no_text: no field 'doc.text'; its fields: doc, n"),
    "not an object": ("doc.text", None, {"doc": "a"}, "no_text: no field 'doc.text'; its fields: doc"),
    "number": ("{a} {b}", None, {"a": "x", "b": 3}, "no_text: 'b' is a number, not a string"),
    "list": ("a", None, {"a": ["x"]}, "no_text: 'a' is a list, not a string. Set the dataset's text_separator"),
    "list in a template": ("{a}.", None, {"a": ["x"]}, "no_text: 'a' is a list, .* text_separator"),
    "null in a list": ("a", " ", {"a": ["x", None]}, "null: 'a' is null"),
    "list of lists": ("a", " ", {"a": [["x"]]}, "no_text: 'a' is a list of lists"),
    "surrogate": ("{a}{b}", None, {"a": "x", "b": "\ud800"}, "not_utf8: .*surrogate"),
}


@pytest.mark.parametrize(("field", "separator", "row", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_rows(tmp_path: Path, field: str, separator: str | None, row: dict[str, Any], reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n7\n")
    texts, bad = read(path, field, separator)
    assert (texts, len(bad)) == ([], 2)
    assert re.search(reason, bad[0])
    assert bad[1] == "not_json: a number, not an object"


def test_bad_rows_of_columns(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "a"}}, {"doc": {"text": None}}, {"doc": None}, {"doc": {"text": "b"}}]
    path = write_rows(tmp_path / "a.parquet", rows)
    assert read(path, "doc.text") == (
        ["a", "b"],
        ["null: 'doc.text' is null", "null: 'doc.text' is in an object that is null"],
    )
    wrong = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": wrong, "b": ["x", "y"]}), path)
    texts, bad = read(path, "{a}{b}")
    assert texts == ["ax"]
    assert [reason.partition(":")[0] for reason in bad] == ["not_utf8"]
    with pytest.raises(UserError, match=r"no column 'c'\. Columns: a, b"):
        read(path, "{a}{c}")
    write_rows(path, [{"parts": ["a"]}])
    with pytest.raises(UserError, match=r"column 'parts' is list<.*text_separator"):
        read(path, "parts")


@pytest.mark.parametrize("field", ["text", "a b", "\u00e9"])
def test_names_are_plain(field: str) -> None:
    assert parse_text_field(field).plain
    assert JsonRows(field)._plain


def test_documents_and_identity(tmp_path: Path, byte_bpe: Path) -> None:
    """The template and the separator are part of the plan's hash; without a separator, the hash is the old one."""
    for name in NAMES:
        write_rows(tmp_path / "in" / name.replace("a.", f"{len(name)}."), ROWS)
    sources = [source(tmp_path / "in", text_field="{title}: {parts}", text_separator="\n")]
    run(sources, tmp_path / "out", byte_bpe)
    wanted = [f"{row['title']}: " + "\n".join(row["parts"]) for row in ROWS]
    assert len(documents(tmp_path / "out")) == 50 * len(list((tmp_path / "in").iterdir()))
    assert {*map(tuple, documents(tmp_path / "out"))} == {*map(tuple, reference(byte_bpe, wanted))}
    variants: list[dict[str, Any]] = [
        {"text_field": "{title}: {parts}", "text_separator": "\n"},
        {"text_field": "{title}: {parts}", "text_separator": " "},
        {"text_field": "{title}; {parts}", "text_separator": " "},
        {"text_field": "{title}; {parts}"},
    ]
    hashes = [
        make_request([source(tmp_path / "in", **keys)], options(tmp_path / "o", byte_bpe), "b").hash
        for keys in variants
    ]
    assert len({*hashes}) == 4
    with pytest.raises(UserError, match="holds other data"):
        run([source(tmp_path / "in", **variants[1])], tmp_path / "out", byte_bpe)


def test_sample_and_bad_row_in_a_run(tmp_path: Path, byte_bpe: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", ROWS)
    made = run([source(path, text_field="doc.text")], tmp_path / "out", byte_bpe, sample=20)
    assert made.datasets[0].documents == 20
    lines = write_rows(tmp_path / "a.jsonl", [*ROWS, {"parts": "text"}, {"parts": [1]}])
    with pytest.raises(Failure, match=r"a\.jsonl: row 52 .*'parts' is a number"):
        run([source(lines, text_field="parts", text_separator=" ")], tmp_path / "out2", byte_bpe, test_fraction=0.9)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"text_field": '{title}\n\n{body} "quoted" {{x}}', "text_separator": "\n"}, ""),
        ({"text_field": "{title"}, "is no template: .*Write literal braces twice"),
        ({"text_field": "{}"}, "braces hold a field's name"),
        ({"text_field": "{{title}}"}, "braces hold a field's name"),
        ({"text_field": "{title!r}"}, "braces hold a field's name"),
        ({"text_field": "{n:5}"}, "braces hold a field's name"),
        ({"text_field": '{a"b}'}, "must not contain quotes"),
        ({"text_separator": 3}, "text_separator must be text"),
    ],
)
def test_blend_files(keys: dict[str, Any], problem: str) -> None:
    entry = {"name": "d", "path": "x", **keys}
    if problem:
        with pytest.raises(UserError, match=problem):
            parse_datasets([entry], "blend")
    else:
        assert parse_datasets([entry], "blend") == [SourceConfig(**entry)]
