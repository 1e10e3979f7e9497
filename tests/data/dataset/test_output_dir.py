"""Replacing data removes only what nano3 wrote, and a damaged publishing marker removes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import run, texts, tree, write

from nano3.data.dataset import output_dir
from nano3.utils.errors import Failure, Nano3Error, UserError

FOREIGN: dict[str, Callable[[Path], object]] = {
    "train/cat.jpg": lambda out: (out / "train" / "cat.jpg").write_bytes(b"meow"),
    "train/more/notes.txt": lambda out: write(out / "train" / "more" / "notes.txt", ["mine"]),
    "tokenizer/vocab.txt": lambda out: (out / "tokenizer" / "vocab.txt").write_text("mine"),
    "train/data_00000.bin.bak": lambda out: (out / "train" / "data_00000.bin.bak").write_bytes(b"copy"),
}


@pytest.fixture
def prepared(tmp_path: Path, byte_bpe: Path) -> Path:
    """Return the output folder of a small preparation of `tmp_path`/in.jsonl."""
    write(tmp_path / "in.jsonl", texts(60))
    run(tmp_path / "in.jsonl", tmp_path / "out", byte_bpe, num_shards=3)
    return tmp_path / "out"


@pytest.mark.parametrize("name", FOREIGN)
def test_force_keeps_files_of_the_user(name: str, prepared: Path, byte_bpe: Path) -> None:
    FOREIGN[name](prepared)
    before = tree(prepared)
    with pytest.raises(UserError) as error:
        run(prepared.parent / "in.jsonl", prepared, byte_bpe, num_shards=4, force=True)
    assert name in str(error.value) and "Move them elsewhere" in str(error.value)
    assert {path: data for path, data in tree(prepared).items() if path in before} == before


@pytest.mark.parametrize("name", FOREIGN)
def test_a_complete_preparation_tolerates_them(name: str, prepared: Path, byte_bpe: Path) -> None:
    FOREIGN[name](prepared)
    before = tree(prepared)
    run(prepared.parent / "in.jsonl", prepared, byte_bpe, num_shards=3)
    assert tree(prepared) == before


@pytest.mark.parametrize("force", [True, False])
def test_a_foreign_manifest_is_never_replaced(force: bool, tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in.jsonl", texts(20))
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train" / "cat.jpg").write_bytes(b"meow")
    (out / "manifest.json").write_text(json.dumps({"name": "an app", "icons": []}))
    with pytest.raises(UserError) as error:
        run(tmp_path / "in.jsonl", out, byte_bpe, force=force)
    assert "manifest.json, train/cat.jpg" in str(error.value) and "force=true" not in str(error.value)
    assert (out / "train" / "cat.jpg").read_bytes() == b"meow"
    assert json.loads((out / "manifest.json").read_text())["name"] == "an app"


def test_force_replaces_data_with_a_damaged_manifest(prepared: Path, byte_bpe: Path) -> None:
    (prepared / "manifest.json").write_text("{")
    run(prepared.parent / "in.jsonl", prepared, byte_bpe, num_shards=4, force=True)
    assert output_dir.foreign_files(prepared) == []


def test_files_that_appear_during_a_build_are_kept(
    prepared: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = output_dir.publish

    def publish_late(output: Path, build: Path) -> None:
        (output / "valid" / "late.txt").write_text("mine")
        publish(output, build)

    monkeypatch.setattr(output_dir, "publish", publish_late)
    with pytest.raises(Nano3Error, match=r"valid/late\.txt"):
        run(prepared.parent / "in.jsonl", prepared, byte_bpe, num_shards=4, force=True)
    assert (prepared / "valid" / "late.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "0123456789abcdef", "00000000deadbeef", "..", "../..", "\xff", "old"])
def test_a_damaged_publishing_marker_removes_nothing(text: str, prepared: Path) -> None:
    (prepared / ".prep" / "publish").write_text(text, encoding="latin-1")
    (prepared / ".prep" / "00000000deadbeef" / "units").mkdir(parents=True)  # a build that is not finished
    before = tree(prepared)
    with pytest.raises(Failure, match="names no finished build"):
        output_dir.finish_publishing(prepared)
    assert tree(prepared) == before
