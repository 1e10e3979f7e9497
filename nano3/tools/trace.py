"""List the documents in the batch of one iteration, or the iterations that read a document or dataset; or audit a run.

nano3 trace quickstart --iteration 120
nano3 trace quickstart --iteration 120 --sample 3 --text
nano3 trace quickstart --document docs.parquet:177
nano3 trace quickstart --document train/data_00001:10
nano3 trace quickstart --containing "text of a document"
nano3 trace quickstart --dataset docs
nano3 trace quickstart --audit

--audit compares the hashes of the token ids that the steps were fed with those computed again from the data. With
train.sample_order=nano3, it also counts what the run has read of each dataset.

If the run leaves out the iteration, or its guard has found something there, the last lines say so.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.tools._arguments import RUNS, at_least, check_same_data, find_run
from nano3.utils.console import say, table, warn, write
from nano3.utils.errors import Failure, UserError, did_you_mean

if TYPE_CHECKING:  # numpy is slow to import
    from nano3.config import PretrainConfig
    from nano3.data.dataset.source_lookup import SourceRow
    from nano3.training.run.batch_documents import DocumentKey, DocumentSpan, Samples

HELP = "list the documents of an iteration, or the iterations that read a document, text or dataset; audit a run"
AUDITED_LINES = 20
ONLY_SHOWS = True
SHARD = re.compile(r"(train|valid|test)/data_\d{5,}")
COLUMNS = ["sample", "dataset", "file", "position", "shard", "document", "tokens"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, or its name under {RUNS}")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--iteration", type=at_least(1), metavar="N", help="iteration as in the log, counted from 1")
    which.add_argument(
        "--document",
        metavar="FILE:N",
        help="row N of a source file (counted from 1), the line at byte N of a JSON-lines file, or document N of a "
        "shard such as train/data_00001",
    )
    which.add_argument("--containing", metavar="TEXT", help="every document that contains this text")
    which.add_argument("--dataset", metavar="NAME", help="every document of a dataset")
    which.add_argument(
        "--audit",
        action="store_true",
        help="prove what the run has been fed; with train.sample_order=nano3, also count it by dataset",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"with --audit: check every line of metrics, not {AUDITED_LINES}"
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
    if args.all and not args.audit:
        raise UserError("--all belongs to --audit.")
    if args.iteration is not None:
        return trace_iteration(args)
    if args.sample is not None or args.text or args.no_sources:
        others = {
            "audit": args.audit,
            "document": args.document,
            "containing": args.containing,
            "dataset": args.dataset,
        }
        other = next(name for name, value in others.items() if value)
        raise UserError(f"--sample, --text and --no-sources belong to --iteration, not to --{other}.")
    if args.audit:
        return audit(find_run(args.run), args.all)
    if args.dataset is not None:
        return trace_dataset(find_run(args.run), args.dataset)
    if args.containing is not None:
        return trace_text(find_run(args.run), args.containing)
    return trace_document(find_run(args.run), args.document)


def trace_iteration(args: argparse.Namespace) -> int:
    """Show the documents of an iteration and return the exit code."""
    from nano3.training.run.batch_documents import data_folders, document_spans, shard_datasets
    from nano3.training.run.record import load_run_config

    run_dir = find_run(args.run)
    config = load_run_config(run_dir / "config.yaml")
    samples = samples_of_iteration(config, run_dir, args.iteration, args.sample)
    data = Path(config.run.data)
    index = open_samples(config, run_dir)
    spans = list(document_spans(index, data, samples, config.train.global_batch_size))
    sources = {} if args.no_sources else find_sources(spans)
    datasets = shard_datasets(data_folders(index, data))
    rows = [table_row(span, datasets[span.folder, span.shard], sources.get(span.key), data) for span in spans]
    which = f"samples {samples[0]:,} to {samples[-1]:,}" if len(samples) > 1 else f"sample {samples[0]:,}"
    title = f"{run_dir}: iteration {args.iteration}, {which} of the run"
    table(title, COLUMNS, rows, right=["sample", "document"])
    say(f"spans: {len(spans):,}, documents: {len({span.key for span in spans}):,}")
    for line in describe_events(run_dir, args.iteration):
        say(line)
    if args.text:
        print_texts(spans)
    return 0


def open_samples(config: "PretrainConfig", run_dir: Path) -> "Samples":
    """Open the order of a run's samples, after checking that its data still holds them.

    Args:
        config: The run's configuration.
        run_dir: Run folder.

    Raises:
        UserError: The run has no samples yet, or there is no prepared data.
        Failure: The data is another one.
    """
    from nano3.training.dataset import open_data
    from nano3.training.order.budgets import uses_plan
    from nano3.training.order.streams import Streams
    from nano3.training.run.batch_documents import open_sample_index

    data = Path(config.run.data)
    if not uses_plan(config):
        check_same_data(run_dir, data)
        return open_sample_index(config, run_dir, data)
    index = open_sample_index(config, run_dir, data)
    assert isinstance(index, Streams)
    # Not the identity of the whole folder: weights and budgets may have changed since, and datasets may have left.
    found: dict[str, str] = {}
    for folder in index.folders:
        found = open_data(folder).dataset_fingerprints | found
    shapes = {name: shape for name, shape in index.plan.datasets.items() if name not in index.gone}
    for name in sorted(index.gone):
        left = index.plan.datasets[name].folder
        warn(f"{left}: the folder is gone, and the run has read {name} from it. Its documents cannot be traced.")
    if wrong := [name for name, shape in shapes.items() if found.get(name) != shape.fingerprint]:
        raise Failure(
            f"{data} is not the data that {run_dir} was trained on. It has been prepared again since, with another "
            f"{', '.join(wrong)}."
        )
    return index


def trace_document(run_dir: Path, wanted: str) -> int:
    """Show the iterations of a run that read a document, whole or in part, and return the exit code.

    Args:
        run_dir: Run folder.
        wanted: FILE:ROW, FILE:BYTE or SHARD:NUMBER.

    Raises:
        UserError: There is no such document, or the run has no sample index yet.
    """
    from nano3.training.run.batch_documents import data_folders, in_another_folder
    from nano3.training.run.record import load_run_config

    file, _, number = wanted.rpartition(":")
    digits = number.replace(",", "")
    if not file or not digits.isdecimal():
        raise UserError(f"--document {wanted}: write FILE:ROW, FILE:BYTE or SHARD:NUMBER, as in docs.parquet:177.")
    config = load_run_config(run_dir / "config.yaml")
    index, data = open_samples(config, run_dir), Path(config.run.data)
    folders = data_folders(index, data)
    documents = find_documents(folders, file, int(digits))
    for document in [one for one in documents if not in_another_folder(index, data, *one[:2])] or documents[:1]:
        show_reads(run_dir, config, index, [document])
    return 0


def find_documents(folders: list[Path], file: str, number: int) -> "list[DocumentKey]":
    """Return the document of a source row or a shard; several if more than one of the data folders has it.

    Args:
        folders: The data folders of a run, the current one first.
        file: A source file or a shard, such as train/data_00001; a shard of an earlier folder with its folder.
        number: The row, the byte or the document.

    Raises:
        UserError: No folder has such a document.
    """
    from nano3.data.dataset.manifest import load_manifest
    from nano3.data.dataset.source_lookup import find_document, load_build_plan

    for folder in folders:
        shard = file.removeprefix(f"{folder}/")
        if SHARD.fullmatch(shard):
            known = [entry.prefix for entry in load_manifest(folder).shards]
            if shard not in known:
                raise UserError(f"{shard}: {folder} has no such shard.{did_you_mean(shard, known)}")
            return [(folder, shard, number)]
    found, problems = list[tuple[Path, str, int]](), list[str]()
    for folder in folders:
        try:
            prefix, document, _ = find_document(load_build_plan(folder, load_manifest(folder)), file, number)
            found.append((folder, prefix, document))
        except UserError as error:
            problems += error.problems
    if not found:
        raise UserError(problems)
    return found


def trace_text(run_dir: Path, text: str) -> int:
    """Show the iterations of a run that read documents with a text, and return the exit code.

    Args:
        run_dir: Run folder.
        text: The text.

    Raises:
        UserError: No document contains the text, or the run has no sample index yet.
    """
    from nano3.data.dataset.manifest import load_manifest
    from nano3.data.dataset.text_search import find_text
    from nano3.tools.inspect_data import load_tokenizer
    from nano3.training.run.batch_documents import data_folders, in_another_folder
    from nano3.training.run.record import load_run_config

    if not text.strip():
        raise UserError("--containing: the text is empty.")
    config = load_run_config(run_dir / "config.yaml")
    index, data = open_samples(config, run_dir), Path(config.run.data)
    documents: list[DocumentKey] = []
    for folder in data_folders(index, data):
        manifest = load_manifest(folder)
        tokenizer = load_tokenizer(folder / manifest.tokenizer.path / "tokenizer.json")
        found = find_text(folder, manifest, tokenizer, text)
        documents += [(folder, *one) for one in found if not in_another_folder(index, data, folder, one.shard)]
    if not documents:
        raise UserError(f"--containing {text!r}: no document of {data} contains this text.")
    show_reads(run_dir, config, index, documents)
    return 0


def show_reads(run_dir: Path, config: "PretrainConfig", index: "Samples", documents: "list[DocumentKey]") -> None:
    """Show every read of documents.

    Args:
        run_dir: Run folder.
        config: The run's configuration.
        index: The run's samples.
        documents: The documents.
    """
    from nano3.training.run.batch_documents import data_folders, document_reads, shard_datasets
    from nano3.training.run.metrics import reached_iteration
    from nano3.training.run.skips import read_skips

    data, size = Path(config.run.data), config.train.global_batch_size
    reached, skips = reached_iteration(run_dir), read_skips(run_dir)
    datasets = shard_datasets(data_folders(index, data))
    reads: list[tuple[int, str, DocumentSpan]] = []
    names = []
    for folder, shard, document in documents:
        label = f"{shown_shard(folder, shard, data)}:{document}"
        names.append(f"document {document:,} of {shown_shard(folder, shard, data)}, dataset {datasets[folder, shard]}")
        if shard.startswith("train/"):
            found = document_reads(index, folder, shard, document)
            reads += [(span.sample // size + 1, label, span) for span in found]
        else:
            say(f"{run_dir}: {names[-1]}: never trained on, because it belongs to the split {shard.partition('/')[0]}")
    one = len(documents) == 1
    if one and not documents[0][1].startswith("train/"):
        return
    if not one:
        reads.sort(key=lambda read: read[0])
    rows, trained = [], 0
    for iteration, label, span in reads:
        state = "left out" if skips.find(iteration) else "not reached" if iteration > reached else ""
        trained += 0 if state else span.stop - span.start
        own = [] if one else [label]
        rows.append([f"{iteration:,}", str(span.sample % size), *own, f"{span.start:,}-{span.stop - 1:,}", state])
    columns = ["iteration", "sample", *([] if one else ["document"]), "tokens", ""]
    title = names[0] if one else f"{len(documents):,} documents"
    table(f"{run_dir}: {title}", columns, rows, right=["iteration", "sample"])
    what = "it" if one else "them"
    say(f"reads: {len(rows):,}; trained on {trained:,} tokens of {what} up to iteration {reached:,}")


def shown_shard(folder: Path, shard: str, data: Path) -> str:
    """Return a shard's prefix, with its folder unless that is the run's data."""
    return shard if folder == data else f"{folder}/{shard}"


def trace_dataset(run_dir: Path, name: str) -> int:
    """Show which iterations of a run read a dataset, and when each epoch ends; return the exit code.

    Args:
        run_dir: Run folder.
        name: Name of the dataset.

    Raises:
        UserError: The run does not read the dataset, or has no sample index yet.
    """
    import numpy as np

    from nano3.training.run.batch_documents import read_ends, samples_per_iteration
    from nano3.training.run.metrics import reached_iteration
    from nano3.training.run.record import load_run_config
    from nano3.training.run.skips import read_skips

    config = load_run_config(run_dir / "config.yaml")
    index, data = open_samples(config, run_dir), Path(config.run.data)
    counts = samples_per_iteration(index, data, name, config.train.global_batch_size)
    reached, seq_length = reached_iteration(run_dir), config.train.seq_length
    done = np.cumsum(counts) * seq_length
    epoch, ends = read_ends(index, data, name, done)
    rows, first = [], 0
    for end in ends:
        if (read := np.flatnonzero(counts[first:end])).size:
            part = counts[first:end]
            state = "" if end <= reached else "not reached" if first >= reached else f"reached {reached:,}"
            rows.append([f"{first + int(read[0]) + 1:,}-{first + int(read[-1]) + 1:,}", f"{read.size:,}",
                         f"{part[read].min()}-{part.max()}", f"{int(part.sum()) * seq_length:,}",
                         f"{done[end - 1] / epoch:,.2f}", state])  # fmt: skip
        first = end
    columns = ["iterations", "with it", "samples in each", "tokens", "epochs since the start", ""]
    table(f"{run_dir}: dataset {name}, {epoch:,} tokens", columns, rows, right=columns[:-1])
    left_out = {
        i for one in read_skips(run_dir).ranges for i in range(one.first, min(one.last, reached, len(counts)) + 1)
    }
    if passed := sum(bool(counts[iteration - 1]) for iteration in left_out):
        say(f"{passed:,} of the iterations with it were left out: their samples were passed over")
    return 0


def audit(run_dir: Path, every_line: bool) -> int:
    """Check what a run has read against what its steps were fed, and return the exit code.

    A run in nano3's own order also gets a table of what it has read of each dataset.

    Args:
        run_dir: Run folder.
        every_line: Whether every line of metrics is checked.

    Raises:
        UserError: The run has no samples, or metrics without hashes.
        Failure: A step was fed other token ids than planned.
    """
    from nano3.training.order.plan import read_plan
    from nano3.training.order.plan_text import CONSUMED_COLUMNS, consumed_rows
    from nano3.training.run.audit import BatchReader, check_line, hashed_lines
    from nano3.training.run.metrics import reached_iteration, read_metrics
    from nano3.training.run.record import load_run_config
    from nano3.training.run.skips import read_skips

    config = load_run_config(run_dir / "config.yaml")
    data, reached, skips = Path(config.run.data), reached_iteration(run_dir), read_skips(run_dir)
    reader = BatchReader(open_samples(config, run_dir), data, config.train.global_batch_size)
    if plan := read_plan(run_dir):
        title = f"{run_dir}: iteration {reached:,} of {config.train.train_iters:,}"
        table(title, CONSUMED_COLUMNS, consumed_rows(plan, reached), right=CONSUMED_COLUMNS[1:])
    left_out = sum(len(range(one.first, min(one.last, reached) + 1)) for one in skips.ranges)
    if left_out:
        say(f"{left_out:,} of these iterations were left out: their samples were passed over")
    lines = hashed_lines(read_metrics(run_dir), None if every_line else AUDITED_LINES)
    if not lines:
        raise UserError(f"{run_dir}: its metrics have no hashes of token ids: an earlier version of nano3 wrote them.")
    checks = [check_line(line, reader, skips) for line in lines]
    iterations = sum(len(check.iterations) for check in checks)
    if wrong := [check for check in checks if not check.equal]:
        first = wrong[0].iterations
        raise Failure(
            f"{run_dir}: {len(wrong)} of {len(checks)} hashes differ, the first one of iterations {first[0]:,} to "
            f"{first[-1]:,}: these steps were not fed what the order of the run and {data} say."
        )
    say(f"{len(checks):,} hashes of {iterations:,} iterations, the last one {lines[-1]['iteration']:,}: all as planned")
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
    from nano3.training.run.batch_documents import batch_samples
    from nano3.training.run.metrics import reached_iteration, read_metrics

    size, last = config.train.global_batch_size, config.train.train_iters
    parent = parent_checkpoint.read_parent(run_dir)
    first = parent.iteration + 1 if parent else 1
    if not first <= iteration <= last:
        hint = f"; earlier ones belong to the run of {parent.checkpoint}" if parent and iteration < first else ""
        raise UserError(f"--iteration {iteration}: this run has iterations {first:,} to {last:,}{hint}.")
    if sample is not None and sample >= size:
        raise UserError(f"--sample {sample}: a global batch of this run has samples 0 to {size - 1}.")
    lines, reached = read_metrics(run_dir), reached_iteration(run_dir)
    if reached < iteration:
        warn(f"{run_dir} has logged and saved nothing after iteration {reached:,}. It may not have read this batch.")
    for line in lines:
        if line.get("iteration") == iteration and line.get("consumed_samples", iteration * size) != iteration * size:
            raise Failure(
                f"{run_dir}: after iteration {iteration} the run had read {line['consumed_samples']:,} samples, not "
                f"{iteration} x {size}. Its batch size changed during the run, so its samples cannot be identified."
            )
    samples = batch_samples(iteration, size)
    return samples if sample is None else samples[sample : sample + 1]


def describe_events(run_dir: Path, iteration: int) -> list[str]:
    """Return why the run has not trained on the batch of an iteration, and what its guard has found there.

    Args:
        run_dir: Run folder.
        iteration: Iteration, counted from 1.

    Raises:
        Failure: A record of the run is damaged.
    """
    from nano3.training.run.guard import read_events
    from nano3.training.run.skips import read_skips

    skipped = read_skips(run_dir).find(iteration)
    lines = [f"not trained on: the run leaves out iteration {skipped}"] if skipped else []
    for event in read_events(run_dir):
        if event["iteration"] == iteration:
            above = f" above {event['threshold']:.4g}" if event["threshold"] is not None else ""
            lines.append(f"guard, {event['time']}: {event['statistic']} {event['value']}{above}: {event['action']}")
    return lines


def find_sources(spans: "Iterable[DocumentSpan]") -> "dict[DocumentKey, SourceRow]":
    """Return the source row of each document, and warn of shards whose sources cannot be read.

    Args:
        spans: Spans of the documents.

    Raises:
        Failure: The plan of the data is missing or damaged.
    """
    from nano3.data.dataset.manifest import load_manifest
    from nano3.data.dataset.source_lookup import find_source_rows, load_build_plan

    wanted: defaultdict[tuple[Path, str], set[int]] = defaultdict(set)
    for span in spans:
        wanted[span.folder, span.shard].add(span.document)
    plans = {folder: load_build_plan(folder, load_manifest(folder)) for folder in {folder for folder, _ in wanted}}
    found: dict[DocumentKey, SourceRow] = {}
    for (folder, shard), numbers in sorted(wanted.items()):
        split, _, name = shard.partition("/")
        try:
            sources = find_source_rows(plans[folder], split, int(name.rpartition("_")[2]), numbers)
        except (Failure, UserError) as error:
            for problem in error.problems:
                warn(f"{shard}: {problem}")
            continue
        found |= {(folder, shard, number): source for number, source in sources.items()}
    return found


def table_row(span: "DocumentSpan", dataset: str, source: "SourceRow | None", data: Path) -> list[str]:
    """Return a span's cells for the table.

    Args:
        span: The span.
        dataset: Name of its dataset.
        source: Where its text came from, if that is known.
        data: The run's data.
    """
    file, position = (source.path, source.position) if source else ("", "")
    tokens, shard = f"{span.start:,}-{span.stop - 1:,}", shown_shard(span.folder, span.shard, data)
    return [str(span.sample), dataset, file, position, shard, f"{span.document:,}", tokens]


def print_texts(spans: "Sequence[DocumentSpan]") -> None:
    """Print the decoded text of each sample, including special tokens."""
    from nano3.data.dataset.indexed import IndexedFile
    from nano3.data.dataset.manifest import load_manifest
    from nano3.tools.inspect_data import load_tokenizer

    folder = spans[0].folder  # datasets of a run have the same tokenizer
    tokenizer = load_tokenizer(folder / load_manifest(folder).tokenizer.path / "tokenizer.json")
    ids: defaultdict[int, list[int]] = defaultdict(list)
    for span in spans:
        document = IndexedFile(span.folder / span.shard).document(span.document)
        ids[span.sample] += document[span.start : span.stop].tolist()
    for sample, tokens in ids.items():
        say(f"---- sample {sample}")
        write(tokenizer.decode(tokens, skip_special_tokens=False) + "\n")
