"""The order in which a run reads samples: sample of the run <-> (dataset, position in the dataset's own order).

Each dataset has one endless order (`stream`). A stage says how many samples it takes from each, and they are spread
evenly over its iterations (`interleave`); each dataset continues where the stage before left it. Within an iteration
the samples are shuffled, so that a rank does not always read the same datasets. Nothing is stored but the numbers
below, and nothing depends on ranks or micro batches.

The plan is recorded in RUN/order.json and in checkpoint.json. It imports no numpy.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nano3.training.order.interleave import Interleave
from nano3.training.order.permutation import GOLDEN, MASK, key_of, mix64, permute, unpermute
from nano3.utils.records import read_record, write_record

FILE = "order.json"
NANO3, MEGATRON = "nano3", "megatron"
ORDERS = (NANO3, MEGATRON)
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class DatasetShape:
    """The train split of a dataset: its size, the fingerprint of its shards in order, and the data folder."""

    tokens: Positive
    sequences: Positive
    fingerprint: str
    folder: str


@dataclass(frozen=True)
class Stage:
    """Iterations `first` + 1 to `end`, planned as `iterations` of them with `samples` of each dataset.

    A stage that a changed mixture has cut short ends before `first` + `iterations`. `budgets` are the settings that
    `samples` come from; plans of earlier versions do not have them.
    """

    first: Count
    end: Count
    iterations: Positive
    samples: dict[str, Count]
    budgets: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def interleave(self) -> Interleave:
        """The order of the datasets in this stage."""
        return Interleave(self.samples)


@dataclass(frozen=True)
class OrderPlan:
    """The whole order of a run, from iteration `stages[0].first` on.

    `requested` is what the stages were computed from; another request on a resume begins new stages there.
    """

    seed: int
    seq_length: Positive
    global_batch_size: Positive
    datasets: dict[str, DatasetShape]
    stages: tuple[Stage, ...]
    requested: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "OrderPlan":
        """Return the plan that `to_json` was called on.

        Raises:
            msgspec.ValidationError: The values are no plan.
        """
        return msgspec.convert(values, cls)

    def write(self, run_dir: Path) -> None:
        """Write RUN/order.json."""
        write_record(run_dir / FILE, self.to_json())

    @cached_property
    def _cursors(self) -> list[dict[str, int]]:
        """Samples of each dataset before each stage, and after the last one."""
        cursors = [dict.fromkeys(self.datasets, 0)]
        for stage in self.stages:
            done = (stage.end - stage.first) * self.global_batch_size
            cursors.append({n: at + stage.interleave.before(n, done) for n, at in cursors[-1].items()})
        return cursors

    @cached_property
    def _firsts(self) -> list[int]:
        return [stage.first for stage in self.stages]

    def stage_at(self, iteration: int) -> int:
        """Return the number, from 0, of the stage of an iteration, counted from 1.

        Raises:
            IndexError: The plan does not have the iteration.
        """
        number = bisect_right(self._firsts, iteration - 1) - 1
        if number < 0 or iteration > self.stages[-1].end:
            raise IndexError(f"iteration {iteration} is not planned")
        return number

    def consumed(self, iteration: int) -> dict[str, int]:
        """Return the samples of each dataset that the run has read after an iteration."""
        if iteration <= self._firsts[0]:
            return dict(self._cursors[0])
        number = self.stage_at(min(iteration, self.stages[-1].end))
        stage, before = self.stages[number], self._cursors[number]
        done = (min(iteration, stage.end) - stage.first) * self.global_batch_size
        return {name: at + stage.interleave.before(name, done) for name, at in before.items()}

    def positions(self, first: int, last: int) -> dict[tuple[str, str], range]:
        """Return which positions of each dataset's order the iterations `first` to `last` read.

        Args:
            first: The first iteration, counted from 1.
            last: The last one.

        Returns:
            Positions by name and fingerprint of the dataset, without datasets that are not read.
        """
        before, after = self.consumed(first - 1), self.consumed(last)
        return {
            (name, self.datasets[name].fingerprint): range(at, after[name])
            for name, at in before.items()
            if after[name] > at
        }

    def locate(self, sample: int) -> tuple[str, int]:
        """Return the dataset of a sample of the run, and its position in the dataset's order.

        Raises:
            IndexError: The plan does not have the sample.
        """
        step, slot = divmod(sample, self.global_batch_size)
        number = self.stage_at(step + 1)
        stage = self.stages[number]
        slot = permute(slot, self.global_batch_size, self._batch_key(step))
        name, index = stage.interleave.locate((step - stage.first) * self.global_batch_size + slot)
        return name, self._cursors[number][name] + index

    def sample_of(self, name: str, position: int) -> int | None:
        """Return the sample of the run that reads a position of a dataset's order; None if the run ends before."""
        for number, (before, after) in enumerate(pairwise(self._cursors)):
            if before[name] <= position < after[name]:
                stage = self.stages[number]
                n = stage.interleave.sample_of(name, position - before[name])
                step, slot = divmod(n, self.global_batch_size)
                step += stage.first
                slot = int(unpermute(slot, self.global_batch_size, self._batch_key(step)))
                return step * self.global_batch_size + slot
        return None

    def epochs(self, name: str, samples: int) -> float:
        """Return how many passes over a dataset a number of samples is."""
        return samples * self.seq_length / self.datasets[name].tokens

    def shares(self, iteration: int) -> dict[str, float]:
        """Return the share of each dataset in the samples of an iteration, without those that it does not read."""
        before, after = self.consumed(iteration - 1), self.consumed(iteration)
        counts = {name: count - before[name] for name, count in after.items()}
        return {name: count / self.global_batch_size for name, count in counts.items() if count}

    def epoch_metrics(self, iteration: int) -> dict[str, float]:
        """Return `epochs/<dataset>`: the passes over each dataset that the run has read after an iteration."""
        return {f"epochs/{name}": round(self.epochs(name, n), 6) for name, n in self.consumed(iteration).items()}

    def cut(self, iteration: int) -> "OrderPlan":
        """Return the plan up to an iteration."""
        kept = [replace(stage, end=min(stage.end, iteration)) for stage in self.stages if stage.first < iteration]
        return replace(self, stages=tuple(kept))

    def _batch_key(self, step: int) -> int:
        return int(mix64((key_of(self.seed, "batch") + GOLDEN * step) & MASK))


def read_plan(run_dir: Path) -> OrderPlan | None:
    """Return the plan in RUN/order.json; None for a run in Megatron's order.

    Raises:
        DamagedRecordError: The file is damaged.
    """
    fix = "Remove it and start the run again: it is written from the checkpoint and the settings."
    try:
        return read_record(Path(run_dir) / FILE, OrderPlan, fix)
    except FileNotFoundError:
        return None
