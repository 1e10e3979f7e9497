"""The streams of the datasets of a plan, opened when they are first read, for training, traces and audits."""

from functools import cached_property
from pathlib import Path

import numpy as np

from nano3.data.dataset.manifest import load_manifest
from nano3.training.order.plan import OrderPlan
from nano3.training.order.stream import DatasetStream, StreamShard
from nano3.utils.errors import Failure


def shard_name(prefix: Path) -> str:
    """Return a shard's prefix in its data folder, such as train/data_00000; the folder may have been moved."""
    return "/".join(prefix.parts[-2:])


class Streams:
    """The streams of a plan by dataset."""

    def __init__(self, plan: OrderPlan, folder: Path) -> None:
        """Use the data in a folder.

        Args:
            plan: The plan of a run.
            folder: The run's data. A dataset that it no longer has is read from the folder recorded in the plan.
        """
        self.plan, self.folder = plan, folder
        self._streams: dict[str, DatasetStream] = {}
        self._shards: dict[Path, dict[str, list[StreamShard]]] = {}

    def __getitem__(self, name: str) -> DatasetStream:
        """Return the stream of a dataset.

        Raises:
            Failure: The data has no such dataset, or another one of this name.
        """
        if name not in self._streams:
            shape = self.plan.datasets[name]
            if name in self.gone:
                raise Failure(f"{shape.folder}: the folder is gone, and the run has read {name} from it.")
            shards = self._in(self.folder).get(name) or self._in(Path(shape.folder)).get(name)
            if not shards or sum(shard.tokens for shard in shards) != shape.tokens:
                raise Failure(f"{self.folder}: it does not have the dataset {name} that the run has read.")
            self._streams[name] = DatasetStream(name, shards, self.plan.seq_length, self.plan.seed)
        return self._streams[name]

    def read(self, sample: int) -> np.ndarray:
        """Return the tokens of a sample of the run, with its last label, int64."""
        name, position = self.plan.locate(sample)
        return self[name].read(position)

    @cached_property
    def gone(self) -> set[str]:
        """Datasets that the run's data no longer has, and whose own folder does not exist either."""
        now, shapes = self._in(self.folder), self.plan.datasets
        return {name for name, shape in shapes.items() if name not in now and not Path(shape.folder).is_dir()}

    @property
    def folders(self) -> list[Path]:
        """The run's data, then the folders of datasets that it no longer has."""
        left = self.plan.datasets.keys() - self._in(self.folder).keys() - self.gone
        own = {Path(shape.folder): 0 for name, shape in self.plan.datasets.items() if name in left}
        return [self.folder, *own]

    def find_shard(self, shard: str, folder: Path) -> tuple[str, int] | None:
        """Return the dataset of the plan that reads a shard, and the shard's number in it; None if no one does.

        Args:
            shard: Its prefix in the folder, such as train/data_00000.
            folder: One of `folders`.
        """
        now = self._in(self.folder)
        for name, shards in self._in(folder).items():
            prefixes = [shard_name(one.prefix) for one in shards]
            if name in self.plan.datasets and shard in prefixes and (folder == self.folder or name not in now):
                return name, prefixes.index(shard)
        return None

    def _in(self, folder: Path) -> dict[str, list[StreamShard]]:
        """Return the train shards in a folder by dataset, in the order of the data."""
        if folder not in self._shards:
            found: dict[str, list[StreamShard]] = {}
            for entry in load_manifest(folder).shards:
                if entry.split == "train":
                    shard = StreamShard(folder / entry.prefix, entry.tokens, entry.sequences)
                    found.setdefault(entry.dataset, []).append(shard)
            self._shards[folder] = found
        return self._shards[folder]
