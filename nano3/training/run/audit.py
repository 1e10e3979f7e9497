"""Prove from the plan, the data and the metrics what a run has been fed: `nano3 trace RUN --audit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nano3.data.dataset.indexed import IndexedFile
from nano3.training.run.batch_documents import Samples, batch_samples, sample_spans
from nano3.training.run.fed_tokens import HASH, MODULUS, STEPS, sample_hash
from nano3.training.run.skips import BY_USER, ROLLED_BACK, SkipRecord


@dataclass(frozen=True)
class Check:
    """The hash in one line of metrics.jsonl, and the one computed from the data for the same iterations."""

    iterations: tuple[int, ...]
    recorded: int
    computed: int

    @property
    def equal(self) -> bool:
        """Whether the steps were fed what the plan says."""
        return self.recorded == self.computed


class BatchReader:
    """Reads the samples of a run again from its data."""

    def __init__(self, index: Samples, data: Path, global_batch_size: int) -> None:
        self.index, self.data, self.global_batch_size = index, data, global_batch_size
        self._opened: dict[Path, IndexedFile] = {}

    def iteration_hash(self, iteration: int) -> int:
        """Return the sum of the hashes of an iteration's samples."""
        return sum(sample_hash(self.inputs(s)) for s in batch_samples(iteration, self.global_batch_size)) % MODULUS

    def inputs(self, sample: int) -> np.ndarray:
        """Return the input ids of a sample of the run, int64."""
        rows = []
        for span in sample_spans(self.index, self.data, sample, self._opened):
            file = self._opened[span.prefix]
            begin = int(file.offsets[span.sequence]) // file.dtype.itemsize
            rows.append(file.tokens[begin + span.start : begin + span.stop])
        tokens: np.ndarray = np.concatenate(rows).astype(np.int64)[:-1]
        return tokens


def hashed_lines(lines: Sequence[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that have a hash: all, or at most so many, spread over the run.

    Args:
        lines: The lines.
        most: The number of lines; None for all.
    """
    found = [line for line in lines if HASH in line]
    if most is None or len(found) <= most:
        return found
    return [found[round(number * (len(found) - 1) / (most - 1))] for number in range(most)] if most > 1 else found[-1:]


def check_line(line: dict[str, Any], reader: BatchReader, skips: SkipRecord) -> Check:
    """Compute the hash of the iterations of one line again.

    Args:
        line: A line of metrics.jsonl with a hash.
        reader: Reads the run's samples.
        skips: What the run left out; such iterations were not read.
    """
    iterations: list[int] = []
    at = int(line["iteration"])
    while len(iterations) < line[STEPS] and at > 0:
        left_out = skips.find(at)
        if not left_out or left_out.reason not in (BY_USER, ROLLED_BACK):
            iterations.append(at)
        at -= 1
    computed = sum(reader.iteration_hash(iteration) for iteration in iterations) % MODULUS
    return Check(tuple(reversed(iterations)), int(line[HASH]), computed)
