"""nano3 inspect and nano3 verify."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from data_helpers import run, source, texts, write

from nano3.artifacts import store
from nano3.data.dataset.checksum import CHUNK, checksum
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import load_manifest
from nano3.data.dataset.verify import verify
from nano3.utils.errors import Failure, UserError


def nano3(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `python -m nano3`."""
    done = subprocess.run([sys.executable, "-m", "nano3", *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def data(tmp_path: Path, byte_bpe: Path) -> Path:
    sources = [source(write(tmp_path / f"{n}.jsonl", texts(100, seed=i)), n) for i, n in enumerate("ab")]
    run(sources, tmp_path / "out", byte_bpe, valid_fraction=0.1)
    return tmp_path / "out"


def test_inspect_decodes_documents(data: Path) -> None:
    code, out, err = nano3("inspect", data, "--doc", 0, "--count", 3, "--dataset", "b", "--chars", 0, "--ids")
    assert (code, err) == (0, "")
    wanted = [t for t in texts(100, seed=1) if t]
    assert sum(f"\n{t}</s>\n" in out for t in wanted) == 3
    assert "train/data_0000" in out
    code, out, _ = nano3("inspect", data)
    assert code == 0
    assert "200" in out
    assert "</s>" in out


def test_data_by_their_artifact(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    store.register("Data", data, "content", alias="mine")
    for tool in ("verify", "inspect"):
        for reference in ("Data:mine", "Data:v1", "Data"):
            code, out, err = nano3(tool, reference)
            assert (code, err) == (0, "") and str(data) in out
        code, _, err = nano3(tool, "Data:main")
        assert code == 2 and "Did you mean 'mine'" in err
        code, _, err = nano3(tool, "nowhere")
        assert code == 2 and "nowhere: no manifest.json" in err


WRONG = {
    "split": (["--doc", 0, "--split", "tran"], "Did you mean 'train'"),
    "dataset": (["--doc", 0, "--dataset", "c"], "Allowed: a, b"),
    "number": (["--doc", 100000], "documents 0 to"),
    "split alone": (["--split", "tran"], "Did you mean 'train'"),
    "dataset alone": (["--dataset", "c"], "Allowed: a, b"),
    "good split alone": (["--split", "valid", "--chars", 0], "--split, --chars: chooses among"),
    "both": (["--split", "tran", "--dataset", "c"], "--dataset c"),
    "count": (["--doc", 0, "--count", 0], "--count: 0 is too small: 1 at least"),
    "negative count": (["--doc", 0, "--count", -2], "-2 is too small"),
    "chars": (["--doc", 0, "--chars", -20], "--chars: -20 is too small: 0 at least"),
    "negative doc": (["--doc", -1], "--doc: -1 is too small"),
    "no number": (["--doc", "x"], "'x' is not a whole number"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_inspect_tells_what_is_wrong(data: Path, words: list, message: str) -> None:
    code, _, err = nano3("inspect", data, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_verify(data: Path) -> None:
    code, out, err = nano3("verify", data)
    assert (code, err) == (0, "")
    assert "checks passed" in out


def rewrite(data: Path, change) -> None:
    """Change a token of a shard."""
    path = first(data, "train/*.bin")
    tokens = np.fromfile(path, np.uint16)
    change(tokens)
    tokens.tofile(path)


def edit(path: Path, change) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def first(data: Path, pattern: str) -> Path:
    return next(iter(sorted(data.glob(pattern))))


DAMAGE = {
    "bit": (lambda d: rewrite(d, lambda t: t.__setitem__(5, t[5] ^ 1)), r"train/data_\d+\.bin: XXH128"),
    "cut_bin": (
        lambda d: first(d, "train/*.bin").write_bytes(first(d, "train/*.bin").read_bytes()[:-2]),
        r"\.bin: .* bytes, but",
    ),
    "cut_idx": (
        lambda d: first(d, "train/*.idx").write_bytes(first(d, "train/*.idx").read_bytes()[:-8]),
        r"\.idx: .* header says",
    ),
    "lost": (lambda d: first(d, "valid/*.bin").unlink(), r"valid/data_\d+\.bin: missing"),
    "tokenizer": (
        lambda d: (d / "tokenizer" / "tokenizer.json").write_text("{}"),
        r"tokenizer\.json: not the tokenizer",
    ),
    "blend": (lambda d: edit(d / "blend.json", lambda b: b["train"].pop(0)), r"blend\.json: train does not list"),
    "sums": (
        lambda d: edit(d / "manifest.json", lambda m: m["splits"]["train"].update(tokens=1)),
        r"manifest\.json: train has 1 tokens",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_verify_names_the_damaged_file(data: Path, damage, message: str) -> None:
    import re

    damage(data)
    problems = [p for _, found in verify(data) for p in found]
    assert problems
    assert re.search(message, "\n".join(problems)), problems


def test_verify_exits_with_one(data: Path) -> None:
    rewrite(data, lambda t: t.__setitem__(5, t[5] ^ 1))
    code, _, err = nano3("verify", data)
    assert code == 1
    assert "data_00000.bin" in err
    assert "Traceback" not in err


WRONG_TOKENS = {
    "range": (lambda t, ends: t.__setitem__(3, 65000), "outside the vocabulary of 1,500"),
    "end": (lambda t, ends: t.__setitem__(ends[0], 9), "not with the end-of-document token 2"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TOKENS.values(), ids=WRONG_TOKENS.keys())
def test_verify_looks_at_tokens_themselves(data: Path, change, message: str) -> None:
    """Also when the checksums agree, as they do for data that was made wrongly."""
    shard = load_manifest(data).shards[0]
    ends = np.cumsum(IndexedFile(data / shard.prefix).lengths) - 1
    rewrite(data, lambda t: change(t, ends))
    path = data / f"{shard.prefix}.bin"
    edit(data / "manifest.json", lambda m: m["shards"][0].update(bin_xxh128=checksum(path)))
    assert message in " ".join(p for _, found in verify(data) for p in found)


def test_checksums_are_those_of_xxhsum(data: Path) -> None:
    shard = load_manifest(data).shards[0]
    for suffix in ("bin", "idx"):
        file = data / f"{shard.prefix}.{suffix}"
        assert getattr(shard, f"{suffix}_xxh128") == xxhash.xxh3_128_hexdigest(file.read_bytes())
        if shutil.which("xxhsum"):
            done = subprocess.run(["xxhsum", "-H2", file], capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == getattr(shard, f"{suffix}_xxh128")


def test_a_checksum_of_any_size(tmp_path: Path) -> None:
    for size in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7):
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / "a").write_bytes(data)
        assert checksum(tmp_path / "a") == xxhash.xxh3_128_hexdigest(data)


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder that nano3"):
        load_manifest(tmp_path)
    (tmp_path / ".prep").mkdir()
    with pytest.raises(UserError, match="not finished: run it again"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(Failure, match="cannot be read"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "blend": "x"}')
    with pytest.raises(Failure, match=r"of format 1; this nano3 reads format 2\. .*force=true"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2, "blend": "x"}')
    with pytest.raises(Failure, match="plan_hash"):
        load_manifest(tmp_path)
