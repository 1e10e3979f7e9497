"""The documents in the global batch of an iteration, for `nano3 trace` and the guard's events.

The samples are those of Megatron's index (`sample_index`) or those of nano3's plan (`training/order`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nano3.config import PretrainConfig
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import load_manifest
from nano3.training.dataset import open_data
from nano3.training.order.budgets import uses_plan
from nano3.training.order.plan import FILE as ORDER_FILE
from nano3.training.order.plan import read_plan
from nano3.training.order.streams import Streams, shard_name
from nano3.training.run import index_cache
from nano3.training.run.sample_index import SampleIndex, TokenSpan
from nano3.utils.console import warn
from nano3.utils.errors import UserError, did_you_mean

# Data folder, prefix of a shard in it, and the number of a document in the shard.
DocumentKey = tuple[Path, str, int]


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens [start, stop) of a document in the batch.

    Attributes:
        sample: Position in the global batch, counted from 0.
        shard: Prefix of the shard, for example train/data_00000.
        document: Number of the document in the shard, counted from 0.
        start: First token of the document in the sample.
        stop: End of the span, exclusive.
        folder: Data folder of the shard: that of the run, or an earlier one of a dataset that left the mixture.
    """

    sample: int
    shard: str
    document: int
    start: int
    stop: int
    folder: Path

    @property
    def key(self) -> DocumentKey:
        """The document."""
        return self.folder, self.shard, self.document


# Where the samples of a run come from.
Samples = SampleIndex | Streams


def open_sample_index(config: PretrainConfig, run_dir: Path, data: Path) -> Samples:
    """Open the sample index of a run, and warn if the run was also started with other lengths.

    Args:
        config: The run's configuration.
        run_dir: Run folder.
        data: Its data.

    Raises:
        UserError: There is no index yet.
        Failure: The index cannot be read.
    """
    if uses_plan(config):
        plan = read_plan(run_dir)
        if plan is None:
            raise UserError(f"{run_dir}/{ORDER_FILE}: there is no such file yet; the run writes it when it starts.")
        return Streams(plan, data)
    cache = index_cache.cache_folder(run_dir, open_data(data).fingerprint)
    index = SampleIndex(cache, config.train.train_iters * config.train.global_batch_size)
    if index.other_sizes:
        sizes = " and ".join(f"{size:,}" for size in index.other_sizes)
        warn(
            f"{index.cache} also holds indexes of {sizes} samples: this run was also started with other lengths. For "
            "batches read by those starts, the result is correct only within the first epoch, where the order does not "
            "depend on the length."
        )
    return index


def sample_spans(index: Samples, data: Path, sample: int, opened: dict[Path, IndexedFile]) -> list[TokenSpan]:
    """Return the spans of tokens that make up a sample of a run, in order, with its last label.

    Args:
        index: The samples of the run.
        data: Data folder, which may have been moved since the run.
        sample: Number of the sample in the run.
        opened: Files by prefix; those of the spans are added.
    """
    if isinstance(index, Streams):
        name, position = index.plan.locate(sample)
        stream = index[name]
        spans = [TokenSpan(stream.shards[p.shard].prefix, p.sequence, p.start, p.stop) for p in stream.parts(position)]
        for span in spans:
            _open(span.prefix, opened)
        return spans
    member, number = index.locate(sample)
    prefix = data / shard_name(member.prefix)
    lengths = _open(prefix, opened).lengths
    return [replace(span, prefix=prefix) for span in member.token_spans(number, lengths)]


def _open(prefix: Path, opened: dict[Path, IndexedFile]) -> IndexedFile:
    if prefix not in opened:
        opened[prefix] = IndexedFile(prefix)
    return opened[prefix]


def document_spans(index: Samples, data: Path, samples: range, global_batch_size: int) -> Iterator[DocumentSpan]:
    """Yield the spans of documents that make up samples, in order.

    Args:
        index: The run's sample index.
        data: Data folder, which may have been moved since the run.
        samples: Numbers of the samples in the run.
        global_batch_size: Samples per iteration.
    """
    opened: dict[Path, IndexedFile] = {}
    for sample in samples:
        for span in sample_spans(index, data, sample, opened):
            folder, shard = span.prefix.parents[1], shard_name(span.prefix)
            indexed = opened[span.prefix]
            # The last document that begins at this sequence; empty ones before it have no sequence.
            document = int(np.searchsorted(indexed.bounds, span.sequence, "right")) - 1
            yield DocumentSpan(sample % global_batch_size, shard, document, span.start, span.stop, folder)


def document_reads(index: Samples, data: Path, shard: str, document: int) -> list[DocumentSpan]:
    """Return every sample of a run that contains tokens of a document, in reading order, with the span of tokens.

    `DocumentSpan.sample` is the number of the sample in the run.

    Args:
        index: The run's sample index.
        data: Data folder of the shard.
        shard: Prefix of the shard, for example train/data_00000.
        document: Number of the document in the shard, counted from 0.

    Raises:
        UserError: The shard has no such document, or the run reads another set of shards.
    """
    indexed = IndexedFile(data / shard)
    if not 0 <= document < len(indexed.bounds) - 1:
        raise UserError(f"{shard} has documents 0 to {len(indexed.bounds) - 2:,}, not {document:,}.")
    found: list[tuple[int, int, int]] = []
    for sequence in range(int(indexed.bounds[document]), int(indexed.bounds[document + 1])):
        if isinstance(index, Streams):
            found += _planned_reads(index, data, shard, sequence)
        else:
            found += _indexed_reads(index, shard, sequence, indexed.lengths)
    reads = [DocumentSpan(sample, shard, document, start, stop, data) for sample, start, stop in found]
    return sorted(reads, key=lambda span: (span.sample, span.start))


def _indexed_reads(index: SampleIndex, shard: str, sequence: int, lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (sample of the run, first token, end) of the reads of a sequence, from Megatron's index."""
    names = [shard_name(member.prefix) for member in index.members]
    if shard not in names:
        raise UserError(f"{shard}: the run does not train on this shard.")
    number = names.index(shard)
    parts = index.members[number].samples_of(sequence, lengths)
    samples = index.samples_of(number, [sample for sample, _ in parts])
    return [(samples[sample], span.start, span.stop) for sample, span in parts if sample in samples]


def _planned_reads(streams: Streams, folder: Path, shard: str, sequence: int) -> list[tuple[int, int, int]]:
    """Return (sample of the run, first token, end) of the reads of a sequence, from nano3's plan."""
    plan, found = streams.plan, streams.find_shard(shard, folder)
    if found is None:
        raise UserError(f"{shard}: the run does not train on this shard.")
    name, number = found
    positions = plan.consumed(plan.stages[-1].end)[name]
    reads = streams[name].reads_of(number, sequence, positions)
    samples = [(plan.sample_of(name, position), part.start, part.stop) for position, part in reads]
    return [(sample, start, stop) for sample, start, stop in samples if sample is not None]


def data_folders(index: Samples, data: Path) -> list[Path]:
    """Return the data folder of a run, then those of datasets that left its mixture.

    Args:
        index: The run's sample index.
        data: The run's data.
    """
    return index.folders if isinstance(index, Streams) else [data]


def in_another_folder(index: Samples, data: Path, folder: Path, shard: str) -> bool:
    """Return whether a shard of an earlier data folder is of a dataset that the run reads, or never read, elsewhere.

    Args:
        index: The run's sample index.
        data: The run's data.
        folder: Data folder of the shard.
        shard: Its prefix, for example train/data_00000.
    """
    return folder != data and isinstance(index, Streams) and index.find_shard(shard, folder) is None


def samples_per_iteration(index: Samples, data: Path, dataset: str, global_batch_size: int) -> np.ndarray:
    """Return how many samples of a dataset each iteration of a run reads, int64, from iteration 1 on.

    Args:
        index: The run's sample index.
        data: The run's data.
        dataset: Name of the dataset.
        global_batch_size: Samples per iteration.

    Raises:
        UserError: The run does not read the dataset.
    """
    counts: np.ndarray
    if isinstance(index, Streams):
        names, stages = list(index.plan.datasets), index.plan.stages
        if dataset in names:
            counts = np.zeros(stages[-1].end, np.int64)
            for stage in stages:
                steps = np.arange(stage.end - stage.first + 1, dtype=np.uint64) * np.uint64(global_batch_size)
                counts[stage.first : stage.end] = np.diff(
                    stage.interleave.count_before(dataset, steps).astype(np.int64)
                )
            return counts
    else:
        owner = {shard.prefix: shard.dataset for shard in load_manifest(data).shards}
        names = [owner[shard_name(member.prefix)] for member in index.members]
        if dataset in names:
            iterations = index.size // global_batch_size
            mine = np.array([name == dataset for name in names])
            if index.blend is None:
                return np.full(iterations, global_batch_size, np.int64)
            counts = np.zeros(iterations, np.int64)
            for first in range(0, iterations, 1 << 14):
                last = min(first + (1 << 14), iterations)
                part = index.blend[0][first * global_batch_size : last * global_batch_size]
                counts[first:last] = mine[part].reshape(-1, global_batch_size).sum(axis=1)
            return counts
    known = list(dict.fromkeys(names))
    raise UserError(f"--dataset {dataset}: the run reads {', '.join(known)}.{did_you_mean(dataset, known)}")


def read_ends(index: Samples, data: Path, dataset: str, done: np.ndarray) -> tuple[int, list[int]]:
    """Return the tokens of a dataset, and the iterations after which a stage or an epoch of it ends, ascending.

    Args:
        index: The run's sample index.
        data: The run's data.
        dataset: Name of the dataset.
        done: int64[iterations], its tokens that the run has read after each iteration.
    """
    if isinstance(index, Streams):
        stages = {stage.end for stage in index.plan.stages}
        tokens = index.plan.datasets[dataset].tokens
    else:
        shards = [s for s in load_manifest(data).shards if (s.dataset, s.split) == (dataset, "train")]
        stages, tokens = {len(done)}, sum(shard.tokens for shard in shards)
    epochs = np.searchsorted(done, np.arange(tokens, int(done[-1]) + 1, tokens)) + 1
    return tokens, sorted(stages | set(epochs.tolist()))


def batch_samples(iteration: int, global_batch_size: int) -> range:
    """Return the samples of an iteration's batch, numbered in the reading order of the whole run.

    Args:
        iteration: The iteration, from 1.
        global_batch_size: Samples per iteration.
    """
    return range((iteration - 1) * global_batch_size, iteration * global_batch_size)


def shard_datasets(folders: list[Path]) -> dict[tuple[Path, str], str]:
    """Return the dataset of each shard, by data folder and prefix."""
    return {(folder, shard.prefix): shard.dataset for folder in folders for shard in load_manifest(folder).shards}


def describe_documents(config: PretrainConfig, run_dir: Path, data: Path, iteration: int) -> list[dict[str, Any]]:
    """Return the rows of `nano3 trace RUN --iteration N --no-sources` as values that JSON can hold.

    Args:
        config: The run's configuration.
        run_dir: Run folder.
        data: Its data.
        iteration: The iteration, from 1.

    Raises:
        UserError: There is no sample index.
        Failure: The index or the data cannot be read.
    """
    size = config.train.global_batch_size
    index = open_sample_index(config, run_dir, data)
    datasets = shard_datasets(data_folders(index, data))
    return [
        {
            "sample": span.sample,
            "dataset": datasets[span.folder, span.shard],
            "shard": span.shard,
            "document": span.document,
            "tokens": [span.start, span.stop - 1],
        }
        for span in document_spans(index, data, batch_samples(iteration, size), size)
    ]
