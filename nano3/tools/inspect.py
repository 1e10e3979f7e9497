"""Show what is in prepared data: a summary, or documents decoded back to text."""

import argparse
import sys
from pathlib import Path
from typing import Any

from nano3.console import say, table
from nano3.errors import Failure, UserError, did_you_mean

HELP = "summarise prepared data, or decode documents"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="a folder made by nano3.data_prep")
    parser.add_argument("--doc", type=int, metavar="N", help="decode document N, from 0, of the split (and dataset)")
    parser.add_argument("--count", type=int, default=1, metavar="K", help="decode K documents from N on")
    parser.add_argument("--split", default="train", help="train, valid or test")
    parser.add_argument("--dataset", help="only this dataset of the blend")
    parser.add_argument("--ids", action="store_true", help="show token ids too")
    parser.add_argument(
        "--chars", type=int, default=2000, help="show at most this many characters of each; 0 shows all"
    )


def run(args: argparse.Namespace) -> int:
    from nano3.data.manifest import load_manifest

    manifest = load_manifest(args.data)
    if args.doc is None:
        summary(args.data, manifest)
    else:
        show_documents(args, manifest)
    return 0


def summary(folder: Path, manifest: Any) -> None:
    from nano3.data.progress import report

    say(f"{folder}: plan {manifest.plan_hash[:16]}, {len(manifest.shards)} shards, {manifest.dtype}")
    token = manifest.tokenizer
    say(
        f"tokenizer {token['model']}: {token['vocab_size']:,} ids, end of document {token['eod_token']!r} "
        f"({token['eod_id']})"
    )
    report(manifest, None)


def show_documents(args: argparse.Namespace, manifest: Any) -> None:
    """Decode documents; special tokens are shown."""
    from nano3.data.indexed import IndexedFile

    shards = choose(args, manifest)
    total = sum(s["documents"] for s in shards)
    if not 0 <= args.doc < total:
        raise UserError(f"--doc {args.doc}: {args.split} has documents 0 to {total - 1}.")
    tokenizer = load_tokenizer(args.data / manifest.tokenizer["path"] / "tokenizer.json")
    number = args.doc
    first = 0
    for shard in shards:
        if number < first + shard["documents"]:
            data = IndexedFile(args.data / shard["prefix"])
            while number < first + shard["documents"] and number < args.doc + args.count:
                ids = data.document(number - first).tolist()
                where = f"{shard['prefix']}, document {number - first}"
                table_row = [(args.split, shard["dataset"], number, where, f"{len(ids):,}")]
                table("document", ["split", "dataset", "number", "where", "tokens"], table_row)
                if args.ids:
                    say(" ".join(map(str, ids)))
                text = tokenizer.decode(ids, skip_special_tokens=False)
                cut = args.chars and len(text) > args.chars
                sys.stdout.write((text[: args.chars] if cut else text) + "\n")  # as it is: a console would touch tabs
                if cut:
                    say(f"... {len(text) - args.chars:,} characters more (--chars 0)")
                number += 1
        first += shard["documents"]
        if number >= args.doc + args.count:
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


def choose(args: argparse.Namespace, manifest: Any) -> list[dict[str, Any]]:
    """The shards of the split and dataset asked for."""
    if args.split not in manifest.splits:
        raise UserError(f"--split {args.split}:{did_you_mean(args.split, list(manifest.splits))}")
    names = [d["name"] for d in manifest.datasets]
    if args.dataset is not None and args.dataset not in names:
        raise UserError(f"--dataset {args.dataset}:{did_you_mean(args.dataset, names)}")
    shards = [s for s in manifest.shards if s["split"] == args.split and args.dataset in (None, s["dataset"])]
    if not shards:
        raise UserError(
            f"{args.data}: {args.split} has no documents" + (f" of {args.dataset}" if args.dataset else "") + "."
        )
    return shards
