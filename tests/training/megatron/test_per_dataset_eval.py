"""Per-dataset validation divides the batches and restores the counters of the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.training.dataset import Shard, TrainingData
from nano3.training.megatron.per_dataset_eval import PerDatasetEval


def data(*valid: str) -> TrainingData:
    """Return data with one validation shard per name and one training shard."""
    shards = [Shard("valid", name, Path(f"/d/{number}"), 1.0, 100) for number, name in enumerate(valid)]
    return TrainingData(Path("/d"), (Shard("train", "t", Path("/d/t"), 1.0, 9), *shards), Path("/t"), 10, 0, "f")


class Recorder(PerDatasetEval):
    """Records the calls of Megatron's `evaluate`, which needs a GPU, and changes the counters."""

    def __init__(self, found: TrainingData, eval_iters: int, fails_at: str | None = None) -> None:
        super().__init__(found, eval_iters, forward_step=lambda: None)
        self.fails_at, self.calls = fails_at, list[tuple[str, int, int]]()

    def _loss(self, name: str, shards: tuple[Shard, ...], context: Any) -> float:
        self.calls.append((name, len(shards), context.state.cfg.validation.eval_iters))
        context.state.train_state.consumed_valid_samples += 64
        if name == self.fails_at:
            raise RuntimeError("out of memory")
        return float(len(self.calls))


def context(eval_iters: int) -> Any:
    """Return the context of a Megatron-Bridge callback."""
    state = SimpleNamespace(consumed_valid_samples=512)
    return SimpleNamespace(
        state=SimpleNamespace(train_state=state, cfg=SimpleNamespace(validation=SimpleNamespace(eval_iters=eval_iters)))
    )


def counters(of: Any) -> tuple[int, int]:
    return of.state.train_state.consumed_valid_samples, of.state.cfg.validation.eval_iters


def test_each_dataset_is_validated_once_on_its_own_shards() -> None:
    call, here = Recorder(data("docs", "code", "docs"), eval_iters=8), context(8)
    assert call(here) == {"docs": 1.0, "code": 2.0}
    assert call.calls == [("docs", 2, 4), ("code", 1, 4)]
    assert counters(here) == (512, 8)


def test_shares_are_those_of_the_validation_shards() -> None:
    """They add up to one, and the shards of a dataset count together."""
    weights = {"a": 2.0, "b": 5.0, "c": 1.0}
    shards = [Shard("valid", "ab"[n == "b"], Path(f"/{n}"), w, 9) for n, w in weights.items()]
    found = TrainingData(Path("/d"), (*shards, Shard("train", "t", Path("/t"), 9.0, 9)), Path("/t"), 10, 0, "f")
    assert PerDatasetEval(found, 1, lambda: None).shares == pytest.approx({"a": 3 / 8, "b": 5 / 8})


def test_a_failing_validation_restores_the_counters() -> None:
    """A resume after it must not skip validation samples."""
    call, here = Recorder(data("docs", "code"), eval_iters=8, fails_at="code"), context(8)
    with pytest.raises(RuntimeError, match="out of memory"):
        call(here)
    assert counters(here) == (512, 8)


def test_without_validation_data_there_is_no_loss() -> None:
    assert Recorder(data(), eval_iters=8)(context(8)) == {}


@given(st.integers(1, 200), st.integers(1, 30))
def test_batches_are_divided_among_all_datasets(eval_iters: int, datasets: int) -> None:
    """Together at least eval_iters, and less than one extra batch per dataset."""
    batches = PerDatasetEval(data(*map(str, range(datasets))), eval_iters, lambda: None).batches
    assert batches >= 1
    assert eval_iters <= batches * datasets < eval_iters + datasets
