"""Megatron's samples as the loop sees them: real text, shifted labels, one order for a seed, and what batch sizes
change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_processes import Child, losses, tiny_config, train_here

SEQ, SEED = 32, 1234


def read(data: Path, cache: Path, samples: int, seed: int = SEED, first: int = 24) -> list[list[int]]:
    """Input tokens of the first training samples."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder

    dataset = DatasetBuilder(open_data(data), SEQ, seed, cache).train(samples)
    assert len(dataset) >= samples
    return [dataset[i]["tokens"].tolist() for i in range(first)]


def valid_sets(data: Path, cache: Path, batches: int) -> list[tuple[str, float, int, int]]:
    """(dataset, share, batches, samples) of the validation sets."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder

    sets = DatasetBuilder(open_data(data), SEQ, SEED, cache).valid(batches, 4)
    return [(v.dataset, v.share, v.batches, len(v.samples)) for v in sets]


def batch_and_split(data: Path, cache: Path) -> tuple[dict[str, list], list[list[int]], list[list[int]]]:
    """One collated batch of the math validation set, its rows as they lie in the .bin, and that whole split's
    documents."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder, collate

    opened = open_data(data)
    math = next(v for v in DatasetBuilder(opened, SEQ, SEED, cache).valid(3, 4) if v.dataset == "math")
    batch = {name: tensor.tolist() for name, tensor in collate(math.samples, range(2, 5)).items()}
    shard = opened.datasets("valid")["math"][0]
    indexed = IndexedDataset(str(shard.prefix))  # its rows are views that do not keep it alive
    documents = [indexed[i].tolist() for i in range(len(indexed))]
    return batch, [math.samples[i]["tokens"].tolist() for i in range(2, 5)], documents


@pytest.fixture
def child(tmp_path: Path) -> Iterator:
    yield lambda job, *args: Child(job, args, tmp_path / "log.txt").result()


def test_order_is_the_seeds_whatever_the_cache(data: Path, tmp_path: Path, child: Any) -> None:
    first = child(read, data, tmp_path / "a", 48)
    assert child(read, data, tmp_path / "a", 48) == first
    assert child(read, data, tmp_path / "b", 48) == first
    assert child(read, data, tmp_path / "a", 48, 99) != first


def tokenizer_and_facts(data: Path) -> list[dict[str, Any]]:
    """What Megatron's own tokenizer and nano3's stand-in say."""
    from megatron.core.tokenizers import MegatronTokenizer

    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import TokenizerFacts

    opened = open_data(data)
    own = MegatronTokenizer.from_pretrained(str(opened.tokenizer), metadata_path={"library": "huggingface"})
    facts = TokenizerFacts(str(opened.tokenizer), opened.vocab_size, opened.eod_id)
    return [
        {"eod": one.eod, "vocab_size": one.vocab_size, "identifiers": dict(one.unique_identifiers)}
        for one in (own, facts)
    ]


def test_the_tokenizer_is_not_loaded_but_described_alike(data: Path, child: Any) -> None:
    """So the files of an index cache keep their names."""
    own, facts = child(tokenizer_and_facts, data)
    assert facts == own


def test_longer_runs_keep_the_order_within_an_epoch(data: Path, tmp_path: Path, child: Any) -> None:
    """What the page says about train_iters: the start of the order stays until an epoch is exceeded."""
    short = child(read, data, tmp_path / "a", 48)
    assert child(read, data, tmp_path / "a", 96) == short
    assert child(read, data, tmp_path / "a", 100_000) != short


def test_batches_are_text_with_shifted_labels(data: Path, tmp_path: Path, child: Any) -> None:
    batch, rows, documents = child(batch_and_split, data, tmp_path / "cache")
    assert batch["input_ids"] == rows
    assert all(len(row) == SEQ for row in rows)
    assert batch["labels"] == batch["shift_labels"]
    assert [row[:-1] for row in batch["labels"]] == [row[1:] for row in rows]
    eod = json.loads((data / "manifest.json").read_text())["tokenizer"]["eod_id"]
    assert all(document[-1] == eod for document in documents)
    inside = [row for row in rows if eod not in row]
    assert inside
    assert all(any(contains(document, row) for document in documents) for row in inside)


def contains(document: list[int], row: list[int]) -> bool:
    return any(document[i : i + len(row)] == row for i in range(len(document) - len(row) + 1))


@pytest.mark.parametrize(("asked", "each"), [(1, 1), (3, 1), (4, 2), (8, 3)])
def test_validation_is_shared_out(data: Path, tmp_path: Path, child: Any, asked: int, each: int) -> None:
    sets = child(valid_sets, data, tmp_path / "cache", asked)
    assert [name for name, *_ in sets] == ["docs", "code", "math"]
    assert [share for _, share, *_ in sets] == pytest.approx([0.5, 0.3, 0.2])
    assert all(batches == each and samples >= 4 * each for *_, batches, samples in sets)


@pytest.mark.parametrize("micro", [1, 4])
def test_micro_batch_size_changes_last_digits_only(data: Path, undisturbed: Path, tmp_path: Path, micro: int) -> None:
    train_here(tiny_config(**{"train.micro_batch_size": micro}), data, tmp_path)
    ours, theirs = losses(tmp_path), losses(undisturbed)
    for a, b in zip(ours, theirs, strict=True):
        key = "loss" if "loss" in a else "valid_loss"
        assert a[key] == pytest.approx(b[key], abs=2e-3)


def test_chunk_size_changes_last_digits_only(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    train_here(tiny_config(**{"model.mamba_chunk_size": 8}), data, tmp_path)
    assert losses(tmp_path)[0]["valid_loss"] == pytest.approx(losses(undisturbed)[0]["valid_loss"], abs=1e-5)


def roundtrip() -> bool:
    """Whether restoring the generators' states brings the same draws again."""
    import io
    import random

    import numpy
    import torch

    from nano3.training.hf.rng import restore_rng, rng_state, seed_all

    seed_all(3)
    buffer = io.BytesIO()
    torch.save(rng_state(), buffer)
    drawn = [(random.random(), numpy.random.random(), numpy.random.normal(), torch.rand(3).tolist()) for _ in range(2)]
    buffer.seek(0)
    restore_rng(torch.load(buffer, weights_only=True))
    again = [(random.random(), numpy.random.random(), numpy.random.normal(), torch.rand(3).tolist()) for _ in range(2)]
    return drawn == again and drawn[0] != drawn[1]


def test_random_state_survives_a_file(child: Any) -> None:
    assert child(roundtrip)
