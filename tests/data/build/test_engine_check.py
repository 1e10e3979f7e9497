"""Test the comparison of the engines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import options, plan_build, source, texts, write

from nano3.data.build import engine_check
from nano3.data.build.unit_encoder import Worker
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.encoders import Encoded, Encoder, fast_encoder, reference_encoder
from nano3.data.tokenization.engines import Engines, load_engines


def worker_of(folder: Path, tokenizer: Path, paths: list[Path], **keys: Any) -> tuple[Worker, Engines]:
    """Return a worker for one dataset of each path."""
    sources = [source(path, name=f"d{number}") for number, path in enumerate(paths)]
    plan_path = plan_build(sources, options(folder / "out", tokenizer, **keys), "test")
    plan = load_plan(plan_path)
    engines = load_engines(plan.tokenizer.file, False, fast=True)
    encoders = reference_encoder(engines.reference), fast_encoder(engines.fast, False)
    return Worker(plan, plan_path.parent, *encoders), engines


def wrong_at(word: str, right: Encoder) -> Encoder:
    """Return an encoder that is wrong about a word."""

    def encode(batch: list[str]) -> Encoded:
        ids, lengths = right([text.replace(word, word.upper()) for text in batch])
        return np.array(ids), lengths

    return encode


def test_the_first_documents_of_every_dataset_are_compared(tmp_path: Path, byte_bpe: Path) -> None:
    paths = [
        write(tmp_path / f"{n}.jsonl", [*texts(50, seed=n), *(["the needle"] if n == 2 else [])]) for n in range(3)
    ]
    worker, engines = worker_of(tmp_path, byte_bpe, paths)
    assert engine_check.compare_engines(worker, engines) == ""
    worker.fast = wrong_at("needle", worker.reference)
    assert engine_check.compare_engines(worker, engines) == "fastokens gives other ids than tokenizers for 'the needle'"
    worker.fast = None
    assert engine_check.compare_engines(worker, engines) == "", "without the fast engine there is nothing to compare"


def test_the_sample_is_limited(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long and short documents, large and small datasets."""
    monkeypatch.setattr(engine_check, "SAMPLE_CHARS", 3000)
    monkeypatch.setattr(engine_check, "MAX_TEXT_CHARS", 400)
    long = write(tmp_path / "long.jsonl", ["x" * 5000, "y" * 300, "", "z" * 5000])
    short = write(tmp_path / "short.jsonl", ["short text"] * 500)
    small = write(tmp_path / "small.jsonl", ["a", "b", "c"])
    worker, _ = worker_of(tmp_path, byte_bpe, [long, short, small])
    found = engine_check.sample_texts(worker)
    assert found[:4] == ["x" * 400, "y" * 300, "", "z" * 300]
    assert found[4:104] == ["short text"] * 100
    assert found[104:] == ["a", "b", "c"]


def test_bad_input_is_not_sampled(tmp_path: Path, byte_bpe: Path) -> None:
    """Building the units reports it with its row."""
    paths = [write(tmp_path / name, texts(30)) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")]
    worker, engines = worker_of(tmp_path, byte_bpe, paths, valid_fraction=0.0, test_fraction=0.0)
    paths[0].unlink()
    data = bytearray(paths[1].read_bytes())
    data[12] ^= 0xFF
    paths[1].write_bytes(data)
    assert engine_check.sample_texts(worker) == texts(30)
    assert engine_check.compare_engines(worker, engines) == ""


@pytest.mark.parametrize("variable", ["NANO3_CACHE", "XDG_CACHE_HOME"])
def test_a_verified_tokenizer_is_compared_once(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The mark is for this tokenizer.json, these engines, and this treatment of special tokens."""
    monkeypatch.delenv("NANO3_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    worker, engines = worker_of(tmp_path, byte_bpe, [write(tmp_path / "a.jsonl", texts(10))])
    calls: list[str] = []
    monkeypatch.setattr(engine_check, "check_tokenizer", lambda file, *_: calls.append(file) or "differs")
    assert engine_check.compare_engines(worker, engines) == "differs"
    assert engine_check.compare_engines(worker, engines) == "differs", "a failed check leaves no mark"
    monkeypatch.setattr(engine_check, "check_tokenizer", lambda file, *_: calls.append(file) or "")
    assert [engine_check.compare_engines(worker, engines) for _ in range(2)] == ["", ""]
    assert len(calls) == 3
    worker.plan.options.split_special_tokens = True
    assert engine_check.compare_engines(worker, engines) == ""
    assert len(calls) == 4
    assert len(list((tmp_path / "cache").rglob("verified_tokenizers/*"))) == 2


def test_without_a_cache_folder_every_build_compares(
    tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANO3_CACHE", str(write(tmp_path / "file.jsonl", ["x"])))
    worker, engines = worker_of(tmp_path, byte_bpe, [write(tmp_path / "a.jsonl", texts(10))])
    assert engine_check.compare_engines(worker, engines) == ""
