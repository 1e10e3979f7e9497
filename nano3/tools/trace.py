"""List the documents in the global batch of one iteration, with their source files and rows.

nano3 trace quickstart --iteration 120
nano3 trace quickstart --iteration 120 --sample 3 --text
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.tools._arguments import RUNS, at_least, check_same_data, find_run
from nano3.utils.console import say, table, warn, write
from nano3.utils.errors import Failure, UserError

if TYPE_CHECKING:  # numpy is slow to import
    from nano3.config import PretrainConfig
    from nano3.data.dataset.manifest import Manifest
    from nano3.data.dataset.source_lookup import SourceRow
    from nano3.training.reports.sample_index import SampleIndex

HELP = "list the documents in the batch of one iteration, with their source files and rows"
ONLY_SHOWS = True
COLUMNS = ["sample", "dataset", "file", "position", "shard", "document", "tokens"]
# Prefix of a shard, and the number of a document in it.
DocumentKey = tuple[str, int]


@dataclass(frozen=True)
class DocumentSpan:
    """Tokens [start, stop) of a document in the batch.

    Attributes:
        sample: Position in the global batch, counted from 0.
        shard: Prefix of the shard, for example train/data_00000.
        document: Number of the document in the shard, counted from 0.
        start: First token of the document in the sample.
        stop: End of the span, exclusive.
    """

    sample: int
    shard: str
    document: int
    start: int
    stop: int

    @property
    def key(self) -> DocumentKey:
        """The document."""
        return self.shard, self.document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument(
        "--iteration", type=at_least(1), required=True, metavar="N", help="iteration as in the log, counted from 1"
    )
    parser.add_argument(
        "--sample", type=at_least(0), metavar="K", help="only sample K of the global batch, counted from 0"
    )
    parser.add_argument("--text", action="store_true", help="also show the text of the samples")
    parser.add_argument(
        "--no-sources", action="store_true", help="skip files and rows; finding them reads the raw text again"
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    from nano3.data.dataset.manifest import load_manifest
    from nano3.training.run.record import load_run_config

    run_dir = find_run(args.run)
    config = load_run_config(run_dir / "config.yaml")
    data = Path(config.run.data)
    samples = samples_of_iteration(config, run_dir, args.iteration, args.sample)
    check_same_data(run_dir, data)
    manifest = load_manifest(data)
    index = open_sample_index(config, run_dir, data)
    spans = list(document_spans(index, data, samples, config.train.global_batch_size))
    sources = {} if args.no_sources else find_sources(data, manifest, spans)
    datasets = {shard.prefix: shard.dataset for shard in manifest.shards}
    rows = [table_row(span, datasets[span.shard], sources.get(span.key)) for span in spans]
    which = f"samples {samples[0]:,} to {samples[-1]:,}" if len(samples) > 1 else f"sample {samples[0]:,}"
    title = f"{run_dir}: iteration {args.iteration}, {which} of the run"
    table(title, COLUMNS, rows, right=["sample", "document"])
    say(f"spans: {len(spans):,}, documents: {len({span.key for span in spans}):,}")
    if args.text:
        print_texts(data, manifest, spans)
    return 0


def samples_of_iteration(config: "PretrainConfig", run_dir: Path, iteration: int, sample: int | None) -> range:
    """Return the samples of an iteration's batch, numbered in the reading order of the whole run.

    Warns if the run is not known to have reached the iteration.

    Args:
        config: The run's configuration.
        run_dir: Run folder.
        iteration: Iteration, counted from 1.
        sample: Position in the batch of the only sample to return, counted from 0. None for all.

    Raises:
        UserError: The run has no such iteration or sample.
        Failure: The batch size changed during the run.
    """
    from nano3.training.run import parent_checkpoint
    from nano3.training.run.checkpoints import iteration_of, latest_checkpoint, recorded_checkpoint_dir
    from nano3.training.run.metrics import read_metrics

    size, last = config.train.global_batch_size, config.train.train_iters
    parent = parent_checkpoint.read_parent(run_dir)
    first = parent.iteration + 1 if parent else 1
    if not first <= iteration <= last:
        hint = f"; earlier ones belong to the run of {parent.checkpoint}" if parent and iteration < first else ""
        raise UserError(f"--iteration {iteration}: this run has iterations {first:,} to {last:,}{hint}.")
    if sample is not None and sample >= size:
        raise UserError(f"--sample {sample}: a global batch of this run has samples 0 to {size - 1}.")
    lines = read_metrics(run_dir)
    saved = latest_checkpoint(recorded_checkpoint_dir(run_dir))
    reached = max([line["iteration"] for line in lines] + [iteration_of(saved) if saved else 0])
    if reached < iteration:
        warn(f"{run_dir} has logged and saved nothing after iteration {reached:,}. It may not have read this batch.")
    for line in lines:
        if line.get("iteration") == iteration and line.get("consumed_samples", iteration * size) != iteration * size:
            raise Failure(
                f"{run_dir}: after iteration {iteration} the run had read {line['consumed_samples']:,} samples, not "
                f"{iteration} x {size}. Its batch size changed during the run, so its samples cannot be identified."
            )
    offset = (iteration - 1) * size
    return range(offset, offset + size) if sample is None else range(offset + sample, offset + sample + 1)


def open_sample_index(config: "PretrainConfig", run_dir: Path, data: Path) -> "SampleIndex":
    """Open the sample index of a run, and warn if the run was also started with other lengths.

    Args:
        config: The run's configuration.
        run_dir: Run folder.
        data: Its data.

    Raises:
        UserError: There is no index yet.
        Failure: The index cannot be read.
    """
    from nano3.training.dataset import open_data
    from nano3.training.reports.sample_index import SampleIndex
    from nano3.training.run import index_cache

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


def document_spans(index: "SampleIndex", data: Path, samples: range, global_batch_size: int) -> Iterator[DocumentSpan]:
    """Yield the spans of documents that make up samples, in order.

    Args:
        index: The run's sample index.
        data: Data folder, which may have been moved since the run.
        samples: Numbers of the samples in the run.
        global_batch_size: Samples per iteration.
    """
    import numpy as np

    from nano3.data.dataset.indexed import IndexedFile

    opened: dict[str, IndexedFile] = {}
    for sample in samples:
        member, number = index.locate(sample)
        shard = "/".join(member.prefix.parts[-2:])
        if shard not in opened:
            opened[shard] = IndexedFile(data / shard)
        indexed = opened[shard]
        for span in member.token_spans(number, indexed.lengths):
            # The last document that begins at this sequence; empty ones before it have no sequence.
            document = int(np.searchsorted(indexed.bounds, span.sequence, "right")) - 1
            yield DocumentSpan(sample % global_batch_size, shard, document, span.start, span.stop)


def find_sources(data: Path, manifest: "Manifest", spans: Iterable[DocumentSpan]) -> dict[DocumentKey, "SourceRow"]:
    """Return the source row of each document, and warn of shards whose sources cannot be read.

    Args:
        data: Data folder.
        manifest: Its manifest.
        spans: Spans of the documents.

    Raises:
        Failure: The plan of the data is missing or damaged.
    """
    from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan

    wanted: defaultdict[str, set[int]] = defaultdict(set)
    for span in spans:
        wanted[span.shard].add(span.document)
    plan = load_build_plan(data, manifest)
    found: dict[DocumentKey, SourceRow] = {}
    for shard, numbers in sorted(wanted.items()):
        split, _, name = shard.partition("/")
        try:
            sources = find_source_rows(plan, split, int(name.rpartition("_")[2]), numbers)
        except (Failure, UserError) as error:
            for problem in error.problems:
                warn(f"{shard}: {problem}")
            continue
        found |= {(shard, number): source for number, source in sources.items()}
    return found


def table_row(span: DocumentSpan, dataset: str, source: "SourceRow | None") -> list[str]:
    """Return a span's cells for the table."""
    file, position = (source.path, source.position) if source else ("", "")
    tokens = f"{span.start:,}-{span.stop - 1:,}"
    return [str(span.sample), dataset, file, position, span.shard, f"{span.document:,}", tokens]


def print_texts(data: Path, manifest: "Manifest", spans: Iterable[DocumentSpan]) -> None:
    """Print the decoded text of each sample, including special tokens."""
    from nano3.data.dataset.indexed import IndexedFile
    from nano3.tools.inspect_data import load_tokenizer

    tokenizer = load_tokenizer(data / manifest.tokenizer.path / "tokenizer.json")
    ids: defaultdict[int, list[int]] = defaultdict(list)
    for span in spans:
        ids[span.sample] += IndexedFile(data / span.shard).document(span.document)[span.start : span.stop].tolist()
    for sample, tokens in ids.items():
        say(f"---- sample {sample}")
        write(tokenizer.decode(tokens, skip_special_tokens=False) + "\n")
