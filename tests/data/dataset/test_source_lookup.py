"""From a document of prepared data back to its file and row: the text there has the document's ids."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from data_helpers import options, reference, run, source, texts, write

from nano3.config import SourceConfig
from nano3.data.build.run import prepare
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import load_manifest
from nano3.data.dataset.source_lookup import SourceRow, find_source_rows, load_build_plan
from nano3.utils.errors import Failure

OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def text_at(row: SourceRow) -> str:
    """The text of a source row, read without nano3."""
    path = Path(row.path)
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        return pq.read_table(path)["text"][row.key].as_py()
    if kind == "arrow":
        return pa.ipc.open_file(path).read_all()["text"][row.key].as_py()
    if kind == "json":
        return json.loads(path.read_text())[row.key]["text"]
    if kind == "txt":
        return path.read_text()
    if path.suffix == ".zst":
        data = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd").read()
    else:
        data = OPENERS.get(path.suffix, open)(path, "rb").read()
    return json.loads(data[row.key :].partition(b"\n")[0])["text"]


def check(folder: Path, tokenizer: Path, min_chars: int = 0) -> list[SourceRow]:
    """Look up every document of every shard and compare its ids; return the source rows."""
    manifest = load_manifest(folder)
    plan = load_build_plan(folder, manifest)
    seen = []
    for entry in manifest.shards:
        split, _, name = entry.prefix.partition("/")
        data = IndexedFile(folder / entry.prefix)
        found_rows = find_source_rows(plan, split, int(name.removeprefix("data_")), range(len(data)))
        assert list(found_rows) == list(range(len(data)))
        found = [text_at(found_rows[n]) for n in range(len(data))]
        assert all(len(text) >= min_chars for text in found)
        assert reference(tokenizer, found) == [data.document(n).tolist() for n in range(len(data))]
        seen += found_rows.values()
    return seen


FORMATS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.xz", "a.json", "a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_document_is_found(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    more = {"row_group_size": 13} if name.endswith("parquet") else {}
    write(tmp_path / "in" / name, texts(150), **more)
    write(tmp_path / "in" / f"b{name}", texts(70, seed=1), **more)
    run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=7, valid_fraction=0.2, test_fraction=0.1)
    found_rows = check(tmp_path / "out", byte_bpe)
    assert len(set(found_rows)) == 220
    assert {Path(row.path).name for row in found_rows} == {name, f"b{name}"}


def test_plain_text_files(tmp_path: Path, byte_bpe: Path) -> None:
    for i, text in enumerate(texts(30)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i:02d}.txt").write_text(text)
    run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=4)
    found_rows = check(tmp_path / "out", byte_bpe)
    assert {row.position for row in found_rows} == {"byte 0"}
    assert len({row.path for row in found_rows}) == 30


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"min_doc_chars": 80}, id="short documents skipped"),
        pytest.param({"sample": 60}, id="sample"),
        pytest.param({"sample": 60, "min_doc_chars": 40, "valid_fraction": 0.3}, id="both"),
        pytest.param({"num_shards": 1}, id="one shard"),
        pytest.param({"num_shards": 60}, id="small shards"),
    ],
)
def test_options_that_choose_documents(tmp_path: Path, byte_bpe: Path, keys: dict) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl", texts(60, seed=i))
        write(tmp_path / "in" / f"{i}.parquet", texts(40, seed=10 + i), row_group_size=9)
    run(tmp_path / "in", tmp_path / "out", byte_bpe, **keys)
    assert check(tmp_path / "out", byte_bpe, keys.get("min_doc_chars", 0))


def test_several_datasets(tmp_path: Path, byte_bpe: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", texts(50, seed=i)) for i, name in enumerate("abc")]
    sources: list[SourceConfig] = [source(path, path.stem, weight=1.0) for path in paths]
    prepare(sources, options(tmp_path / "out", byte_bpe, num_shards=11, valid_fraction=0.2), "test")
    assert {row.path for row in check(tmp_path / "out", byte_bpe)} == {str(path) for path in paths}


def test_bad_rows_are_not_counted(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(40))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b'{"text": null}\n', *lines[:20], b"broken\n", *lines[20:]]))
    run(path, tmp_path / "out", byte_bpe, num_shards=3, bad_rows="skip", max_bad_rows=2)
    assert len(check(tmp_path / "out", byte_bpe)) == 40


def test_positions_in_words() -> None:
    assert SourceRow("a.parquet", 1233, True).position == "row 1,234"
    assert SourceRow("a.jsonl", 1233, False).position == "byte 1,233"


@pytest.fixture
def prepared(tmp_path: Path, byte_bpe: Path) -> tuple[Path, Path]:
    """(output folder, source file)."""
    path = write(tmp_path / "a.jsonl", texts(40))
    run(path, tmp_path / "out", byte_bpe, num_shards=2)
    return tmp_path / "out", path


def look_up(output: Path, numbers: list[int] | None = None) -> dict[int, SourceRow]:
    return find_source_rows(load_build_plan(output, load_manifest(output)), "train", 0, numbers or [0])


def test_edited_source_is_reported(prepared: tuple[Path, Path]) -> None:
    output, path = prepared
    path.write_bytes(path.read_bytes().replace(b"id", b"ID"))
    with pytest.raises(Failure, match=r"a\.jsonl: has changed since the data was prepared"):
        look_up(output)


def test_source_of_another_size_is_reported(prepared: tuple[Path, Path]) -> None:
    output, path = prepared
    path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')
    with pytest.raises(Failure, match=r"a\.jsonl"):
        look_up(output)


def test_deleted_source_is_reported(prepared: tuple[Path, Path]) -> None:
    output, path = prepared
    path.unlink()
    with pytest.raises(Failure, match=r"a\.jsonl: cannot be read: No such file"):
        look_up(output)


def test_number_beyond_the_shard_is_reported(prepared: tuple[Path, Path]) -> None:
    with pytest.raises(Failure, match="shard 0 of train has a document 500, but its sources now give"):
        look_up(prepared[0], [3, 500])


def test_deleted_plan_is_reported(prepared: tuple[Path, Path]) -> None:
    for plan in (prepared[0] / ".prep").glob("*/plan.json"):
        plan.unlink()
    with pytest.raises(Failure, match=r"plan\.json: cannot be read"):
        look_up(prepared[0])
