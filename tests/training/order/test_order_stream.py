"""The order of one dataset: every token once an epoch, nothing again before the epoch is complete, and the way back."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_shards import write_dataset

from nano3.training.order import stream
from nano3.training.order.stream import DatasetStream

EPOCHS = 3
dataset = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=14), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few blocks in every shard."""
    monkeypatch.setattr(stream, "BLOCK", 4)


@settings(deadline=None)
@given(dataset, st.integers(1, 60), st.integers(0, 2**32))
def test_tokens_are_read_once_an_epoch_and_not_again_before_it_is_complete(
    shards: list[list[int]], seq_length: int, seed: int
) -> None:
    with TemporaryDirectory() as folder:
        order = DatasetStream("docs", write_dataset(Path(folder), shards), seq_length, seed)
        positions = order.samples_of_epoch(EPOCHS)[0]
        assert sorted(order.sample_at(n) for n in range(positions)) == list(range(positions))
        assert [order.position_of(order.sample_at(n)) for n in range(positions)] == list(range(positions))
        times, complete = Counter[int](), 0
        rows = [order.read(n).tolist() for n in range(positions)]
        for row in rows:
            assert len(row) == seq_length + 1
            for token in row[:-1]:
                assert times[token] == complete  # what it has of the next epoch comes when this one is complete
                times[token] += 1
                complete += len(times) == order.tokens and min(times.values()) > complete
        assert complete >= EPOCHS  # the last sample reaches further if the dataset is shorter than it
        by_sample = {order.sample_at(n): row for n, row in enumerate(rows)}
        assert all(by_sample[k][-1] == by_sample[k + 1][0] for k in range(positions - 1))  # the last label


@settings(deadline=None)
@given(dataset, st.integers(1, 60), st.integers(1, 80))
def test_every_read_of_a_sequence_is_found(shards: list[list[int]], seq_length: int, positions: int) -> None:
    with TemporaryDirectory() as folder:
        order = DatasetStream("docs", write_dataset(Path(folder), shards), seq_length, 7)
        reads: dict[tuple[int, int], list] = {}
        for n in range(positions):
            for part in order.parts(n):
                reads.setdefault((part.shard, part.sequence), []).append((n, part))
        for shard, lengths in enumerate(shards):
            for sequence in range(len(lengths)):
                found = order.reads_of(shard, sequence, positions)
                assert sorted(found) == sorted(reads.get((shard, sequence), []))


def test_epochs_seeds_and_datasets_have_their_own_orders(tmp_path: Path) -> None:
    shards = write_dataset(tmp_path, [[5] * 40, [7] * 30])

    def rows(name: str, seed: int, epoch: int = 0) -> list[list[int]]:
        order = DatasetStream(name, shards, 10, seed)
        first, count = order.samples_of_epoch(epoch)
        return [order.read(n).tolist() for n in range(first, first + count)]

    variants = [rows("a", 1), rows("a", 1, 1), rows("a", 2), rows("b", 1)]
    assert rows("a", 1) == variants[0]
    for number, one in enumerate(variants):
        for other in variants[number + 1 :]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 5
            assert len({tuple(row) for row in one} & {tuple(row) for row in other}) < 10  # documents have new neighbors
