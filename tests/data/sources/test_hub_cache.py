"""hf_files=download: hub files are downloaded into the cache before they are read; later runs need no hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_helpers import documents, options, reference, run, source, texts, tree, write
from hub_server import COMMIT, Hub, HubEnv

from nano3.data.build.run import print_plan
from nano3.data.planning.planner import make_request
from nano3.data.sources import hub_cache
from nano3.data.sources.hub_cache import (
    HubSnapshot,
    carry_over_formats,
    download_files,
    load_snapshot,
    save_snapshot,
    snapshot_path,
)
from nano3.utils.console import size_text
from nano3.utils.errors import Failure, Nano3Error, UserError

ROOT = f"hf://datasets/org/set@{COMMIT}"
NEXT = "f" * 40
DOWNLOAD = {"hf_files": "download"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    made = {f"data/train-{i}.jsonl": texts(30, seed=i) for i in range(5)}
    made |= {"data/train-5.parquet": texts(30, seed=5), "data/validation-0.parquet": texts(9, seed=6)}
    found = {name: write(tmp_path / "hub" / name, rows).read_bytes() for name, rows in made.items()}
    return {**found, "README.md": b"# a dataset"}


@pytest.fixture
def hub(files: dict[str, bytes], hub_env: HubEnv) -> Iterator[Hub]:
    server = Hub({"datasets/org/set": files})
    hub_env(server)
    yield server
    server.close()


def in_cache(tmp_path: Path) -> list[str]:
    """Return the names of the dataset's files in the cache."""
    return sorted(p.name for p in (tmp_path / "cache").glob("datasets--org--set/snapshots/*/data/*"))


TRAIN = [*(f"train-{i}.jsonl" for i in range(5)), "train-5.parquet"]


def test_a_second_preparation_needs_no_hub(
    tmp_path: Path, hub: Hub, byte_bpe: Path, sentencepiece_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run([source("hf://org/set")], tmp_path / "one", byte_bpe, workers=2, **DOWNLOAD)
    assert in_cache(tmp_path) == TRAIN
    hub.close()
    capfd.readouterr()
    run([source("hf://org/set")], tmp_path / "two", sentencepiece_bpe, workers=2, **DOWNLOAD)
    err = capfd.readouterr().err
    assert re.search(rf"cannot be reached \(\w+\): using its saved list of files, at commit {COMMIT}\.", err)
    wanted = reference(sentencepiece_bpe, [t for i in range(6) for t in texts(30, seed=i)])
    assert sorted(documents(tmp_path / "two")) == sorted(wanted)
    run([source("hf://org/set")], tmp_path / "streams", byte_bpe)  # also reads cached files
    assert tree(tmp_path / "streams") == tree(tmp_path / "one")


def test_a_pinned_commit_needs_no_request(
    tmp_path: Path, hub: Hub, byte_bpe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pinned = [source("hf://org/set", revision=COMMIT)]
    run([source("hf://org/set")], tmp_path / "one", byte_bpe, **DOWNLOAD)
    hub.requests.clear()
    run(pinned, tmp_path / "two", byte_bpe, **DOWNLOAD)
    assert hub.requests == []
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_offline_from_the_command_line(tmp_path: Path, hub: Hub, byte_bpe: Path) -> None:
    run([source("hf://org/set", split="validation")], tmp_path / "one", byte_bpe, **DOWNLOAD)
    blend = {"datasets": [{"name": "d", "path": "hf://org/set", "split": "validation"}]}
    (tmp_path / "b.json").write_text(json.dumps(blend))
    words = [f"blend_path={tmp_path}/b.json", f"tokenizer_model={byte_bpe}", f"output_dir={tmp_path}/two"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "NANO3_HOME": str(tmp_path / "artifacts")}
    command = [sys.executable, "-m", "nano3.data_prep", *words, "num_shards=8", "hf_files=download"]
    hub.requests.clear()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HF_HUB_OFFLINE is set: using its saved list of files" in done.stderr
    assert hub.requests == []
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_only_what_a_sample_needs_is_downloaded(tmp_path: Path, hub: Hub, byte_bpe: Path) -> None:
    run([source("hf://org/set")], tmp_path / "one", byte_bpe, sample=2, **DOWNLOAD)
    assert in_cache(tmp_path) == ["train-0.jsonl", "train-3.jsonl"]
    hub.close()
    run([source("hf://org/set")], tmp_path / "two", byte_bpe, sample=2, **DOWNLOAD)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_streaming_and_dry_runs_store_no_file(tmp_path: Path, hub: Hub, byte_bpe: Path) -> None:
    run([source("hf://org/set")], tmp_path / "one", byte_bpe)
    assert not list((tmp_path / "cache").rglob("*"))
    print_plan(make_request([source("hf://org/set")], options(tmp_path / "two", byte_bpe, **DOWNLOAD), "test"))
    assert in_cache(tmp_path) == []
    assert not (tmp_path / "two").exists()
    run([source("hf://org/set")], tmp_path / "two", byte_bpe, **DOWNLOAD)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_private_dataset_is_downloaded_with_the_token(
    tmp_path: Path, files: dict, hub_env: HubEnv, byte_bpe: Path
) -> None:
    server = Hub({"datasets/org/set": files}, token="secret")
    hub_env(server)
    with pytest.raises(UserError, match="private: set HF_TOKEN"):
        run([source("hf://org/set")], tmp_path / "out", byte_bpe, **DOWNLOAD)
    hub_env(server, "secret")
    run([source("hf://org/set", split="validation")], tmp_path / "out", byte_bpe, **DOWNLOAD)
    assert in_cache(tmp_path) == ["validation-0.parquet"]
    server.close()


def test_a_new_commit_is_downloaded_next_to_the_old_one(tmp_path: Path, hub: Hub, files: dict, byte_bpe: Path) -> None:
    run([source("hf://org/set", split="validation")], tmp_path / "one", byte_bpe, **DOWNLOAD)
    hub.commit = NEXT
    files["data/validation-0.parquet"] = write(tmp_path / "new.parquet", texts(12, seed=9)).read_bytes()
    manifest = run([source("hf://org/set", split="validation")], tmp_path / "two", byte_bpe, **DOWNLOAD)
    assert manifest.datasets[0].revision == NEXT
    assert manifest.datasets[0].documents == 12
    assert in_cache(tmp_path) == ["validation-0.parquet"] * 2
    pinned = [source("hf://org/set", split="validation", revision=COMMIT)]
    run(pinned, tmp_path / "old", byte_bpe, **DOWNLOAD)  # only the cache still has it
    assert tree(tmp_path / "old") == tree(tmp_path / "one")


# Broken downloads


def test_downloads_leave_no_thread(hub: Hub, files: dict) -> None:
    """tqdm starts a monitor for each class of progress bars, and workers are forked later."""
    before = set(threading.enumerate())
    download_files([(ROOT, f"data/{name}", len(files[f"data/{name}"])) for name in TRAIN], hub.url)
    assert not [t for t in set(threading.enumerate()) - before if "tqdm" in t.name]


def test_a_broken_connection_is_resumed(tmp_path: Path, hub: Hub, files: dict) -> None:
    data = files["data/big.txt"] = os.urandom(1 << 20) * 12
    hub.breaks["big.txt"], hub.whole = 1, 11 << 20
    download_files([(ROOT, "data/big.txt", len(data))], hub.url)
    assert hub.ranges == [f"data/big.txt bytes={10 << 20}-"]  # the client reads 10 MB at a time
    assert (tmp_path / "cache" / "datasets--org--set" / "snapshots" / COMMIT / "data" / "big.txt").read_bytes() == data


def test_a_failed_download_names_the_file_and_keeps_the_others(tmp_path: Path, hub: Hub, files: dict) -> None:
    wanted = [(ROOT, f"data/{name}", len(files[f"data/{name}"])) for name in TRAIN]
    lost = files.pop("data/train-3.jsonl")
    with pytest.raises(Failure, match=r"set@0123.*/data/train-3\.jsonl: the download failed: .*Run the same command"):
        download_files(wanted, hub.url)
    files["data/train-3.jsonl"] = lost
    hub.requests.clear()
    kept = in_cache(tmp_path)
    download_files(wanted, hub.url)
    assert in_cache(tmp_path) == TRAIN
    assert not [request for request in hub.requests if any(name in request for name in kept)]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_file_with_another_size_is_rejected(tmp_path: Path, hub: Hub, files: dict) -> None:
    size = len(files["data/train-0.jsonl"])
    with pytest.raises(
        Failure, match=rf"train-0\.jsonl: {size:,} bytes in the cache, {size + 1:,} on the hub\. Remove /"
    ):
        download_files([(ROOT, "data/train-0.jsonl", size + 1)], hub.url)


def test_too_little_space_is_reported_before_downloading(tmp_path: Path, hub: Hub) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"to download into .*/cache, where .* [MG]B are free\. .*hf_files=stream"):
        download_files([(ROOT, "data/train-0.jsonl", free), (ROOT, "data/train-1.jsonl", 1)], hub.url)
    assert hub.requests == []


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, hub: Hub, files: dict) -> None:
    (tmp_path / "cache").write_text("in the way")
    save_snapshot("org/set", None, HubSnapshot(COMMIT, {}, {}))
    assert load_snapshot("org/set", None) is None
    with pytest.raises(Nano3Error, match=r"/cache"):
        download_files([(ROOT, "data/train-0.jsonl", len(files["data/train-0.jsonl"]))], hub.url)


def test_long_downloads_report_progress(
    tmp_path: Path, hub: Hub, files: dict, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_cache, "REPORT_INTERVAL_S", 0.0)
    wanted = [(ROOT, f"data/{name}", len(files[f"data/{name}"])) for name in TRAIN]
    size = sum(file[2] for file in wanted)
    download_files(wanted, hub.url)
    captured = capfd.readouterr()
    assert f"downloading 6 files, {size_text(size)}, into {tmp_path}/cache" in captured.out
    assert captured.err.splitlines()[-1].startswith(f"download: 6/6 files, {size_text(size)} of {size_text(size)}, ")


# The list of files


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"commit": 1}', b"\xff"])
def test_a_damaged_list_is_ignored(tmp_path: Path, hub: Hub, damage: bytes) -> None:
    snapshot = HubSnapshot(COMMIT, {"a": (1, "x")}, {"configs": []}, {"a": "txt", "b": None})
    save_snapshot("org/set", "v1/x", snapshot)
    assert load_snapshot("org/set", "v1/x") == load_snapshot("org/set", COMMIT) == snapshot
    assert load_snapshot("org/set", None) is None
    snapshot_path("org/set", "v1/x").write_bytes(damage)
    assert load_snapshot("org/set", "v1/x") is None


def test_the_format_of_a_changed_file_is_not_carried_over() -> None:
    before = HubSnapshot(COMMIT, {"a": (1, "x"), "b": (1, "y"), "c": (1, "z")}, {}, {"a": "txt", "b": "txt", "c": None})
    after = carry_over_formats(
        HubSnapshot(NEXT, {"a": (1, "x"), "b": (1, "new"), "c": (2, "z"), "d": (1, "d")}, {}), before
    )
    assert after.formats == {"a": "txt"}
    assert carry_over_formats(HubSnapshot(NEXT, {}, {}), None).formats == {}


def test_a_wrong_value_is_reported(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(UserError, match="hf_files=downlaod: Did you mean 'download'"):
        run(path, tmp_path / "out", byte_bpe, hf_files="downlaod")
