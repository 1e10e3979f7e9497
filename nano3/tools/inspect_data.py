"""Show the content of prepared data: a summary, or documents decoded to text.

nano3 inspect data
nano3 inspect data --doc 3
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.tools._arguments import at_least, find_data
from nano3.utils.console import say, table, write
from nano3.utils.errors import Failure, UserError, did_you_mean

if TYPE_CHECKING:  # numpy and tokenizers are slow to import
    from tokenizers import Tokenizer

    from nano3.data.dataset.manifest import Manifest, ShardEntry

HELP = "summarize prepared data, or decode documents"
ONLY_SHOWS = True
# Options that need --doc.
DOCUMENT_OPTIONS = ("split", "dataset", "count", "chars", "ids")
MAX_CHARS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("data", help="folder made by nano3.data_prep, or its artifact (NAME:ALIAS)")
    parser.add_argument(
        "--doc", type=at_least(0), metavar="N", help="decode document N of the split (and dataset), counted from 0"
    )
    parser.add_argument("--count", type=at_least(1), metavar="K", help="decode K documents from N on (default: 1)")
    parser.add_argument("--split", help="train, valid or test (default: train)")
    parser.add_argument("--dataset", help="only this dataset of the blend")
    parser.add_argument("--ids", action="store_true", help="also show token ids")
    parser.add_argument(
        "--chars",
        type=at_least(0),
        help=f"show at most this many characters of each document (default: {MAX_CHARS}); 0 shows all",
    )


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    from nano3.data.dataset.manifest import load_manifest

    folder = find_data(args.data)
    manifest = load_manifest(folder)
    if problems := option_problems(args, manifest):
        raise UserError(problems)
    if args.doc is None:
        print_overview(folder, manifest)
    else:
        split = args.split or "train"
        show_documents(folder, manifest, select_shards(folder, manifest, split, args.dataset), args)
    return 0


def option_problems(args: argparse.Namespace, manifest: "Manifest") -> list[str]:
    """Return the problems of the options, given what the data contains."""
    names = [d.name for d in manifest.datasets]
    problems = []
    if args.split is not None and args.split not in manifest.splits:
        problems.append(f"--split {args.split}:{did_you_mean(args.split, list(manifest.splits))}")
    if args.dataset is not None and args.dataset not in names:
        problems.append(f"--dataset {args.dataset}:{did_you_mean(args.dataset, names)}")
    given = [f"--{name}" for name in DOCUMENT_OPTIONS if (v := getattr(args, name)) is not None and v is not False]
    if given and args.doc is None:
        problems.append(f"{', '.join(given)}: only used to show documents. Give the first one: --doc 0")
    return problems


def print_overview(folder: Path, manifest: "Manifest") -> None:
    """Print the plan, the tokenizer and the tables of datasets and splits."""
    from nano3.data.build.progress import print_summary

    say(f"{folder}: plan {manifest.plan_hash[:16]}, {len(manifest.shards)} shards, {manifest.dtype}")
    token = manifest.tokenizer
    say(f"tokenizer {token.model}: {token.vocab_size:,} ids, end of document {token.eod_token!r} ({token.eod_id})")
    print_summary(manifest, None)


def select_shards(folder: Path, manifest: "Manifest", split: str, dataset: str | None) -> list["ShardEntry"]:
    """Return the shards of a split, of one dataset if given; raise UserError if there are none."""
    shards = [s for s in manifest.shards if s.split == split and dataset in (None, s.dataset)]
    if not shards:
        raise UserError(f"{folder}: {split} has no documents" + (f" of {dataset}" if dataset else "") + ".")
    return shards


def show_documents(folder: Path, manifest: "Manifest", shards: list["ShardEntry"], args: argparse.Namespace) -> None:
    """Print documents decoded to text, including special tokens.

    Args:
        folder: Data folder.
        manifest: Its manifest.
        shards: Shards of one split. Documents are numbered across them.
        args: The tool's arguments.

    Raises:
        UserError: There is no document with this number.
        Failure: A shard or the tokenizer cannot be read.
    """
    from nano3.data.dataset.indexed import IndexedFile

    total = sum(s.documents for s in shards)
    if args.doc >= total:
        raise UserError(f"--doc {args.doc}: {shards[0].split} has documents 0 to {total - 1}.")
    tokenizer = load_tokenizer(folder / manifest.tokenizer.path / "tokenizer.json")
    number, end = args.doc, args.doc + (args.count or 1)
    first = 0  # number of the shard's first document
    for shard in shards:
        if number < first + shard.documents:
            indexed = IndexedFile(folder / shard.prefix)
            while number < min(first + shard.documents, end):
                ids = indexed.document(number - first).tolist()
                location = f"{shard.prefix}, document {number - first}"
                cells = (shard.split, shard.dataset, number, location, f"{len(ids):,}")
                table("document", ["split", "dataset", "number", "location", "tokens"], [cells])
                print_text(tokenizer, ids, args)
                number += 1
        first += shard.documents
        if number >= end:
            return


def print_text(tokenizer: "Tokenizer", ids: list[int], args: argparse.Namespace) -> None:
    """Print a document's token ids, if requested, and its text, shortened to --chars."""
    if args.ids:
        say(" ".join(map(str, ids)))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    limit = (MAX_CHARS if args.chars is None else args.chars) or len(text)
    write(text[:limit] + "\n")
    if len(text) > limit:
        say(f"... {len(text) - limit:,} more characters (--chars 0)")


def load_tokenizer(path: Path) -> "Tokenizer":
    """Load the tokenizer that is stored with the data; raise Failure if it is missing or damaged."""
    from tokenizers import Tokenizer

    if not path.exists():
        raise Failure(f"{path}: there is no such file. Run the same nano3.data_prep again: it copies it back.")
    path.open("rb").close()  # a missing permission is no damage
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for an unreadable file
        raise Failure(
            f"{path}: damaged ({error}). Remove it and run the same nano3.data_prep again: it copies it back."
        ) from error
