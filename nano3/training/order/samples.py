"""The training samples of a plan: Megatron's GPTDataset, with its three index arrays computed instead of stored."""

from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.utils import Split

from nano3.training.order.plan import OrderPlan
from nano3.training.order.stream import DatasetStream
from nano3.training.order.streams import Streams


class Sequences:
    """The sequences of all shards of a dataset, as one of Megatron's indexed datasets."""

    def __init__(self, stream: DatasetStream, config: Any) -> None:
        self._stream, self._config = stream, config
        self._opened: dict[int, Any] = {}

    def get(self, sequence: int, offset: int = 0, length: int | None = None) -> Any:
        """Return tokens of a sequence of the dataset, as `IndexedDataset.get`."""
        number, local = self._stream.shard_of(sequence)
        if number not in self._opened:
            prefix = str(self._stream.shards[number].prefix)
            self._opened[number] = GPTDataset.build_low_level_dataset(prefix, self._config)
        return self._opened[number].get(local, offset=offset, length=length)


class Computed:
    """An array of an index whose entries are computed by `entry`."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry

    def __getitem__(self, number: int) -> Any:
        return self._entry(number)


class StreamDataset(GPTDataset):  # type: ignore[misc]
    """The GPTDataset of one dataset: item n is the sample at position n of the dataset's order, without end."""

    def __init__(self, stream: DatasetStream, config: Any) -> None:
        self._stream = stream
        super().__init__(Sequences(stream, config), stream.name, None, None, Split.train, config)

    def _build_document_sample_shuffle_indices(self) -> tuple[Computed, Computed, Computed]:
        stream = self._stream
        return (
            Computed(stream.sequence_at),
            Computed(lambda sample: stream.find_token(sample * stream.seq_length)),
            Computed(stream.sample_at),
        )

    def __len__(self) -> int:
        """Return the samples that begin in the first epoch."""
        return self._stream.samples_of_epoch(0)[1]


class PlannedDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The samples of a run in the order of its plan, from sample 0 to the end of the last stage."""

    def __init__(self, plan: OrderPlan, streams: Streams, config: Any) -> None:
        """Open nothing yet.

        Args:
            plan: The plan of the run.
            streams: Its data.
            config: Megatron's GPTDatasetConfig, with a tokenizer.
        """
        self.plan, self._streams, self._config = plan, streams, config
        self._datasets: dict[str, StreamDataset] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.plan.stages[-1].end * self.plan.global_batch_size

    def __getitem__(self, sample: int) -> dict[str, torch.Tensor]:
        """Return a sample of the run, as Megatron's GPTDataset makes it."""
        name, position = self.plan.locate(sample)
        if name not in self._datasets:
            self._datasets[name] = StreamDataset(self._streams[name], self._config)
        item: dict[str, torch.Tensor] = self._datasets[name][position]
        return item
