"""Remote data and tokenizers: the hub (a loopback server), S3 (moto), and any fsspec URL."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from data_helpers import documents, options, plan_build, reference, run, source, texts, tree, write
from hub_server import COMMIT, Hub, HubEnv

from nano3.data.build.run import finalize, run_task
from nano3.data.sources.discovery import discover_files
from nano3.utils.errors import Failure, UserError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    names = {
        "data/train-00000.parquet": texts(60),
        "data/train-00001.jsonl.gz": texts(50, seed=1),
        "data/validation-00000.parquet": texts(9, seed=2),
        "extra/train.jsonl": texts(8, seed=3),
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


def test_a_card_in_a_file_of_its_own(tmp_path: Path, files: dict[str, bytes], hub_env: HubEnv, byte_bpe: Path) -> None:
    """A .huggingface.yaml replaces values of the card; what is not YAML is refused."""
    card = {"configs": [{"config_name": "default", "data_files": "data/*"}]}
    own = b"configs:\n- config_name: default\n  data_files: extra/*.jsonl\n"
    for content, wanted in ((own, ["extra/train.jsonl"]), (b"", sorted(n for n in files if n.startswith("data/")))):
        for hub in serve({"datasets/org/set": {**files, ".huggingface.yaml": content}}, card=card):
            hub_env(hub)
            assert discover_files(source("hf://org/set"), str(tmp_path / "out")).keys == wanted
    for content, message in ((b"a: [", "is not YAML"), (b"- a", "holds a list, not keys and values")):
        for hub in serve({"datasets/org/set": {**files, ".huggingface.yaml": content}}, card=card):
            hub_env(hub)
            with pytest.raises(UserError, match=message):
                discover_files(source("hf://org/set"), str(tmp_path / "out"))


INSIDE = {
    "main": ("hf://org/set@main", {"subset": "data"}, 110),
    "commit": (f"hf://datasets/org/set@{COMMIT}", {"split": "validation"}, 9),
    "file": ("hf://org/set/data/validation-00000.parquet", {}, 9),
    "folder": ("hf://org/set@main/data", {"split": "validation"}, 9),
    "glob": (f"hf://org/set@{COMMIT}/**/*.parquet", {}, 69),
}


@pytest.mark.parametrize(("path", "keys", "count"), INSIDE.values(), ids=INSIDE.keys())
def test_a_revision_and_a_path_in_the_repository(
    tmp_path: Path, hub: Hub, hub_env: HubEnv, byte_bpe: Path, path: str, keys: dict, count: int
) -> None:
    hub_env(hub)
    dataset = run([source(path, **keys)], tmp_path / "out", byte_bpe).datasets[0]
    assert (dataset.documents, dataset.revision) == (count, COMMIT)


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
    "no_split": ({"path": "hf://org/set", "split": "dev2"}, "not one of its splits: train, validation"),
    "no_subset": ({"path": "hf://org/set", "subset": "en"}, "Folders: data, extra"),
    "no_file": ({"path": "hf://org/set/data/x.parquet"}, "no file or folder 'data/x.parquet'"),
    "two_revisions": ({"path": "hf://org/set@main", "revision": "v9"}, "names revision 'main', but revision=v9"),
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
        plan = plan_build([source("s3://bucket/data")], options(tmp_path / "edit", byte_bpe), "test")
        run_task(plan, 0, 1)
        text = fs.cat("bucket/data/0.jsonl")
        fs.pipe("bucket/data/0.jsonl", text.swapcase())
        with pytest.raises(Failure, match=r"s3://bucket/data/0\.jsonl: was changed while the data was made"):
            finalize(plan)
        fs.put(str(tmp_path / "local"), "bucket/data/prepared", recursive=True)  # output of nano3 is not read
        assert discover_files(source("s3://bucket/data"), "/nowhere").keys == ["0.jsonl", "1.parquet", "2.jsonl.gz"]
        for path in ("data/**/*.json", "none"):
            with pytest.raises(UserError, match=r"s3://bucket/.*: no file or folder at this URL"):
                discover_files(source(f"s3://bucket/{path}"), "/nowhere")
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
