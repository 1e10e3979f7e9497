"""The Hugging Face hub: a dataset's files at a pinned commit, and a tokenizer's. Honours HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE.
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
# How the hub's viewer finds splits when a dataset's card does not say: a word of the path, between separators.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".ndjson", ".txt", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


def endpoint() -> str:
    """Address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when the network fails."""
    from httpx import HTTPError

    return (OSError, HTTPError)


def hub_client() -> Any:
    """A client; the token comes from HF_TOKEN or the login."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def list_dataset(source: SourceConfig) -> tuple[HubSnapshot, Listing]:
    """A dataset repository, and of it the files of one split and subset of `hf://org/name`.

    When it was listed before (`hub_cache`), a commit needs no hub, and any other revision none that answers.
    """
    repo = repo_name(source)
    label = f"dataset {source.name!r}: path={source.path}"
    if repo.count("/") > 1 or not repo:
        raise UserError(f"{label}: write hf://org/name, and choose files with split and subset.")
    kept = load_snapshot(repo, source.revision)
    if kept and kept.commit == source.revision:
        listed = kept
    else:
        try:
            listed = carry_over_formats(fetch_snapshot(hub_client(), repo, source.revision, label), kept)
        except HubUnreachableError as error:
            if kept is None:
                raise
            why = error.problems[0].partition(". ")[0].rstrip(".")
            warn(f"{why}: its files are taken as they were listed before, at commit {kept.commit}.")
            listed = kept
    chosen = select_files(listed.files, listed.card, source, label)
    entries = [FileEntry(path, *listed.files[path]) for path in chosen]
    formats = {path: listed.formats[path] for path in chosen if path in listed.formats}
    return listed, Listing(f"hf://datasets/{repo}@{listed.commit}", entries, strict=False, formats=formats)


def repo_name(source: SourceConfig) -> str:
    """`org/name`."""
    return source.path.removeprefix("hf://").removeprefix("datasets/").strip("/")


def save_listing(source: SourceConfig, listed: HubSnapshot, formats: dict[str, str | None]) -> None:
    """Keep the list of a dataset's files, with the formats that are known now."""
    listed.formats.update(formats)
    save_snapshot(repo_name(source), source.revision, listed)


class HubUnreachableError(UserError):
    """The hub does not answer, or must not be asked."""


def fetch_snapshot(client: Any, repo: str, revision: str | None, label: str) -> HubSnapshot:
    """Commit, files and the card's metadata, from the hub."""
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
        raise UserError(f"{label}: the hub refused: {str(error).splitlines()[0]}") from error
    except network_errors() as error:
        raise HubUnreachableError(
            f"{label}: the hub at {endpoint()} cannot be reached ({type(error).__name__})."
        ) from error
    return HubSnapshot(info.sha, files, card)


def select_files(
    files: dict[str, tuple[int, str | None]], card: dict[str, Any], source: SourceConfig, label: str
) -> list[str]:
    """Paths of the files of a split and subset: as the card's `configs` say, else by folder and file names."""
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
    """Whether a file of a dataset repository may hold documents."""
    name = path.lower()
    for packed in COMPRESSED_SUFFIXES:
        name = name.removesuffix(packed)
    hidden = any(part[0] in "._" for part in path.split("/"))
    return name.endswith(DATA_SUFFIXES) and not hidden and PurePosixPath(path).name != "dataset_infos.json"


def split_patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """{split: patterns} of a card's config; `data_files` may be a pattern, a list, or a list of {split, path}."""
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
    """Whether a path fits a card's pattern; `*` stays inside a folder, `**` does not."""
    pattern = pattern.removeprefix("./").strip("/")
    if not any(c in pattern for c in "*?["):
        return path == pattern or path.startswith(f"{pattern}/")
    return glob_match(path, pattern)


def glob_match(path: str, pattern: str) -> bool:
    """Part by part, `**` being any number of parts."""

    def fits(parts: list[str], wanted: list[str]) -> bool:
        if not wanted:
            return not parts
        if wanted[0] == "**":
            return any(fits(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and fits(parts[1:], wanted[1:])

    return fits(path.split("/"), pattern.split("/"))


def select_by_name(data: list[str], source: SourceConfig, label: str) -> list[str]:
    """The files whose path names the split; when no path names any split, all of them are `train`."""
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
    """Whether one of the words stands alone in the path, as in `data/train-00000.parquet`."""
    text = path.lower()
    for separator in "/-_ ":
        text = text.replace(separator, ".")
    return any(word in text.split(".") for word in words)


def open_remote(url: str, cache_dir: Path | None = None) -> IO[bytes]:
    """Open a file of the hub: from the local cache when it is there, else by reading it in place over the network."""
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    repo, _, rest = url.removeprefix("hf://datasets/").partition("@")
    commit, _, path = rest.partition("/")
    cached = try_to_load_from_cache(repo, path, cache_dir=cache_dir, revision=commit, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached).open("rb")
    return cast(IO[bytes], HfFileSystem(endpoint=endpoint()).open(url, "rb", block_size=BLOCK))


def download_tokenizer(model: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Path of tokenizer.json in the local cache, and its commit. `model` is `org/name` or `org/name@revision`."""
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
            f"{label}: no such file or folder here, and the hub at {endpoint()} has no such model (private? set "
            f"HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{label}: the hub has no such revision.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, HTTPError) as error:
        raise UserError(
            f"{label}: no such file or folder here, and the hub at {endpoint()} cannot be reached. Give a "
            f"folder with tokenizer.json."
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{label}: the hub's copy has no tokenizer.json. Convert it with transformers' save_pretrained."
        )
    return folder / "tokenizer.json", folder.name
