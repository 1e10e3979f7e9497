"""Execute the table of docs/prepare-data.md: what is read, how, and what is refused and why."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from data_helpers import documents, pack, reference, run, source, write
from test_saved_dataset import save, save_dict

from nano3.data.dataset.manifest import load_manifest
from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan
from nano3.data.sources.formats import CSV_COMMAND, FORMATS, REFUSED, detect_format
from nano3.data.sources.readers import FileRange, read_documents, row_number
from nano3.utils.errors import Failure, Nano3Error, UserError

DOCS = Path(__file__).parents[3] / "docs" / "prepare-data.md"
TABLE = re.compile(r"^\| `(\S+?)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = [{"text": "one", "n": 1}, {"text": "two, {x} \u00e9"}, {"text": "three\n\nlines"}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
MANY = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(199))
PRETTY = "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS)


def zip_archive() -> bytes:
    """Return a zip archive with one text member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("000.txt", "one")
    return out.getvalue()


def tar() -> bytes:
    """Return a tar archive with one text member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("000.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"one"))
    return out.getvalue()


CSV = 'id,text\n1,one\n2,"two, {x} \u00e9"\n3,"three\n\nlines"\n'
# Content of each file of the table, and its texts; None if it is refused.
INPUTS: dict[str, tuple[bytes | None, list[str] | None]] = {
    "a.jsonl": (LINES.replace("\n", "\n\n").encode(), TEXTS),
    "bom.jsonl": (b"\xef\xbb\xbf" + LINES.encode(), TEXTS),
    "array.json": (json.dumps(ROWS, indent=1).encode(), TEXTS),
    "pretty.json": (json.dumps(ROWS[2], indent=2).encode(), TEXTS[2:]),
    "several.json": (PRETTY.encode(), TEXTS),
    "broken.json": (PRETTY.encode()[:-4], None),
    "a.parquet": (None, TEXTS),
    "a.arrow": (None, TEXTS),
    "a.txt": (b"\xef\xbb\xbf" + TEXTS[2].encode(), TEXTS[2:]),
    "a.jsonl.gz": (gzip.compress(LINES.encode()), TEXTS),
    "pretty.json.zst": (pack(PRETTY.encode(), ".zst"), TEXTS),
    "a.txt.xz": (lzma.compress(TEXTS[2].encode()), TEXTS[2:]),
    "utf16.jsonl": (LINES.encode("utf-16"), None),
    "utf16be.txt": (TEXTS[1].encode("utf-16-be"), None),
    "utf32.txt": (TEXTS[1].encode("utf-32"), None),
    "a.csv": (CSV.encode(), None),
    "a.tsv.gz": (gzip.compress(CSV.replace(",", "\t").encode()), None),
    "a.tar": (tar(), None),
    "a.zip": (zip_archive(), None),
    "path.jsonl": ("".join(json.dumps({"doc": row}) + "\n" for row in ROWS).encode(), TEXTS),
    "list.json": (json.dumps([{"text": text.split("\n")} for text in TEXTS]).encode(), TEXTS),
    "bare_list.json": (json.dumps([{"text": text.split("\n")} for text in TEXTS]).encode(), None),
    "template.jsonl": (b'{"title": "three", "body": "lines"}\n', TEXTS[2:]),
    "bad.jsonl": (LINES.encode() + b'{"text": null}\n', None),
    "skip.jsonl": (MANY.encode() + b'{"text": null}\n', [str(i) for i in range(199)]),
    "too_bad.jsonl": (LINES.encode() + b'{"text": null}\n', None),
    "saved": (None, TEXTS),
    "saved_dict": (None, TEXTS),
    "other_dict": (None, None),
    "hf://org": (None, None),
    "hf://org/name@": (None, None),
    "a.pdf": (b"%PDF-1.7", None),
}
KEYS: dict[str, dict[str, str]] = {
    "path.jsonl": {"text_field": "doc.text"},
    "list.json": {"text_separator": "\n"},
    "template.jsonl": {"text_field": "{title}\n\n{body}"},
}
OPTIONS = {"skip.jsonl": {"bad_rows": "skip"}, "too_bad.jsonl": {"bad_rows": "skip"}}


def table() -> dict[str, str]:
    """Return the last column of the table by file name."""
    section = DOCS.read_text().partition("| file | content | result |")[2].partition("\n\n")[0]
    return {name: result for name, _, result in TABLE.findall(section)}


def make(folder: Path, name: str) -> Path | str:
    """Write a file or folder of the table and return its path."""
    folder.mkdir(exist_ok=True)
    if "://" in name:
        return name
    if name == "saved":
        return save(folder / name, TEXTS)
    if name.endswith("_dict"):
        return save_dict(folder / name, **{"train" if name == "saved_dict" else "dev": TEXTS})
    content = INPUTS[name][0]
    if content is None:
        return write(folder / name, TEXTS)
    (folder / name).write_bytes(content)
    return folder / name


def test_the_table_has_these_files() -> None:
    assert table().keys() == INPUTS.keys()
    assert {"".join(Path(name).suffixes[-1:])[1:] for name in INPUTS} >= FORMATS.keys() - {"bz2"}


@pytest.mark.parametrize("name", INPUTS)
def test_files_are_read_or_refused_as_the_table_says(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    path, texts, result = make(tmp_path / "in", name), INPUTS[name][1], table()[name]
    assert result.startswith("refused") == (texts is None)
    if texts is None:
        with pytest.raises(Nano3Error) as caught:
            run([source(path, **KEYS.get(name, {}))], tmp_path / "out", byte_bpe, **OPTIONS.get(name, {}))
        assert name in str(caught.value)
        for command in re.findall(r"`(.+?)`", result):
            assert command in str(caught.value)
        return
    run([source(path, **KEYS.get(name, {}))], tmp_path / "out", byte_bpe, **OPTIONS.get(name, {}))
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, texts))


@pytest.mark.parametrize("name", [n for n, (_, texts) in INPUTS.items() if texts == TEXTS and "saved" not in n])
def test_source_rows_are_found(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    sources = [source(make(tmp_path / "in", name), **KEYS.get(name, {}))]
    run(sources, tmp_path / "out", byte_bpe, valid_fraction=0, test_fraction=0, num_shards=1)
    plan = load_build_plan(tmp_path / "out", load_manifest(tmp_path / "out"))
    rows = find_source_rows(plan, "train", 0, range(3))
    by_line = ".jsonl" in name
    assert [row.is_row for row in rows.values()] == [not by_line] * 3
    if not by_line:
        assert [row.position for row in rows.values()] == ["row 1", "row 2", "row 3"]


def file_range(path: Path, kind: str | None = None) -> FileRange:
    """Return the range of a whole file."""
    size = path.stat().st_size
    kind = kind or detect_format(path.read_bytes()[:65536], path.name)
    assert kind
    return FileRange(str(path.parent), path.name, kind, size, size * 4, 0, size * 4, "text")


HEADS = {
    "compact": (b'{"text": "a"}\n{"text": "b"}\n', "jsonl"),
    "no newline": (b'{"text": "a"}', "jsonl"),
    "long first line": (b'{"text": "' + b"a" * 70_000, "jsonl"),
    "cut in a string": (b'{"text": "a\n{"text": "b"}\n', "jsonl"),
    "cut after a comma": (b'{"text": "a",\n{"text": "b"}\n', "jsonl"),
    "cut at the end": (b'{"text": "a",\n', "jsonl"),
    "two on a line": (b'{"text": "a"}{"text":\n"b"}\n', "jsonl"),
    "deep": (b'{"x": ' + b"[" * 50_000 + b"\n", "jsonl"),
    "brace": (b'{\n  "text": "a"}', "json"),
    "blank lines": (b'\n\n {\r\n\r\n\t"text": "a"}', "json"),
    "first member on the first line": (b'{"id": 1,\n "text": "a"}', "json"),
    "leading commas": (b'{ "id": 1\n, "text": "a"}', "json"),
    "list of objects": (b'{"x": [\n{"y": 1}], "text": "a"}', "json"),
    "long second line": (b'{\n "text": "' + b"a" * 70_000, "json"),
    "wide": ('{"text": "a"}\n'.encode("utf-16-le"), "utf16le"),
    "wide, after a blank line": ('\n{"text": "a"}\n'.encode("utf-16-le"), "utf16le"),
    "wide, big": ('{"text": "a"}\n'.encode("utf-16-be"), "utf16be"),
    "wide, few Latin characters": (('{"text": "' + "語" * 200).encode("utf-16-be"), "utf16be"),
    "a NUL": (b'{"text": "a\0b"}', "jsonl"),
}


@pytest.mark.parametrize(("head", "kind"), HEADS.values(), ids=HEADS.keys())
def test_objects_over_several_lines_are_detected(head: bytes, kind: str) -> None:
    assert detect_format(head[:65536], "a.json") == kind
    assert detect_format(b"\xef\xbb\xbf" + head[:65533], "a.json") == (kind if "utf16" not in kind else "jsonl")


def test_bad_objects_over_several_lines_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = ['{\n"text": "a"}', '{\n"text": null\n}', "7", '{\n"body": "x"}', '{\n"text": "b", "x": NaN}']
    path.write_bytes("\n".join(rows).encode() + b' {"text": "\xff"} {"text": "c", "x": "\xff"}')
    (batch,) = read_documents(file_range(path))
    assert (batch.texts, batch.keys.tolist()) == (["a", "b", "c"], [0, 4, 6])
    assert [kind for _, kind, _ in batch.bad] == ["null", "not_json", "no_text", "not_utf8"]
    packed = tmp_path / "b.json.bz2"
    packed.write_bytes(bz2.compress(path.read_bytes()))
    assert row_number(file_range(packed), 1) == 2
    path.write_bytes(b'{\n"text": "a"},\n{"text": "b"}')
    with pytest.raises(Failure, match=r"a\.json: starts with a JSON object over several lines, .*line 2 column 13"):
        list(read_documents(file_range(path)))


def test_json_lines_that_turn_into_objects_over_several_lines(tmp_path: Path) -> None:
    """The first object is on one line, so the file is JSON lines; the error says how to convert it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{\n  "text": "b"\n}\n')
    (batch,) = read_documents(file_range(path))
    assert batch.texts == ["a"]
    assert all("jq -c . OLD > NEW.jsonl" in reason for _, _, reason in batch.bad)


def test_csv_is_left_out_of_a_folder_and_named_if_alone(
    tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "in", "a.csv")
    with pytest.raises(UserError, match=r"a\.csv is CSV, which is not read\. Convert it: python"):
        run(tmp_path / "in", tmp_path / "out", byte_bpe)
    make(tmp_path / "in", "a.jsonl")
    run(tmp_path / "in", tmp_path / "out", byte_bpe)
    assert "1 file(s) of no known format left out: a.csv" in capfd.readouterr().err
    make(tmp_path / "in", "utf32.txt")
    with pytest.raises(UserError, match=r"utf32\.txt is UTF-32, not UTF-8.*iconv"):
        run(tmp_path / "in", tmp_path / "out2", byte_bpe)


def test_commands_convert(tmp_path: Path) -> None:
    """The commands of the errors make files that are read."""
    for name, kind in (("a.csv", "csv"), ("utf16.jsonl", "utf16"), ("a.tar", "tar"), ("utf16be.txt", "utf16be")):
        path = make(tmp_path / "in", name)
        command = REFUSED[kind][1].partition(", and")[0].replace("python ", f"{sys.executable} ", 1)
        if not shutil.which(command.split()[0]):
            continue
        new = tmp_path / f"new.{kind}{'.txt' if name.endswith('.txt') else '.jsonl'}"
        command = command.replace("OLD", str(path)).replace("NEW.jsonl", str(new)).replace("NEW", str(new))
        subprocess.run(command, shell=True, check=True)
        new = new / "000.txt" if kind == "tar" else new
        texts = [text for batch in read_documents(file_range(new)) for text in batch.texts]
        assert texts == {"tar": ["one"], "utf16be": TEXTS[1:2]}.get(kind, TEXTS)
    assert CSV_COMMAND.count("{}") == 1
