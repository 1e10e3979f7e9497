"""Remote data and tokenizers: the hub (a loopback server), S3 (moto), and any fsspec URL."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from data_helpers import documents, reference, run, source, texts, tree, write
from hub_server import COMMIT, Hub, HubEnv
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.sources.hub import matches_pattern, select_files
from nano3.utils.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    names = {
        "data/train-00000.parquet": texts(60),
        "data/train-00001.jsonl.gz": texts(50, seed=1),
        "data/validation-00000.parquet": texts(9, seed=2),
        "extra/train/x.jsonl": texts(8, seed=3),
    }
    found = {name: write(tmp_path / "hub" / name, t).read_bytes() for name, t in names.items()}
    return {**found, "README.md": b"# a dataset", ".gitattributes": b""}


def serve(repos: dict[str, dict[str, bytes]], **keys: Any) -> Iterator[Hub]:
    hub = Hub(repos, **keys)
    yield hub
    hub.close()


@pytest.fixture
def hub(files: dict[str, bytes], byte_bpe: Path) -> Iterator[Hub]:
    model = {name.name: name.read_bytes() for name in byte_bpe.iterdir()}
    yield from serve({"datasets/org/set": files, "org/model": model})


def test_a_dataset_and_a_tokenizer_of_the_hub(tmp_path: Path, hub: Hub, hub_env: HubEnv, byte_bpe: Path) -> None:
    hub_env(hub)
    sources = [source("hf://org/set", "a", subset="data"), source("hf://org/set", "b", split="validation")]
    manifest = run(sources, tmp_path / "out", "org/model", workers=2)
    assert [d.revision for d in manifest.datasets] == [COMMIT, COMMIT]
    assert manifest.tokenizer.revision == COMMIT
    wanted = reference(byte_bpe, [*texts(60), *texts(50, seed=1)])
    assert sorted(documents(tmp_path / "out", dataset="a")) == sorted(wanted)
    assert sorted(documents(tmp_path / "out", dataset="b")) == sorted(reference(byte_bpe, texts(9, seed=2)))
    assert run(sources, tmp_path / "out", "org/model") == manifest


def test_cached_files_are_read_from_the_cache(tmp_path: Path, hub: Hub, hub_env: HubEnv, byte_bpe: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub_env(hub)
    cache = tmp_path / "cache"
    for name in ("data/validation-00000.parquet",):
        hf_hub_download("org/set", name, repo_type="dataset", endpoint=hub.url, cache_dir=cache)
    from nano3.data.sources.hub import open_remote

    hub.requests.clear()
    with open_remote(f"hf://datasets/org/set@{COMMIT}/data/validation-00000.parquet", cache_dir=cache) as f:
        assert f.read(4) == b"PAR1"
    assert hub.requests == []


def test_a_downloaded_dataset_is_not_fetched_again(tmp_path: Path, hub: Hub, hub_env: HubEnv, byte_bpe: Path) -> None:
    """If not downloaded, it is streamed and not stored; otherwise only its list of files is requested."""
    from huggingface_hub import snapshot_download

    hub_env(hub)
    keys = {"sample": 40, "workers": 2}
    run([source("hf://org/set", subset="data")], tmp_path / "streamed", byte_bpe, **keys)
    assert any("/resolve/" in request for request in hub.requests)
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    snapshot_download("org/set", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path / "cache")
    hub.requests.clear()
    run([source("hf://org/set", subset="data")], tmp_path / "cached", byte_bpe, **keys)
    assert not [request for request in hub.requests if "/resolve/" in request]
    assert tree(tmp_path / "cached") == tree(tmp_path / "streamed")


def test_a_private_dataset(tmp_path: Path, files: dict[str, bytes], hub_env: HubEnv, byte_bpe: Path) -> None:
    for server in serve({"datasets/org/set": files}, token="secret"):
        hub_env(server)
        with pytest.raises(UserError, match="private: set HF_TOKEN"):
            run([source("hf://org/set")], tmp_path / "out", byte_bpe)
        hub_env(server, "secret")
        assert run([source("hf://org/set", split="validation")], tmp_path / "out", byte_bpe).datasets[0].documents == 9


WRONG = {
    "no_dataset": ({"path": "hf://org/none"}, "no such dataset"),
    "no_revision": ({"path": "hf://org/set", "revision": "v9"}, "no revision 'v9'"),
    "no_split": ({"path": "hf://org/set", "split": "dev2"}, "no such split. Splits: train, validation"),
    "no_subset": ({"path": "hf://org/set", "subset": "en"}, "Folders: data, extra"),
    "a_file": ({"path": "hf://org/set/data/x.parquet"}, "write hf://org/name"),
}


@pytest.mark.parametrize(("keys", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_names_are_reported(
    tmp_path: Path, hub: Hub, hub_env: HubEnv, byte_bpe: Path, keys: dict, message: str
) -> None:
    hub_env(hub)
    with pytest.raises(UserError, match=message):
        run([source(**keys)], tmp_path / "out", byte_bpe)


def test_an_unreachable_hub_is_reported(tmp_path: Path, hub_env: HubEnv, byte_bpe: Path) -> None:
    gone = Hub({})
    gone.close()
    hub_env(gone)
    with pytest.raises(UserError, match="cannot be reached"):
        run([source("hf://org/set")], tmp_path / "out", byte_bpe)
    path = write(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(UserError, match=r"tokenizer_model=org/model: .*cannot be reached"):
        run(path, tmp_path / "out", "org/model")


PATHS = ["data/train-0.parquet", "data/test-0.parquet", "en/train.jsonl", "en/dev.jsonl", "fr/train.jsonl", "README.md"]
CARD = {
    "configs": [
        {
            "config_name": "en",
            "data_files": [{"split": "train", "path": "en/train*"}, {"split": "dev", "path": ["en/dev.jsonl"]}],
        },
        {"config_name": "fr", "data_files": "fr/*.jsonl"},
        {"config_name": "all", "data_files": "**/train*"},
        {"config_name": "folder", "data_dir": "data"},
    ]
}
CHOICES = {
    "by_name": ({}, {}, ["data/train-0.parquet", "en/train.jsonl", "fr/train.jsonl"]),
    "by_name_test": ({}, {"split": "test"}, ["data/test-0.parquet"]),
    "by_name_validation": ({}, {"split": "validation"}, ["en/dev.jsonl"]),
    "by_folder": ({}, {"subset": "fr"}, ["fr/train.jsonl"]),
    "card_split": (CARD, {"subset": "en", "split": "dev"}, ["en/dev.jsonl"]),
    "card_pattern": (CARD, {"subset": "fr"}, ["fr/train.jsonl"]),
    "card_deep_pattern": (CARD, {"subset": "all"}, ["data/train-0.parquet", "en/train.jsonl", "fr/train.jsonl"]),
    "card_folder": (CARD, {"subset": "folder", "split": "test"}, ["data/test-0.parquet"]),
}


@pytest.mark.parametrize(("card", "keys", "wanted"), CHOICES.values(), ids=CHOICES.keys())
def test_files_of_a_split(card: dict, keys: dict, wanted: list[str]) -> None:
    assert select_files(dict.fromkeys(PATHS, (1, "x")), card, source("hf://a/b", **keys), "label") == wanted


def test_files_without_any_split_are_train() -> None:
    assert select_files({"a.jsonl": (1, "x"), "b/c.parquet": (1, "y")}, {}, source("hf://a/b"), "label") == [
        "a.jsonl",
        "b/c.parquet",
    ]
    with pytest.raises(UserError, match="subsets: all, en, folder, fr"):
        select_files(dict.fromkeys(PATHS, (1, "x")), CARD, source("hf://a/b"), "label")


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("a/b.x", "a/*.x", True),
        ("a/c/b.x", "a/*.x", False),
        ("a/c/b.x", "a/**/*.x", True),
        ("a/b.x", "a/**/*.x", True),
        ("a/b.x", "a", True),
        ("ab.x", "a", False),
    ],
)
def test_patterns(path: str, pattern: str, fits: bool) -> None:
    assert matches_pattern(path, pattern) == fits


PARTS = st.lists(st.sampled_from(["a", "b", "ab", "a.x", "b.x"]), min_size=1, max_size=4).map("/".join)
WANTED = st.lists(st.sampled_from(["a", "*", "**", "*.x", "a*", "?", "[ab]", "[!a]"]), min_size=1, max_size=4)


@given(PARTS, WANTED)
def test_patterns_agree_with_a_regular_expression(path: str, wanted: list[str]) -> None:
    """`**` matches any number of folders; at the end, it matches everything."""
    sign = {"*": "[^/]*", "?": "[^/]", "[ab]": "[ab]", "[!a]": "[^a/]", "*.x": r"[^/]*\.x", "a*": "a[^/]*", "a": "a"}
    text = "".join("(?:[^/]+/)*" if part == "**" else f"{sign[part]}/" for part in wanted)
    pattern = "/".join(wanted)
    plain = not any(c in pattern for c in "*?[")
    expected = re.fullmatch(text + ("(?:[^/]+/)*" if plain else ""), f"{path}/")
    assert matches_pattern(path, pattern) == bool(expected)
    assert matches_pattern(path, f"./{pattern}") == bool(expected)


def test_any_fsspec_url_gives_the_same_data_as_local_files(tmp_path: Path, byte_bpe: Path) -> None:
    for i, kind in enumerate(("jsonl", "parquet", "jsonl.zst")):
        write(tmp_path / "in" / "x" / f"{i}.{kind}", texts(200, seed=i))
    run(tmp_path / "in", tmp_path / "local", byte_bpe)
    run([source(f"file://{tmp_path}/in")], tmp_path / "url", byte_bpe)
    assert tree(tmp_path / "url") == tree(tmp_path / "local")
    for path, count in (("in/x/*.parquet", 1), ("in/x/0.jsonl", 1), ("in/**/*", 3)):
        out = tmp_path / f"o{len(path)}{count}"
        assert run([source(f"file://{tmp_path}/{path}")], out, byte_bpe).datasets[0].files == count, path


def test_s3(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for key, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(key, value)
        wait_for(f"{url}/moto-api/")
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        for i, kind in enumerate(("jsonl", "parquet", "jsonl.gz")):
            fs.put(str(write(tmp_path / "in" / f"{i}.{kind}", texts(200, seed=i))), f"bucket/data/{i}.{kind}")
        manifest = run([source("s3://bucket/data")], tmp_path / "s3", byte_bpe, workers=2)
        assert manifest.datasets[0].files == 3
        run(tmp_path / "in", tmp_path / "local", byte_bpe)
        assert sorted(documents(tmp_path / "s3")) == sorted(documents(tmp_path / "local"))
        assert run([source("s3://bucket/data/*.parquet")], tmp_path / "glob", byte_bpe).datasets[0].documents == 200
        with pytest.raises(UserError, match="s3://bucket/none"):
            run([source("s3://bucket/none")], tmp_path / "none", byte_bpe)
    finally:
        server.kill()
        server.wait()
        fsspec.filesystem("s3").clear_instance_cache()


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    for _ in range(200):
        try:
            urllib.request.urlopen(url)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer (pid {os.getpid()})")
