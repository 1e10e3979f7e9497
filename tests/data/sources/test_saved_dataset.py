"""Folders that the datasets library writes: save_to_disk, to_parquet, to_json, and cache files beside them."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import source, texts, write

from nano3.data.sources.discovery import discover_files
from nano3.data.sources.readers import FileRange, read_documents
from nano3.utils.errors import UserError

TEXTS = texts(40)
CACHED = "cache-0123456789abcdef.arrow"


def read_all(path: Path | str, **keys: Any) -> list[str]:
    """Return the texts of all files that a path selects."""
    found = discover_files(source(path, **keys), "/nonexistent/output")
    return [
        text
        for name, size, kind in zip(found.keys, found.sizes, found.formats, strict=True)
        for batch in read_documents(FileRange(found.root, name, kind, size, 1 << 40, 0, 1 << 40, "text"))
        for text in batch.texts
    ]


def save(folder: Path, rows: list[str], shards: int = 2) -> Path:
    """Write the files of `Dataset.save_to_disk`, and a cached result."""
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write(folder / name, rows[i * len(rows) // shards : (i + 1) * len(rows) // shards])
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0123456789abcdef", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    write(folder / CACHED, ["a cached result"])
    return folder


def save_dict(folder: Path, **splits: list[str]) -> Path:
    """Write the files of `DatasetDict.save_to_disk`."""
    for name, rows in splits.items():
        save(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def test_a_saved_dataset(tmp_path: Path) -> None:
    assert read_all(save(tmp_path / "saved", TEXTS)) == TEXTS
    assert read_all(f"file://{tmp_path}/saved") == TEXTS


def test_only_the_listed_shards_are_data(tmp_path: Path) -> None:
    write(save(tmp_path / "saved", TEXTS) / "data-00000-of-00001.arrow", ["of an earlier save"])
    assert read_all(tmp_path / "saved") == TEXTS


def test_the_split_of_a_saved_dict(tmp_path: Path) -> None:
    path = save_dict(tmp_path / "saved", train=TEXTS[:30], dev=TEXTS[30:])
    assert read_all(path) == TEXTS[:30]
    assert read_all(path, split="dev") == TEXTS[30:]
    assert read_all(path / "dev") == TEXTS[30:]
    assert read_all(tmp_path) == TEXTS[:30]  # a folder of saved datasets
    with pytest.raises(UserError, match="split=test is not one of the splits of the saved DatasetDict: train, dev"):
        read_all(path, split="test")
    with pytest.raises(UserError, match=r"split=train is not one of .*: a, b"):
        read_all(save_dict(tmp_path / "other", a=TEXTS, b=TEXTS))


def test_an_incomplete_copy_is_reported(tmp_path: Path) -> None:
    path = save_dict(tmp_path / "saved", train=TEXTS)
    (path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"train/state\.json lists train/data-00001-of-00002\.arrow, which is missing"):
        read_all(path)
    (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="lists the split 'test', but there are no files in test/"):
        read_all(path, split="test")


def test_saved_indices_are_reported(tmp_path: Path) -> None:
    path = save(tmp_path / "saved", TEXTS)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match="an old version of datasets saved a selection of rows"):
        read_all(path)


def test_cache_files_are_not_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a" / "json-train.arrow", TEXTS)
    write(tmp_path / "a" / CACHED, ["cached"])
    write(tmp_path / "a" / "cache-0123456789abcdef_00001_of_00002.arrow", ["cached"])
    write(tmp_path / "a" / "cache-notes.arrow", ["my own"])
    (tmp_path / "a" / "dataset_info.json").write_text("{}")
    assert read_all(tmp_path / "a") == ["my own", *TEXTS]
    assert "2 cache file(s) of the datasets library left out, such as cache-0123" in capfd.readouterr().err
    assert read_all(tmp_path / "a" / "*.arrow") == ["my own", *TEXTS]
    assert read_all(tmp_path / "a" / CACHED) == ["cached"]


def test_another_programs_state_is_data(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state.json").write_text('{"text": "of a state"}\n')
    assert read_all(tmp_path / "a") == ["of a state"]


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(40))})
    dataset.save_to_disk(str(tmp_path / "one"), num_shards=3)
    dataset.select(range(5, 25)).save_to_disk(str(tmp_path / "rows"))
    parts = datasets.DatasetDict({"train": dataset, "test": dataset.select(range(4))})
    parts.save_to_disk(str(tmp_path / "dict"))
    loaded = datasets.load_from_disk(str(tmp_path / "one"))
    loaded.map(lambda row: {"text": row["text"] + "!"}).filter(lambda row: row["n"] < 3)  # writes cache files
    assert list((tmp_path / "one").glob("cache-*.arrow"))
    dataset.to_parquet(str(tmp_path / "x.parquet"))
    for name, keys in {"x.jsonl": {}, "x.json": {"lines": False}, "x.jsonl.gz": {"compression": "gzip"}}.items():
        dataset.to_json(str(tmp_path / name), **keys)
        assert read_all(tmp_path / name) == TEXTS, name
    assert read_all(tmp_path / "x.parquet") == TEXTS
    assert read_all(tmp_path / "one") == TEXTS
    assert read_all(tmp_path / "rows") == TEXTS[5:25]
    assert read_all(tmp_path / "dict") == TEXTS
    assert read_all(tmp_path / "dict", split="test") == TEXTS[:4]
