"""Parse paths `hf://org/name@revision/path` of datasets on the Hugging Face hub, and ids of its models."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from nano3.utils.errors import UserError

SCHEME = "hf://"
# Every other kind of repository that an hf:// path may name, by its prefix.
OTHER_REPOS = {"models": "model", "spaces": "space", "kernels": "kernel", "buckets": "bucket"}
# Revisions with a slash. See "HF URIs" in the documentation of huggingface_hub.
SPECIAL_REVISION = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
NAME = re.compile(r"\b[\w.-]{1,96}\b", re.ASCII)
ALLOWED = (
    "Write hf://org/name, hf://org/name@revision, or hf://org/name@revision/path/in/repository, optionally with "
    "datasets/ before org"
)
ALLOWED_MODELS = "Write a folder with tokenizer.json, the path of a tokenizer.json, or org/name or org/name@revision"


@dataclass(frozen=True)
class HubPath:
    """A dataset repository, or files in it.

    Attributes:
        repo: `org/name`.
        revision: Branch, tag, or commit; None for the default branch.
        inside: File, folder, or glob in the repository; "" for all of it.
    """

    repo: str
    revision: str | None
    inside: str = ""


def parse_hub_path(path: str, revision: str | None, label: str) -> HubPath:
    """Parse a path as the hub's own tools do, except that `datasets/` may be left out.

    A slash in a revision is written as %2F, except in refs/pr/N and refs/convert/NAME.

    Args:
        path: `hf://[datasets/]org/name[@revision][/path]`.
        revision: Revision that is configured apart from the path.
        label: Start of error messages.

    Raises:
        UserError: The path is malformed, or names another revision than `revision`.
    """
    body = path.removeprefix(SCHEME)
    first, _, rest = body.partition("/")
    if first in OTHER_REPOS or first in OTHER_REPOS.values():
        kind = OTHER_REPOS.get(first, first)
        raise UserError(f"{label}: a {kind} repository; only datasets are read. {ALLOWED}.")
    if first == "dataset":
        raise UserError(f"{label}: the prefix is datasets/, not dataset/. {ALLOWED}.")
    body = (rest if first == "datasets" else body).removesuffix("/")
    org, _, rest = body.partition("/")
    name = re.split("[@/]", rest, maxsplit=1)[0]
    if not org or not name:
        raise UserError(f"{label}: the owner or the name of the dataset is missing. {ALLOWED}.")
    check_repo_name([org, name], label, ALLOWED)
    rest = rest[len(name) :]
    found = None
    if rest.startswith("@"):
        special = SPECIAL_REVISION.match(rest, 1)
        raw = special.group() if special else rest[1:].partition("/")[0]
        rest = rest[1 + len(raw) :]
        found = unquote(raw)
        if not found:
            raise UserError(f"{label}: no revision after @. {ALLOWED}.")
    inside = rest.removeprefix("/")
    if inside and not all(part and set(part) != {"."} for part in inside.split("/")):
        raise UserError(f"{label}: the path in the repository contains an empty name, `.`, or `..`. {ALLOWED}.")
    if found and revision and found != revision:
        raise UserError(f"{label}: the path names revision {found!r}, but revision={revision}. Remove one of them.")
    return HubPath(f"{org}/{name}", found or revision, inside)


def parse_model_id(model: str, label: str) -> tuple[str, str | None]:
    """Parse the id of a model on the hub.

    Args:
        model: `org/name`, or `name` for some old models, with `@revision` if not the default branch is meant.
        label: Start of error messages.

    Returns:
        The repository and the revision.

    Raises:
        UserError: The id is malformed.
    """
    repo, mark, revision = model.partition("@")
    words = repo.split("/")
    if len(words) > 2 or not all(words):
        raise UserError(
            f"{label}: no such local file or folder, and not the id of a model on the hub. {ALLOWED_MODELS}."
        )
    if mark and not revision:
        raise UserError(f"{label}: no revision after @. {ALLOWED_MODELS}.")
    check_repo_name(words, label, ALLOWED_MODELS)
    return repo, revision or None


def check_repo_name(words: list[str], label: str, allowed: str) -> None:
    """Raise UserError if the hub allows no such repository name.

    The rules are those of `validate_repo_id` of huggingface_hub.

    Args:
        words: Organization or user, if there is one, and name of the repository.
        label: Start of error messages.
        allowed: End of error messages.
    """
    for word in words:
        if not NAME.fullmatch(word) or "--" in word or ".." in word or (word is words[-1] and word.endswith(".git")):
            raise UserError(
                f"{label}: {word!r} cannot be a name on the hub. Names have up to 96 letters, digits, `-`, `_` and "
                f"`.`, begin and end with a letter, a digit or `_`, contain neither `--` nor `..`, and do not end in "
                f"`.git`. {allowed}."
            )
