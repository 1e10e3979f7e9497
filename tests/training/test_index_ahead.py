"""nano3 index: what it builds is what a start would build, under the same names."""

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_processes import Child, losses, tiny_config, train_here

from nano3.config import PretrainConfig
from nano3.training import index_ahead
from nano3.training.dataset import open_data
from nano3.training.index_ahead import IndexRequest, make_request
from nano3.training.run import index_cache

SECTION = {"tokenizer_hf_no_use_fast": True, "chat_template": "{{ messages }}"}


def built(data: Path, run_dir: Path, config: PretrainConfig) -> Path:
    """Build the order of a run and return its folder."""
    request = make_request(config, data, run_dir)
    child = Child(index_ahead.main, (request.to_text(),), run_dir / "log_index.txt")
    assert child.result() == 0
    return Path(request.cache)


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("*-train-*")}


def test_a_start_finds_the_order_and_builds_nothing(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    cache = built(data, tmp_path, tiny_config())
    ahead = contents(cache)
    nodes = {name: (cache / name).stat().st_ino for name in ahead}
    assert ahead == contents(index_cache.cache_folder(undisturbed, open_data(data).fingerprint))
    assert train_here(tiny_config(), data, tmp_path).status == "finished"
    assert losses(tmp_path) == losses(undisturbed)
    assert contents(cache) == ahead and {name: (cache / name).stat().st_ino for name in ahead} == nodes
    assert not list(cache.parent.glob(".*"))


def test_a_second_build_writes_nothing(data: Path, tmp_path: Path) -> None:
    cache = built(data, tmp_path, tiny_config())
    nodes = {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")}
    assert built(data, tmp_path, tiny_config()) == cache
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.npy")} == nodes
    assert "is there already" in (tmp_path / "log_index.txt").read_text()


def test_a_longer_run_gets_its_own(data: Path, tmp_path: Path) -> None:
    cache = built(data, tmp_path, tiny_config())
    first = contents(cache)
    built(data, tmp_path, tiny_config(**{"train.train_iters": 14}))
    assert first.items() < contents(cache).items()
    fingerprint = open_data(data).fingerprint
    assert [index_cache.has_index(tmp_path, fingerprint, n) for n in (48, 56, 1000)] == [True, True, False]


def identifiers(section: dict[str, Any]) -> dict[str, Any]:
    """What Megatron names the files after, for a tokenizer section with all fields of Megatron-Bridge."""
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    return OrderedDict(build_tokenizer(SimpleNamespace(**section)).unique_identifiers)


@pytest.mark.parametrize("own", [{}, SECTION], ids=["the recipe's tokenizer", "own settings"])
def test_the_names_are_those_of_megatron_bridge(data: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    """It builds its tokenizer with these arguments, which the names of the files depend on."""
    config = PretrainConfig(backend="megatron", megatron={"tokenizer": own} if own else {})
    config.train = tiny_config().train
    request = make_request(config, data, tmp_path)
    cache = built(data, tmp_path, config)
    descriptions = [json.loads(path.read_text()) for path in cache.glob("*GPTDataset-train-description.txt")]
    (named,) = {json.dumps(one["tokenizer"]) for one in descriptions}
    assert request.tokenizer
    assert json.loads(named) == Child(identifiers, (request.tokenizer,), tmp_path / "log.txt").result()
    assert json.loads(named) == {
        "class": "megatron.core.tokenizers.text.models.default_tokenizer.DefaultTokenizerText",
        "tokenizer_path": str(open_data(data).tokenizer),
        "chat_template": own.get("chat_template", "None"),
        "vocab_file": "None",
        "merges_file": "None",
        "additional_special_tokens": "[]",
        "use_fast": str(not own),
        "trust_remote_code": "False",
        "include_special_tokens": "True",
    }
    assert IndexRequest.from_text(request.to_text()) == request
