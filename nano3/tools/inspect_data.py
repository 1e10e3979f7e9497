"""Show what is in prepared data: a summary, or documents decoded back to text.

nano3 inspect data
nano3 inspect data --doc 3
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.tools._arguments import at_least
from nano3.tools._folders import data_folder
from nano3.utils.console import say, table
from nano3.utils.errors import Failure, UserError, did_you_mean

if TYPE_CHECKING:  # imports numpy
    from nano3.data.dataset.manifest import Manifest, ShardEntry

NAME = "inspect"
HELP = "summarise prepared data, or decode documents"
OF_A_DOCUMENT = ("split", "dataset", "count", "chars", "ids")
MOST_CHARS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder made by nano3.data_prep, or its artifact (NAME:ALIAS)")
    parser.add_argument(
        "--doc", type=at_least(0), metavar="N", help="decode document N, from 0, of the split (and dataset)"
    )
    parser.add_argument("--count", type=at_least(1), metavar="K", help="decode K documents from N on (1)")
    parser.add_argument("--split", help="train, valid or test (train)")
    parser.add_argument("--dataset", help="only this dataset of the blend")
    parser.add_argument("--ids", action="store_true", help="show token ids too")
    parser.add_argument(
        "--chars", type=at_least(0), help="show at most this many characters of each (2000); 0 shows all"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.dataset.manifest import load_manifest

    folder = data_folder(args.data)
    manifest = load_manifest(folder)
    if problems := wrong_choices(args, manifest):
        raise UserError(problems)
    if args.doc is None:
        summary(folder, manifest)
    else:
        split = args.split or "train"
        show_documents(folder, manifest, split, choose(folder, manifest, split, args.dataset), args)
    return 0


def wrong_choices(args: argparse.Namespace, manifest: "Manifest") -> list[str]:
    """What is wrong with the options, seen against what the data holds."""
    names = [d.name for d in manifest.datasets]
    problems = []
    if args.split is not None and args.split not in manifest.splits:
        problems.append(f"--split {args.split}:{did_you_mean(args.split, list(manifest.splits))}")
    if args.dataset is not None and args.dataset not in names:
        problems.append(f"--dataset {args.dataset}:{did_you_mean(args.dataset, names)}")
    given = [f"--{name}" for name in OF_A_DOCUMENT if (v := getattr(args, name)) is not None and v is not False]
    if given and args.doc is None:
        problems.append(f"{', '.join(given)}: chooses among documents or shows them; say from which on: --doc 0")
    return problems


def summary(folder: Path, manifest: "Manifest") -> None:
    from nano3.data.build.progress import print_summary

    say(f"{folder}: plan {manifest.plan_hash[:16]}, {len(manifest.shards)} shards, {manifest.dtype}")
    token = manifest.tokenizer
    say(f"tokenizer {token.model}: {token.vocab_size:,} ids, end of document {token.eod_token!r} ({token.eod_id})")
    print_summary(manifest, None)


def show_documents(
    folder: Path, manifest: "Manifest", split: str, shards: list["ShardEntry"], args: argparse.Namespace
) -> None:
    """Decode documents; special tokens are shown."""
    from nano3.data.dataset.indexed import IndexedFile

    total = sum(s.documents for s in shards)
    if args.doc >= total:
        raise UserError(f"--doc {args.doc}: {split} has documents 0 to {total - 1}.")
    end = args.doc + (args.count or 1)
    most = MOST_CHARS if args.chars is None else args.chars
    tokenizer = load_tokenizer(folder / manifest.tokenizer.path / "tokenizer.json")
    number = args.doc
    first = 0
    for shard in shards:
        if number < first + shard.documents:
            data = IndexedFile(folder / shard.prefix)
            while number < first + shard.documents and number < end:
                ids = data.document(number - first).tolist()
                where = f"{shard.prefix}, document {number - first}"
                table_row = [(split, shard.dataset, number, where, f"{len(ids):,}")]
                table("document", ["split", "dataset", "number", "where", "tokens"], table_row)
                if args.ids:
                    say(" ".join(map(str, ids)))
                text = tokenizer.decode(ids, skip_special_tokens=False)
                cut = most and len(text) > most
                sys.stdout.write((text[:most] if cut else text) + "\n")  # as it is: a console would touch tabs
                if cut:
                    say(f"... {len(text) - most:,} characters more (--chars 0)")
                number += 1
        first += shard.documents
        if number >= end:
            return


def load_tokenizer(path: Path) -> Any:
    """The data's own copy of the tokenizer."""
    from tokenizers import Tokenizer

    if not path.exists():
        raise Failure(f"{path}: there is no such file. Run the same nano3.data_prep again: it copies it back.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise Failure(
            f"{path}: damaged ({error}). Remove it and run the same nano3.data_prep again: it copies it back."
        ) from error


def choose(folder: Path, manifest: "Manifest", split: str, dataset: str | None) -> list["ShardEntry"]:
    """The shards of the split and dataset asked for."""
    shards = [s for s in manifest.shards if s.split == split and dataset in (None, s.dataset)]
    if not shards:
        raise UserError(f"{folder}: {split} has no documents" + (f" of {dataset}" if dataset else "") + ".")
    return shards
