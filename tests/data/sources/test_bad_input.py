"""Errors about bad input name the file, the row, and the fix; good rows are not lost."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import documents, pack, reference, run, source, texts, tree, write

from nano3.utils.errors import Failure, UserError

NAMES = ["a.jsonl", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.arrow", "a.json"]

# Bad input


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    good = b'{"text": "one"}\n{"text": "two"}\n'
    return {
        "null.jsonl": (good + b'{"text": null}\n', r"null\.jsonl: row 3 .*null"),
        "field.jsonl": (good + b'{"body": "x"}\n', r"field\.jsonl: row 3 .*no field 'text'; its fields: body"),
        "utf8.jsonl": (good + b'{"text": "\xff"}\n', r"utf8\.jsonl: row 3 .*not UTF-8"),
        "utf8.txt": (b"abc\xffdef", r"utf8\.txt: row 1 .*not UTF-8 at byte 3"),
        "cut.jsonl": (good + b'{"text": "thr', r"cut\.jsonl: row 3 .*not valid JSON"),
        "cut.jsonl.gz": (pack(good * 99, ".gz")[:-9], r"cut\.jsonl\.gz: gz stream damaged or truncated"),
        "cut.jsonl.zst": (pack(good * 99, ".zst")[:-9], r"cut\.jsonl\.zst: zst stream damaged or truncated"),
        "junk.jsonl": (b"\x01\x02\x03", r"junk\.jsonl: row 1 .*not valid JSON"),
        "junk.parquet": (b"PAR1 but not really", r"junk\.parquet: "),
        "inside.jsonl.gz": (pack(b"PAR1PAR1", ".gz"), r"inside\.jsonl\.gz: gz of parquet"),
    }


@pytest.mark.parametrize("name", bad_files(Path()))
def test_bad_files_are_reported_with_file_and_row(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    data, message = bad_files(tmp_path)[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    for keys in ({}, {"valid_fraction": 0.0, "test_fraction": 0.0}):  # reported by the planner, and by a worker
        with pytest.raises((Failure, UserError), match=message):
            run(tmp_path / "in", tmp_path / "out", byte_bpe, force=True, **keys)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, byte_bpe: Path) -> None:
    lines = [json.dumps({"text": t}).encode() for t in texts(300)]
    lines[7:7] = [b'{"text": null}', b"{}", b'{"text": "\xff"}', b"broken", b'{"text": 1}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(Failure, match=r"row 8 .*bad_rows=skip"):
        run(path, tmp_path / "out", byte_bpe)
    manifest = run(path, tmp_path / "out", byte_bpe, bad_rows="skip", max_bad_rows=0.02)
    assert manifest.datasets[0].skipped == {"not_json": 1, "not_utf8": 1, "no_text": 2, "null": 1}
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, texts(300)))


@pytest.mark.parametrize("keys", [{}, {"valid_fraction": 0.0, "test_fraction": 0.0}], ids=["plan", "worker"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_text_field_that_no_row_has(tmp_path: Path, byte_bpe: Path, name: str, keys: dict) -> None:
    path = write(tmp_path / name, texts(50))
    with pytest.raises(UserError, match=r"txet.*(its fields: |Columns: ).*text.*text_field"):
        run([source(path, text_field="txet")], tmp_path / "out", byte_bpe, **keys)


def test_the_first_documents_of_all_datasets_are_checked(tmp_path: Path, byte_bpe: Path) -> None:
    """Report each error with its dataset in any format; with a damaged file, the error is no UserError."""
    sources = [
        source(write(tmp_path / "a.jsonl", texts(50)), "first", text_field="txet"),
        source(write(tmp_path / "b.jsonl", texts(50)), "right"),
        source(write(tmp_path / "c.parquet", texts(50)), "third", text_field="body"),
    ]
    with pytest.raises(UserError) as caught:
        run(sources, tmp_path / "out", byte_bpe)
    assert [p.partition(":")[0] for p in caught.value.problems] == ["dataset 'first'", "dataset 'third'"]
    (tmp_path / "d.jsonl").write_bytes(b"\x01\x02\x03")
    with pytest.raises(Failure) as damaged:
        run([*sources, source(tmp_path / "d.jsonl", "fourth")], tmp_path / "out", byte_bpe)
    assert [p.partition(":")[0] for p in damaged.value.problems][2:] == ["dataset 'fourth'"]


MISSING = {
    "nothing": ("no_such/file.jsonl", "no such file or folder"),
    "glob": ("in/*.parquet", "no file matches"),
    "empty_folder": ("empty", "no file with text in it"),
    "url": ("memory://nothing/there", "no file or folder at this URL|memory"),
    "protocol": ("nosuch://x/y", "nosuch"),
}


@pytest.mark.parametrize(("path", "message"), MISSING.values(), ids=MISSING.keys())
def test_no_such_input(tmp_path: Path, byte_bpe: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    where = path if "://" in path else str(tmp_path / path)
    with pytest.raises(UserError, match=message):
        run([source(where)], tmp_path / "out", byte_bpe)


EMPTY = {
    "zero_bytes.jsonl": b"",
    "blank.jsonl": b"\n\n",
    "only_empty.jsonl": b'{"text": ""}\n' * 5,
    "array.json": b"[]",
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_documents(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(UserError, match=r"no tokens for training|no file with text|no documents"):
        run(tmp_path / name, tmp_path / "out", byte_bpe)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_empty_parquet(tmp_path: Path, byte_bpe: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no tokens for training"):
        run(tmp_path / "a.parquet", tmp_path / "out", byte_bpe)


def test_unknown_files_in_a_folder_are_left_out_with_a_warning(
    tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.jsonl", texts(10))
    (tmp_path / "in" / "README.md").write_text("not data")
    (tmp_path / "in" / "_SUCCESS").write_text("not data")
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe)
    assert manifest.datasets[0].files == 1
    assert "1 file(s) of no known format left out: README.md" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"README\.md is not of a known format"):
        run(tmp_path / "in" / "README.md", tmp_path / "out2", byte_bpe)


def test_globs_and_folders(tmp_path: Path, byte_bpe: Path) -> None:
    for name in ("x/1.jsonl", "x/y/2.jsonl", "x/y/3.parquet", "z/4.jsonl"):
        write(tmp_path / "in" / name, [name])
    found = {
        "in": 4,
        "in/x": 3,
        "in/x/*.jsonl": 1,
        "in/**/*.jsonl": 3,
        "in/[xz]/*.jsonl": 2,
    }
    for path, count in found.items():
        manifest = run([source(tmp_path / path)], tmp_path / path.replace("/", "_").replace("*", "S"), byte_bpe)
        assert manifest.datasets[0].files == count, path


def test_unwritable_output(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(path, tmp_path / "file" / "out", byte_bpe)


def test_a_folder_not_made_by_nano3_is_left_alone(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(10))
    (tmp_path / "out" / "train").mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(UserError, match="nano3 did not make it"):
            run(path, tmp_path / "out", byte_bpe, force=force)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, byte_bpe: Path, tiny_disk: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(4000, longest=300))
    with pytest.raises(Failure, match="no space left on the device"):
        run(path, tiny_disk / "out", byte_bpe)
    assert not (tiny_disk / "out" / "manifest.json").exists()
    assert not (tiny_disk / "out" / "train").exists()
    subprocess.run(["mount", "-o", "remount,size=40m", str(tiny_disk)], check=True)
    run(path, tiny_disk / "out", byte_bpe)
    run(path, tmp_path / "out", byte_bpe)
    assert tree(tiny_disk / "out") == tree(tmp_path / "out")
