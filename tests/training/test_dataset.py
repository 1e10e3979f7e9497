"""open_data: every way in which a data folder can be wrong, and that it can be moved."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_processes import losses, tiny_config, train_here

from nano3.training.dataset import open_data
from nano3.utils.errors import UserError


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """The prepared data in another place, its blend.json still naming the old one."""
    return Path(shutil.copytree(data, tmp_path / "moved"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_good_folder(data: Path) -> None:
    opened = open_data(data)
    assert [s.dataset for s in opened.split("valid")] == ["docs", "code", "math"]
    train, valid, _ = opened.blend_per_split
    assert train == ([str(data / f"train/data_0000{i}") for i in range(3)], [0.5, 0.3, 0.2])
    assert valid is not None
    assert set(opened.datasets("valid")) == {"docs", "code", "math"}
    assert (opened.vocab_size, opened.tokenizer) == (4096, data / "tokenizer")
    opened.require(32, ["train", "valid", "test"])


def test_moved_folder_is_rebased_and_trains_the_same(copy: Path, undisturbed: Path, tmp_path: Path) -> None:
    opened = open_data(copy)
    assert all(s.prefix.is_relative_to(copy) for s in opened.shards)
    train_here(tiny_config(), copy, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_fingerprint_follows_content_not_place(data: Path, copy: Path) -> None:
    assert open_data(copy).fingerprint == open_data(data).fingerprint
    edit(copy / "blend.json", lambda b: b["train"].__setitem__(0, "0.6"))
    assert open_data(copy).fingerprint != open_data(data).fingerprint


def _set(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, change)


def _cut(name: str, to: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:to])

    return cut


def _empty_first_shard(manifest: dict) -> None:
    """As an earlier version may have written it: without a checksum."""
    manifest["shards"][0].update(tokens=0)
    del manifest["checksum"], manifest["tokenizer"]["files"]


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, ["does not exist", "nano3.data_prep output_dir="]),
    "no blend": (lambda f: (f / "blend.json").unlink(), ["blend.json is missing", "continues where it stopped"]),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ["no manifest.json"]),
    "broken JSON": (_cut("manifest.json", 100), ["manifest.json: cannot be read"]),
    "not an object": (lambda f: (f / "blend.json").write_text("[]"), ["does not hold a JSON object"]),
    "other format": (_set("manifest.json", lambda m: m.update(format=3)), ["format 3", "reads format 2"]),
    "key missing": (_set("manifest.json", lambda m: m["tokenizer"].pop("eod_id")), ["damaged", "eod_id"]),
    "odd blend": (_set("blend.json", lambda b: b["train"].pop()), ["alternate weight and prefix"]),
    "zero weight": (_set("blend.json", lambda b: b["train"].__setitem__(0, "0")), ["must be positive"]),
    "no train": (_set("blend.json", lambda b: b.update(train=[])), ["has no 'train' list"]),
    "unknown shard": (
        _set("blend.json", lambda b: b["train"].__setitem__(1, "/elsewhere/train/data_00009")),
        ["/elsewhere/train/data_00009", "different runs"],
    ),
    "no bin": (lambda f: (f / "train/data_00001.bin").unlink(), ["data_00001.bin: missing", "of code"]),
    "no idx": (lambda f: (f / "valid/data_00000.idx").unlink(), ["data_00000.idx: missing"]),
    "short bin": (_cut("train/data_00000.bin", 10), ["data_00000.bin: 10 bytes", "manifest says"]),
    "short idx": (_cut("train/data_00000.idx", 60), ["data_00000.idx: 60 bytes"]),
    "no index": (_cut("train/data_00000.idx", 5), ["data_00000.idx: not a Megatron index"]),
    "empty shard": (_set("manifest.json", _empty_first_shard), ["is empty"]),
    "no tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), ["tokenizer.json is missing"]),
    "other tokenizer": (_cut("tokenizer/tokenizer.json", 1000), ["is not the tokenizer that made this data"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported(copy: Path, name: str) -> None:
    damage, message = FAULTS[name]
    damage(copy)
    with pytest.raises(UserError) as caught:
        open_data(copy)
    assert all(text in str(caught.value) for text in message), str(caught.value)


def test_all_faults_at_once(copy: Path) -> None:
    for name in ("no bin", "short idx", "no tokenizer"):
        FAULTS[name][0](copy)
    with pytest.raises(UserError) as caught:
        open_data(copy)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("seq_length", "splits", "message"),
    [
        (10**7, ["train", "valid"], ["The train split", "The valid split", "valid_fraction=", "train.eval_interval=0"]),
        (10**7, ["test"], ["test_fraction="]),
    ],
    ids=["train and valid", "test"],
)
def test_too_few_tokens(data: Path, seq_length: int, splits: list[str], message: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        open_data(data).require(seq_length, splits)
    assert all(text in str(caught.value) for text in [*message, f"needs {seq_length + 1:,}"])


def test_one_whole_sample_is_enough(data: Path) -> None:
    """seq_length tokens and the label of the last one."""
    opened = open_data(data)
    opened.require(opened.tokens("valid") - 1, ["valid"])
    with pytest.raises(UserError):
        opened.require(opened.tokens("valid"), ["valid"])


def test_missing_valid_split_matters_only_when_validating(copy: Path, tmp_path: Path) -> None:
    edit(copy / "blend.json", lambda b: b.update(valid=[]))
    with pytest.raises(UserError, match=r"The valid split .* has no tokens"):
        train_here(tiny_config(), copy, tmp_path / "a")
    assert train_here(tiny_config(**{"train.eval_interval": 0}), copy, tmp_path / "b").status == "finished"


def test_tiny_shard_is_repeated_not_looped(copy: Path, tmp_path: Path) -> None:
    """A dataset with less than one sample in a split is read over and over; Megatron ends on it."""
    assert min(s.tokens for s in open_data(copy).split("valid")) < 1200
    changes = {"train.seq_length": 1200, "train.train_iters": 5, "scheduler.lr_wsd_decay_iters": 2}
    config = tiny_config(**changes, **{"train.global_batch_size": 2, "train.eval_interval": 5})
    assert train_here(config, copy, tmp_path / "run").status == "finished"


def test_light_import() -> None:
    modules = [
        "dataset",
        "backend",
        "preflight",
        "rank_main",
        "run.outcome",
        "run.stop",
        "run.metrics",
        "run.checkpoints",
        "run.resume",
        "checks.lr_schedule",
        "hf.backend",
        "hf.batch",
        "hf.model",
        "hf.checkpoints",
        "hf.generate",
        "megatron.backend",
        "reports.summary",
        "reports.plot",
    ]
    names = ", ".join(f"nano3.training.{m}" for m in modules)
    code = (
        f"import sys, {names}; print([m for m in ('torch', 'megatron', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
