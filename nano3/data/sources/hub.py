"""The Hugging Face hub: list and open the files of a dataset at a pinned commit, and download a tokenizer.

Honors HF_TOKEN, HF_ENDPOINT, and HF_HUB_OFFLINE.
"""

import os
from pathlib import Path
from typing import IO, Any, cast

from nano3.config import SourceConfig
from nano3.data.sources.hub_cache import (
    HubSnapshot,
    carry_over_formats,
    load_snapshot,
    network_errors,
    save_snapshot,
)
from nano3.data.sources.hub_card import select_files
from nano3.data.sources.hub_path import parse_hub_path, parse_model_id
from nano3.data.sources.listing import FileEntry, Listing
from nano3.utils.console import warn
from nano3.utils.errors import UserError

CARD_FILE = ".huggingface.yaml"  # values that replace those of the card, as in the datasets library
BLOCK = 8 << 20


def endpoint() -> str:
    """Return the address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_client() -> Any:
    """Return a client of the hub, with the token from HF_TOKEN or the login."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def list_dataset(source: SourceConfig) -> tuple[HubSnapshot, Listing]:
    """List the files of one split and subset of a dataset `hf://org/name`, or those that a longer path selects.

    If the files were listed before (see `hub_cache`), a commit is not requested from the hub again, and any other
    revision falls back to the earlier list if the hub cannot be reached.

    Returns:
        The whole repository, and the listing of the selected files.

    Raises:
        UserError: The path, revision, split, or subset is wrong, or the hub cannot be reached.
    """
    label = f"dataset {source.name!r}: path={source.path}"
    wanted = parse_hub_path(source.path, source.revision, label)
    repo, revision = wanted.repo, wanted.revision
    saved = load_snapshot(repo, revision)
    if saved and saved.commit == revision:
        snapshot = saved
    else:
        try:
            snapshot = carry_over_formats(fetch_snapshot(hub_client(), repo, revision, label), saved)
        except HubUnreachableError as error:
            if saved is None:
                raise
            reason = error.problems[0].partition(". ")[0].rstrip(".")
            warn(f"{reason}: using its saved list of files, at commit {saved.commit}.")
            snapshot = saved
    selected = select_files(snapshot.files, snapshot.card, wanted, source.subset, source.split, label)
    entries = [FileEntry(path, *snapshot.files[path]) for path in selected]
    formats = {path: snapshot.formats[path] for path in selected if path in snapshot.formats}
    return snapshot, Listing(
        f"hf://datasets/{repo}@{snapshot.commit}", entries, strict=selected == [wanted.inside], formats=formats
    )


def save_listing(source: SourceConfig, snapshot: HubSnapshot, formats: dict[str, str | None]) -> None:
    """Save the list of a dataset's files in the hub's local cache.

    Args:
        source: The dataset.
        snapshot: Its files.
        formats: Formats of the selected files, by path; None for a file without text.
    """
    snapshot.formats.update(formats)
    wanted = parse_hub_path(source.path, source.revision, f"dataset {source.name!r}: path={source.path}")
    save_snapshot(wanted.repo, wanted.revision, snapshot)


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
        if CARD_FILE in files:
            with open_remote(f"hf://datasets/{repo}@{info.sha}/{CARD_FILE}") as f:
                card.update(parse_card_file(f.read(), label))
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


def parse_card_file(content: bytes, label: str) -> dict[str, Any]:
    """Return the values in a `.huggingface.yaml`, which replace those of the dataset card.

    Args:
        content: The file.
        label: Start of error messages.

    Raises:
        UserError: It is not a YAML mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{label}: its {CARD_FILE} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values or {}, dict):
        raise UserError(f"{label}: its {CARD_FILE} holds a {type(values).__name__}, not keys and values.")
    return values or {}


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
        UserError: The id is malformed, there is no such model or revision, it has no tokenizer.json, or the hub cannot
            be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    label = f"tokenizer_model={model}"
    repo, revision = parse_model_id(model, label)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(names), endpoint=endpoint()))
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{label}: no such local file or folder, and the hub at {endpoint()} has no such model, or it is "
            f"private: set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{label}: the hub has no such revision.") from error
    except network_errors() as error:
        raise UserError(
            f"{label}: no such local file or folder, and the hub at {endpoint()} cannot be reached. Set it to "
            f"a folder with tokenizer.json."
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{label}: the hub's copy has no tokenizer.json. Convert it with save_pretrained of transformers."
        )
    return folder / "tokenizer.json", folder.name
