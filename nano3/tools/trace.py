"""The documents in the global batch of one iteration, back to file and row.

nano3 trace quickstart --iteration 120
nano3 trace quickstart --iteration 120 --sample 3 --text
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.tools._arguments import at_least
from nano3.tools._folders import RUNS, refuse_other_data, run_folder
from nano3.utils.console import say, table, warn
from nano3.utils.errors import Failure, UserError

HELP = "the documents in the batch of one iteration, back to file and row"
COLUMNS = ["sample", "dataset", "file", "place", "shard", "document", "tokens"]


@dataclass(frozen=True)
class Piece:
    """A stretch of a document in the batch: `sample` is its place in the global batch, `document` its number in the
    shard, both from 0.
    """

    sample: int
    shard: str
    document: int
    start: int
    stop: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    parser.add_argument("--iteration", type=at_least(1), required=True, metavar="N", help="as in the log, from 1")
    parser.add_argument("--sample", type=at_least(0), metavar="K", help="only sample K, from 0, of the global batch")
    parser.add_argument("--text", action="store_true", help="show the text of the samples too")
    parser.add_argument(
        "--no-sources", action="store_true", help="name shards only; finding files and rows reads the raw text again"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.dataset.manifest import load_manifest
    from nano3.training.dataset import open_data
    from nano3.training.reports.sample_index import SampleIndex
    from nano3.training.run import index_cache
    from nano3.training.run.record import load_run_config

    folder = run_folder(args.run)
    config = load_run_config(folder / "config.yaml")
    data = Path(config.run.data)
    samples = samples_of(config, folder, args.iteration, args.sample)
    refuse_other_data(folder, data)
    manifest = load_manifest(data)
    cache = index_cache.cache_folder(folder, open_data(data).fingerprint)
    order = SampleIndex(cache, config.train.train_iters * config.train.global_batch_size)
    if order.other_sizes:
        sizes = " and ".join(f"{size:,}" for size in order.other_sizes)
        warn(
            f"{order.cache} also holds orders of {sizes} samples: this run was started with other lengths too. What was"
            " read then is told right only if it was within one epoch, where the order does not depend on the length."
        )
    pieces = list(pieces_of(order, data, samples, config.train.global_batch_size))
    origins = {} if args.no_sources else origins_of(data, manifest, pieces)
    datasets = {shard.prefix: shard.dataset for shard in manifest.shards}
    rows = [row(piece, datasets[piece.shard], origins.get((piece.shard, piece.document))) for piece in pieces]
    which = f"samples {samples[0]:,} to {samples[-1]:,}" if len(samples) > 1 else f"sample {samples[0]:,}"
    title = f"{folder}: iteration {args.iteration}, {which} of the run"
    table(title, COLUMNS, rows, right=["sample", "document"])
    documents = len({(piece.shard, piece.document) for piece in pieces})
    say(f"stretches: {len(pieces):,}, documents: {documents:,}")
    if args.text:
        show_text(data, manifest, pieces)
    return 0


def samples_of(config: Any, folder: Path, iteration: int, only: int | None) -> range:
    """Numbers, in the order of the whole run, of the samples in an iteration's batch."""
    from nano3.training.run import parent_checkpoint
    from nano3.training.run.checkpoints import iteration_of, latest_checkpoint, recorded_checkpoint_dir
    from nano3.training.run.metrics import read_metrics

    size, last = config.train.global_batch_size, config.train.train_iters
    parent = parent_checkpoint.read_parent(folder)
    first = parent.iteration + 1 if parent else 1
    if not first <= iteration <= last:
        before = f"; those before are of the run of {parent.checkpoint}" if parent and iteration < first else ""
        raise UserError(f"--iteration {iteration}: this run has iterations {first:,} to {last:,}{before}.")
    if only is not None and only >= size:
        raise UserError(f"--sample {only}: a global batch of this run has samples 0 to {size - 1}.")
    lines = read_metrics(folder)
    saved = latest_checkpoint(recorded_checkpoint_dir(folder))
    done = max([line["iteration"] for line in lines] + [iteration_of(saved) if saved else 0])
    if done < iteration:
        warn(
            f"{folder} has logged and saved nothing after iteration {done:,}: whether this batch was read is not known."
        )
    for line in lines:
        if line.get("iteration") == iteration and line.get("consumed_samples", iteration * size) != iteration * size:
            raise Failure(
                f"{folder}: after iteration {iteration} the run had read {line['consumed_samples']:,} samples, not "
                f"{iteration} x {size}: its batch size has changed on the way, so its samples cannot be told."
            )
    sample = (iteration - 1) * size
    return range(sample, sample + size) if only is None else range(sample + only, sample + only + 1)


def pieces_of(order: Any, data: Path, samples: range, global_batch_size: int) -> Iterator[Piece]:
    """The stretches of documents in these samples of a `SampleIndex`, in turn."""
    import numpy as np

    from nano3.data.dataset.indexed import IndexedFile

    opened: dict[str, IndexedFile] = {}
    for sample in samples:
        member, number = order.locate(sample)
        # By its name: the data may have been moved since.
        shard = "/".join(member.prefix.parts[-2:])
        if shard not in opened:
            opened[shard] = IndexedFile(data / shard)
        indexed = opened[shard]
        for stretch in member.token_spans(number, indexed.lengths):
            # The last document that begins there: empty ones before it have no sequence.
            document = int(np.searchsorted(indexed.bounds, stretch.sequence, "right")) - 1
            yield Piece(sample % global_batch_size, shard, document, stretch.start, stretch.stop)


def origins_of(data: Path, manifest: Any, pieces: list[Piece]) -> dict[tuple[str, int], Any]:
    """Origin of each document by shard and number; what cannot be told is warned of."""
    from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan

    wanted = defaultdict(set)
    for piece in pieces:
        wanted[piece.shard].add(piece.document)
    plan = load_build_plan(data, manifest)
    found: dict[tuple[str, int], Any] = {}
    for shard, numbers in sorted(wanted.items()):
        split, _, name = shard.partition("/")
        try:
            origins = find_source_rows(plan, split, int(name.rpartition("_")[2]), numbers)
        except (Failure, UserError) as error:
            for problem in error.problems:
                warn(f"{shard}: {problem}")
            continue
        found |= {(shard, number): origin for number, origin in origins.items()}
    return found


def row(piece: Piece, dataset: str, origin: Any) -> list[str]:
    """A line of the table."""
    file, place = (origin.path, origin.position) if origin else ("", "")
    tokens = f"{piece.start:,}-{piece.stop - 1:,}"
    return [str(piece.sample), dataset, file, place, piece.shard, f"{piece.document:,}", tokens]


def show_text(data: Path, manifest: Any, pieces: list[Piece]) -> None:
    """The decoded text of each sample; special tokens are shown."""
    from nano3.data.dataset.indexed import IndexedFile
    from nano3.tools.inspect_data import load_tokenizer

    tokenizer = load_tokenizer(data / manifest.tokenizer.path / "tokenizer.json")
    ids: dict[int, list[int]] = defaultdict(list)
    for piece in pieces:
        ids[piece.sample] += IndexedFile(data / piece.shard).document(piece.document)[piece.start : piece.stop].tolist()
    for sample, tokens in ids.items():
        say(f"---- sample {sample}")
        sys.stdout.write(tokenizer.decode(tokens, skip_special_tokens=False) + "\n")
