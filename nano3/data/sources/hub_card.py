"""Select the files of a subset and a split of a hub dataset, as the `datasets` library does.

The dataset card's `configs` define subsets ("configurations"), and their `data_files` the splits. Without
`data_files`, the names of folders and files do. See "Manual Configuration" and "File names and splits" in the hub's
documentation, and `data_files.py` and `utils/metadata.py` of `datasets` 5.2.

There are four differences. A file that two patterns of a split match is read once. A pattern may name a folder.
`subset` may name a folder if there is no card. And files of all readable formats are read, not only those of the most
common format.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from nano3.data.sources.formats import SUPPORTED
from nano3.data.sources.hub_path import HubPath
from nano3.utils.console import warn
from nano3.utils.errors import UserError, list_some

# Fewer suffixes than in `formats.FORMATS`: a repository holds code and documentation too.
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".ndjson", ".txt", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
# Suffixes of text that `datasets` reads and nano3 does not.
UNREAD_SUFFIXES = (
    *(".csv", ".tsv", ".xml", ".tar", ".zip", ".h5", ".hdf5", ".lance", ".vortex", ".geoparquet", ".gpq"),
    *(".conll", ".conllu", ".eval", ".pdf"),
)
# Files that only a pattern with their name selects.
IGNORED_NAMES = frozenset(
    ("README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json")
)

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATORS = "-._ 0-9"
SHARD = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*"  # as `push_to_hub` names files
SHARD_NAME = re.compile(r"(.+)-[0-9]{5}-of-[0-9]{5}")
SPLIT_NAME = re.compile(r"^\w+(\.\w+)*$")
FOLDER_PATTERNS = ("**/{word}/**", "**/{word}[{sep}]*/**", "**/*[{sep}]{word}/**", "**/*[{sep}]{word}[{sep}]*/**")
FILE_PATTERNS = ("**/{word}[{sep}]*", "**/*[{sep}]{word}[{sep}]*")
PARQUET_COPY = "The hub keeps a copy of most datasets as parquet: set revision=refs/convert/parquet and subset=FOLDER"


def select_files(
    paths: Iterable[str], card: dict[str, Any], wanted: HubPath, subset: str | None, split: str, label: str
) -> list[str]:
    """Return the paths of the files of one split and subset, sorted.

    Args:
        paths: All files of the repository.
        card: Metadata of the dataset card.
        wanted: The dataset, and what of it the user's path selects.
        subset: Name of the subset; None for the default.
        split: Name of the split.
        label: Start of error messages.

    Raises:
        UserError: There is no such split or subset, the card is malformed, or the files cannot be read by nano3.
    """
    files = sorted(paths)
    if wanted.inside:
        if subset:
            raise UserError(f"{label}: subset={subset} cannot be combined with a path in the repository.")
        if wanted.inside in files:
            check_split(split, ["train"], label)
            return [wanted.inside]
        if has_magic(wanted.inside):
            return readable_files(resolve(files, {"train": [wanted.inside]}, "", split, label), label)
        if not any(path.startswith(f"{wanted.inside}/") for path in files):
            raise UserError(f"{label}: the repository has no file or folder {wanted.inside!r}.")
        return readable_files(resolve(files, None, wanted.inside, split, label), label)
    script = f"{wanted.repo.rpartition('/')[2]}.py"
    if script in files:
        raise UserError(
            f"{label}: a loading script, {script}, defines the dataset. Scripts are not run. {PARQUET_COPY}."
        )
    configs = read_configs(card, label)
    if configs:
        config = configs[choose_config(configs, subset, label)]
        splits = split_patterns(config.get("data_files"), label)
        folder = str(config.get("data_dir") or "")
        return readable_files(resolve(files, splits, folder, split, label), label)
    if subset and subset != "default":
        inside = [path for path in files if subset in PurePosixPath(path).parts[:-1]]
        if not inside:
            folders = sorted(
                {PurePosixPath(path).parts[0] for path in filter(may_hold_documents, files) if "/" in path}
            )
            raise UserError(f"{label}: subset={subset}: no such folder. Folders: {list_some(folders)}.")
        files = inside
    return readable_files(resolve(files, None, "", split, label), label)


def may_hold_documents(path: str) -> bool:
    """Return whether a file of a dataset repository has the suffix of a format that nano3 reads."""
    for packed in COMPRESSED_SUFFIXES:
        path = path.removesuffix(packed)
    return path.endswith(DATA_SUFFIXES)


def readable_files(paths: list[str], label: str) -> list[str]:
    """Return the files of a split that nano3 can read, and warn about the others that hold text.

    Args:
        paths: Files of the split.
        label: Start of error messages.

    Raises:
        UserError: nano3 can read none of them, or `save_to_disk` wrote them.
    """
    if saved := [p for p in paths if posixpath.basename(p) == "state.json"]:
        raise UserError(
            f"{label}: save_to_disk wrote these files ({saved[0]}). Download the repository and set path to the local "
            f"folder, or upload the dataset with push_to_hub."
        )
    good = [path for path in paths if may_hold_documents(path)]
    left_out = [path for path in paths if path.endswith(UNREAD_SUFFIXES)]
    if not good:
        suffixes = sorted({PurePosixPath(path).suffix or "no suffix" for path in left_out or paths})
        raise UserError(
            f"{label}: the files of this split are not of a format that is read ({', '.join(suffixes)}). Formats: "
            f"{SUPPORTED}. {PARQUET_COPY}."
        )
    if left_out:
        warn(f"{label}: {len(left_out)} file(s) of formats that are not read left out: {list_some(left_out, 3)}")
    return good


# The card


def read_configs(card: dict[str, Any], label: str) -> dict[str, dict[str, Any]]:
    """Return the `configs` of a dataset card by name.

    Args:
        card: Metadata of the dataset card.
        label: Start of error messages.

    Raises:
        UserError: They are malformed.
    """
    entries = card.get("configs") or []
    if not isinstance(entries, list) or not all(isinstance(c, dict) and "config_name" in c for c in entries):
        raise UserError(f"{label}: the dataset card's `configs` is not a list of entries with a config_name.")
    return {str(entry["config_name"]): entry for entry in entries}


def choose_config(configs: dict[str, dict[str, Any]], subset: str | None, label: str) -> str:
    """Return the name of the subset to read.

    Without `subset`, this is the only one, the one named "default", or the one with `default: true`.

    Args:
        configs: The card's `configs` by name.
        subset: What the user asked for, or None.
        label: Start of error messages.

    Raises:
        UserError: There is no such subset, or no single default.
    """
    allowed = list_some(sorted(configs))
    if subset is not None:
        if subset not in configs:
            raise UserError(f"{label}: subset={subset} is not one of its subsets: {allowed}.")
        return subset
    defaults = [name for name, c in configs.items() if len(configs) == 1 or name == "default" or c.get("default")]
    if len(defaults) > 1:
        raise UserError(f"{label}: the dataset card has several default subsets: {', '.join(defaults)}. Set subset.")
    if not defaults:
        raise UserError(
            f"{label}: the dataset card names no default subset. Set subset to one of its subsets: {allowed}."
        )
    return defaults[0]


def split_patterns(data_files: Any, label: str) -> dict[str, list[str]] | None:
    """Return {split: patterns} of `data_files` of a card's entry, or None if it has none.

    Args:
        data_files: A pattern, a list of patterns, a list of {split, path}, or {split: pattern or list of patterns}.
        label: Start of error messages.

    Raises:
        UserError: It is none of these.
    """
    if data_files is None:
        return None
    if isinstance(data_files, str):
        return {"train": [data_files]}
    pairs: Sequence[tuple[Any, Any]] = []
    if isinstance(data_files, dict):
        pairs = list(data_files.items())
    elif isinstance(data_files, list) and all(isinstance(item, str) for item in data_files):
        pairs = [("train", data_files)]
    elif isinstance(data_files, list) and all(isinstance(i, dict) and set(i) == {"split", "path"} for i in data_files):
        pairs = [(item["split"], item["path"]) for item in data_files]
    found: dict[str, list[str]] = {}
    for split, value in pairs:
        patterns = [value] if isinstance(value, str) else value
        valid = isinstance(split, str) and SPLIT_NAME.match(split) and split not in found
        if not valid or not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            pairs = []
            break
        found[split] = patterns
    if not pairs:
        raise UserError(
            f"{label}: the dataset card's data_files is malformed: {str(data_files)[:200]}. Allowed are a pattern, a "
            f"list of patterns, and a list of {{split, path}} with different splits."
        )
    return found


# Patterns


def resolve(files: list[str], splits: dict[str, list[str]] | None, folder: str, split: str, label: str) -> list[str]:
    """Return the files of a split, sorted.

    Args:
        files: Files of the repository.
        splits: {split: patterns relative to `folder`}; None to infer the splits from the names in `folder`.
        folder: Folder of the files, or "".
        split: Name of the split. If splits are inferred, it may be any of `SPLIT_WORDS`.
        label: Start of error messages.

    Raises:
        UserError: There is no such split or it has no files, or a pattern is malformed.
    """
    if splits is None:
        splits = infer_splits(files, folder, label)
        if split not in splits:
            split = next((name for name, words in SPLIT_WORDS.items() if split in words), split)
    check_split(split, list(splits), label)
    found: set[str] = set()
    for pattern in splits[split]:
        found.update(match_files(files, folder, pattern, label))
    if not found:
        raise UserError(f"{label}: split={split}: no file matches {', '.join(splits[split])}.")
    return sorted(found)


def check_split(split: str, allowed: list[str], label: str) -> None:
    """Raise UserError if a split is not one of the allowed ones.

    Args:
        split: What the user asked for.
        allowed: Names of the splits.
        label: Start of error messages.
    """
    if split not in allowed:
        names = list_some(allowed)
        hint = " Sums and slices of splits are not read." if re.search(r"[+\[]", split) else ""
        raise UserError(f"{label}: split={split} is not one of its splits: {names}.{hint}")


def infer_splits(files: list[str], folder: str, label: str) -> dict[str, list[str]]:
    """Return {split: patterns} from the names of files and folders.

    These rules are tried in order: files `data/SPLIT-00000-of-00001.*`; folders named like a split; files named like a
    split; everything is `train`.

    Args:
        files: Files of the repository.
        folder: Only files in this folder count; "" for all.
        label: Start of error messages.

    Raises:
        UserError: There are no files, or the name of a split is malformed.
    """
    if shards := match_files(files, folder, f"data/*{SHARD}", label):
        names = {m.group(1) for path in shards if (m := SHARD_NAME.search(posixpath.basename(path)))}
        if wrong := sorted(name for name in names if not SPLIT_NAME.match(name)):
            raise UserError(
                f"{label}: {list_some(wrong)}, in file names such as {shards[0]}, cannot be the name of a split. "
                f"Select files with a path: hf://org/name/data/*.parquet."
            )
        known = [name for name in SPLIT_WORDS if name in names]
        return {name: [f"data/{name}{SHARD}"] for name in (*known, *sorted(names - set(known)))}
    for templates in (FOLDER_PATTERNS, FILE_PATTERNS):
        found = {}
        for split, words in SPLIT_WORDS.items():
            patterns = [t.format(word=word, sep=SEPARATORS) for word in words for t in templates]
            candidates = [path for path in files if any(word in path for word in words)]
            if any(match_files(candidates, folder, pattern, label) for pattern in patterns):
                found[split] = patterns
        if found:
            return found
    if not match_files(files, folder, "**", label):
        raise UserError(f"{label}: there are no data files{f' in {folder}' if folder else ''}.")
    return {"train": ["**"]}


def has_magic(pattern: str) -> bool:
    """Return whether a pattern contains wildcards."""
    return any(c in pattern for c in "*?[")


def match_files(files: list[str], folder: str, pattern: str, label: str) -> list[str]:
    """Return the files that match a pattern in a folder.

    `*` matches within a name, and `**` any number of folders. Hidden files and folders, and folders beginning with two
    underscores, match only a pattern in which such a name occurs. A folder's name matches all files in the folder.

    Args:
        files: Files of the repository.
        folder: Folder that the pattern is relative to, or "".
        pattern: The pattern.
        label: Start of error messages.

    Raises:
        UserError: The pattern leads out of the repository, or `**` is not a whole name.
    """
    from fsspec.utils import glob_translate

    if "://" in pattern or "::" in pattern or pattern.startswith("/") or ".." in f"{folder}/{pattern}".split("/"):
        raise UserError(
            f"{label}: the pattern {pattern!r} leads out of the repository. Select files with a path: "
            f"hf://org/name/folder or hf://org/name/*.parquet."
        )
    parts = [part for part in posixpath.join(folder, pattern).split("/") if part not in ("", ".")]
    whole = "/".join(parts)
    if not has_magic(whole) and whole not in files:
        parts.append("**")
        whole = "/".join(parts)
    if not has_magic(whole):
        found = [whole]
    elif any("**" in part and part != "**" for part in parts):
        raise UserError(f"{label}: in the pattern {pattern!r}, ** is not a whole name between slashes.")
    else:
        match = re.compile(glob_translate(whole)).match
        found = [path for path in files if match(path)]
    ignored = IGNORED_NAMES - {parts[-1]}
    hidden = count_hidden(whole)
    return [path for path in found if posixpath.basename(path) not in ignored and count_hidden(path) == hidden]


def count_hidden(path: str) -> tuple[int, int]:
    """Return the number of hidden names in a path, and of folders beginning with two underscores."""
    if "/." not in path and "__" not in path and path[:1] != ".":  # the fast path: there may be 10^5 files
        return 0, 0
    names = path.split("/")
    hidden = sum(name.startswith(".") and set(name) != {"."} for name in names)
    return hidden, sum(name.startswith("__") for name in names[:-1])
