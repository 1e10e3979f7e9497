"""The Hugging Face hub: list and open the files of a dataset at a pinned commit, and download a tokenizer.

Honors HF_TOKEN, HF_ENDPOINT, and HF_HUB_OFFLINE.
"""

import fnmatch
import os
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from nano3.config import SourceConfig
from nano3.data.sources.hub_cache import HubSnapshot, carry_over_formats, load_snapshot, save_snapshot
from nano3.data.sources.listing import FileEntry, Listing
from nano3.utils.console import warn
from nano3.utils.errors import UserError

BLOCK = 8 << 20
# Words in a path that name a split if the dataset's card does not; the same as in the hub's data viewer.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Fewer suffixes than in `formats.FORMATS`: a repository holds code and documentation too.
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".ndjson", ".txt", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the hub's client raises if the network fails."""
    from httpx import HTTPError

    return (OSError, HTTPError)


def hub_client() -> Any:
    """Return a client of the hub, with the token from HF_TOKEN or the login."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def list_dataset(source: SourceConfig) -> tuple[HubSnapshot, Listing]:
    """List the files of one split and subset of a dataset `hf://org/name`.

    If the files were listed before (see `hub_cache`), a commit is not requested from the hub again, and any other
    revision falls back to the earlier list if the hub cannot be reached.

    Returns:
        The whole repository, and the listing of the selected files.

    Raises:
        UserError: The path, revision, split, or subset is wrong, or the hub cannot be reached.
    """
    repo = repo_name(source)
    label = f"dataset {source.name!r}: path={source.path}"
    if repo.count("/") > 1 or not repo:
        raise UserError(f"{label}: write hf://org/name, and select files with split and subset.")
    saved = load_snapshot(repo, source.revision)
    if saved and saved.commit == source.revision:
        snapshot = saved
    else:
        try:
            snapshot = carry_over_formats(fetch_snapshot(hub_client(), repo, source.revision, label), saved)
        except HubUnreachableError as error:
            if saved is None:
                raise
            reason = error.problems[0].partition(". ")[0].rstrip(".")
            warn(f"{reason}: using its saved list of files, at commit {saved.commit}.")
            snapshot = saved
    selected = select_files(snapshot.files, snapshot.card, source, label)
    entries = [FileEntry(path, *snapshot.files[path]) for path in selected]
    formats = {path: snapshot.formats[path] for path in selected if path in snapshot.formats}
    return snapshot, Listing(f"hf://datasets/{repo}@{snapshot.commit}", entries, strict=False, formats=formats)


def repo_name(source: SourceConfig) -> str:
    """Return `org/name` of a dataset's path."""
    return source.path.removeprefix("hf://").removeprefix("datasets/").strip("/")


def save_listing(source: SourceConfig, snapshot: HubSnapshot, formats: dict[str, str | None]) -> None:
    """Save the list of a dataset's files in the hub's local cache.

    Args:
        source: The dataset.
        snapshot: Its files.
        formats: Formats of the selected files, by path; None for a file without text.
    """
    snapshot.formats.update(formats)
    save_snapshot(repo_name(source), source.revision, snapshot)


class HubUnreachableError(UserError):
    """The hub does not answer, or HF_HUB_OFFLINE forbids requests."""


def fetch_snapshot(client: Any, repo: str, revision: str | None, label: str) -> HubSnapshot:
    """Request the commit, the files, and the card of a dataset from the hub.

    Args:
        client: An `HfApi`.
        repo: `org/name`.
        revision: Branch, tag, or commit; None for the default branch.
        label: Start of error messages.

    Raises:
        HubUnreachableError: The hub cannot be reached.
        UserError: There is no such dataset or revision, or the hub rejected the request.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = client.dataset_info(repo, revision=revision)
        tree = client.list_repo_tree(repo, repo_type="dataset", revision=info.sha, recursive=True)
        files = {
            item.path: (item.size, item.lfs.sha256 if item.lfs else item.blob_id)
            for item in tree
            if hasattr(item, "size")
        }
        card = info.card_data.to_dict() if info.card_data else {}
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{label}: the hub at {endpoint()} has no such dataset, or it is private: set HF_TOKEN to a token "
            f"that may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{label}: no revision {revision!r}. Name a branch, tag or commit of the dataset.") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(f"{label}: HF_HUB_OFFLINE is set. Unset it, or point path at local files.") from error
    except HfHubHTTPError as error:
        raise UserError(f"{label}: the hub rejected the request: {str(error).splitlines()[0]}") from error
    except network_errors() as error:
        raise HubUnreachableError(
            f"{label}: the hub at {endpoint()} cannot be reached ({type(error).__name__})."
        ) from error
    return HubSnapshot(info.sha, files, card)


def select_files(
    files: dict[str, tuple[int, str | None]], card: dict[str, Any], source: SourceConfig, label: str
) -> list[str]:
    """Return the paths of the files of one split and subset.

    The card's `configs` define them, or else the names of folders and files.

    Args:
        files: The repository's files: {path: (bytes, hash)}.
        card: Metadata of the dataset card.
        source: Names the split and the subset.
        label: Start of error messages.

    Raises:
        UserError: There is no such split or subset.
    """
    data = sorted(path for path in files if may_hold_documents(path))
    configs = {c.get("config_name", "default"): c for c in card.get("configs") or [] if isinstance(c, dict)}
    if configs:
        wanted = source.subset or ("default" if "default" in configs else None)
        if wanted is None and len(configs) == 1:
            wanted = next(iter(configs))
        if wanted not in configs:
            allowed = ", ".join(sorted(configs))
            raise UserError(f"{label}: subset={source.subset} is not one of its subsets: {allowed}.")
        patterns = split_patterns(configs[wanted])
        if patterns:
            if source.split not in patterns:
                raise UserError(f"{label}: split={source.split} is not one of its splits: {', '.join(patterns)}.")
            return [path for path in data if any(matches_pattern(path, p) for p in patterns[source.split])]
        folder = configs[wanted].get("data_dir")
        data = [path for path in data if not folder or path.startswith(f"{folder.strip('/')}/")]
    elif source.subset:
        inside = [path for path in data if source.subset in PurePosixPath(path).parts[:-1]]
        if not inside:
            folders = sorted({PurePosixPath(path).parts[0] for path in data if "/" in path})
            raise UserError(
                f"{label}: subset={source.subset}: no such folder. Folders: {', '.join(folders) or 'none'}."
            )
        data = inside
    return select_by_name(data, source, label)


def may_hold_documents(path: str) -> bool:
    """Return whether a file of a dataset repository has a data suffix and is not hidden."""
    name = path.lower()
    for packed in COMPRESSED_SUFFIXES:
        name = name.removesuffix(packed)
    hidden = any(part[0] in "._" for part in path.split("/"))
    return name.endswith(DATA_SUFFIXES) and not hidden and PurePosixPath(path).name != "dataset_infos.json"


def split_patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """Return {split: patterns} of one entry of a card's `configs`.

    `data_files` may be a pattern, a list of patterns, or a list of {split, path}. See "Data files Configuration" in
    the hub's documentation.
    """
    given = config.get("data_files")
    if not given:
        return {}
    if isinstance(given, str):
        return {"train": [given]}
    found: dict[str, list[str]] = {}
    for item in given:
        split, paths = ("train", item) if isinstance(item, str) else (item.get("split", "train"), item.get("path", []))
        found.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
    return found


def matches_pattern(path: str, pattern: str) -> bool:
    """Return whether a path matches a card's pattern, in which `*` matches within a folder and `**` across folders."""
    pattern = pattern.removeprefix("./").strip("/")
    if not any(c in pattern for c in "*?["):
        return path == pattern or path.startswith(f"{pattern}/")
    return glob_match(path, pattern)


def glob_match(path: str, pattern: str) -> bool:
    """Match name by name; `**` matches any number of names."""

    def match(names: list[str], patterns: list[str]) -> bool:
        if not patterns:
            return not names
        if patterns[0] == "**":
            return any(match(names[i:], patterns[1:]) for i in range(len(names) + 1))
        return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and match(names[1:], patterns[1:])

    return match(path.split("/"), pattern.split("/"))


def select_by_name(data: list[str], source: SourceConfig, label: str) -> list[str]:
    """Return the files whose path names the split. If no path names any split, all files are `train`.

    Args:
        data: Paths of data files.
        source: Names the split.
        label: Start of error messages.

    Raises:
        UserError: No file belongs to the split.
    """
    named: dict[str, list[str]] = {}
    for path in data:
        for split in (*SPLIT_WORDS, source.split):
            if names_split(path, SPLIT_WORDS.get(split, (split,))):
                named.setdefault(split, []).append(path)
                break
    wanted = next((s for s, words in SPLIT_WORDS.items() if source.split in words), source.split)
    if not named and wanted == "train":
        return data
    if wanted not in named:
        raise UserError(f"{label}: split={source.split}: no such split. Splits: {', '.join(sorted(named)) or 'train'}.")
    return named[wanted]


def names_split(path: str, words: tuple[str, ...]) -> bool:
    """Return whether a path contains one of the words between separators, as in `data/train-00000.parquet`."""
    text = path.lower()
    for separator in "/-_ ":
        text = text.replace(separator, ".")
    return any(word in text.split(".") for word in words)


def open_remote(url: str, cache_dir: Path | None = None) -> IO[bytes]:
    """Open a file of the hub from the local cache, or over the network if it is not cached.

    Args:
        url: `hf://datasets/org/name@commit/path`.
        cache_dir: The local cache; None for the default.
    """
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    repo, _, rest = url.removeprefix("hf://datasets/").partition("@")
    commit, _, path = rest.partition("/")
    cached = try_to_load_from_cache(repo, path, cache_dir=cache_dir, revision=commit, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached).open("rb")
    return cast(IO[bytes], HfFileSystem(endpoint=endpoint()).open(url, "rb", block_size=BLOCK))


def download_tokenizer(model: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Download a tokenizer into the local cache, unless it is there.

    Args:
        model: `org/name` or `org/name@revision`.
        names: Files to download.

    Returns:
        Path of tokenizer.json in the local cache, and its commit.

    Raises:
        UserError: There is no such model or revision, it has no tokenizer.json, or the hub cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = model.partition("@")
    label = f"tokenizer_model={model}"
    try:
        folder = Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(names), endpoint=endpoint())
        )
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{label}: no such local file or folder, and the hub at {endpoint()} has no such model, or it is "
            f"private: set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{label}: the hub has no such revision.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, HTTPError) as error:
        raise UserError(
            f"{label}: no such local file or folder, and the hub at {endpoint()} cannot be reached. Set it to "
            f"a folder with tokenizer.json."
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{label}: the hub's copy has no tokenizer.json. Convert it with save_pretrained of transformers."
        )
    return folder / "tokenizer.json", folder.name
