"""Paths hf://org/name@revision/path: the same as the hub's own tools parse, and errors for all others."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.sources.hub_path import HubPath, parse_hub_path
from nano3.utils.errors import UserError

PATHS = {
    "hf://org/name": HubPath("org/name", None),
    "hf://datasets/org/name/": HubPath("org/name", None),
    "hf://org/name@main": HubPath("org/name", "main"),
    "hf://datasets/org/na.me_1@v1.0/data/x.parquet": HubPath("org/na.me_1", "v1.0", "data/x.parquet"),
    "hf://org/name@refs/convert/parquet": HubPath("org/name", "refs/convert/parquet"),
    "hf://org/name@refs/convert/parquet/en/train": HubPath("org/name", "refs/convert/parquet", "en/train"),
    "hf://org/name@refs/pr/10/a.txt": HubPath("org/name", "refs/pr/10", "a.txt"),
    "hf://org/name@feature%2Fx/a": HubPath("org/name", "feature/x", "a"),
    "hf://org/name/file@1.txt": HubPath("org/name", None, "file@1.txt"),
    "hf://org/name/data/*.parquet": HubPath("org/name", None, "data/*.parquet"),
    "hf://datasets/datasets/name": HubPath("datasets/name", None),
}
MALFORMED = {
    "hf://": "the owner or the name",
    "hf://name": "the owner or the name",
    "hf://name@main": "the owner or the name",
    "hf:///name": "the owner or the name",
    "hf://org/": "the owner or the name",
    "hf://datasets/name": "the owner or the name",
    "hf://org//name": "the owner or the name",
    "hf://org/name@": "no revision after @",
    "hf://org/name@/a": "no revision after @",
    "hf://org@main/name": "'org@main' cannot be a name",
    "hf://org/na me": "'na me' cannot be a name",
    "hf://org/name:train": "'name:train' cannot be a name",
    "hf://org/-name": "'-name' cannot be a name",
    "hf://org/a--b": "'a--b' cannot be a name",
    "hf://org/a..b": r"'a\.\.b' cannot be a name",
    "hf://org/a.git": r"'a\.git' cannot be a name",
    "hf://org/" + "a" * 97: "cannot be a name",
    "hf://org/*": r"'\*' cannot be a name",
    "hf://org/näme": "cannot be a name",
    "hf://org/name/a//b": "an empty name",
    "hf://org/name@main/../b": "an empty name",
    "hf://models/org/name": "a model repository; only datasets",
    "hf://spaces/org/name": "a space repository; only datasets",
    "hf://buckets/org/name": "a bucket repository; only datasets",
    "hf://model/org/name": "a model repository; only datasets",
    "hf://dataset/org/name": "the prefix is datasets/",
}


@pytest.mark.parametrize(("path", "parsed"), PATHS.items(), ids=PATHS.keys())
def test_paths(path: str, parsed: HubPath) -> None:
    assert parse_hub_path(path, None, "label") == parsed


@pytest.mark.parametrize(("path", "message"), MALFORMED.items(), ids=MALFORMED.keys())
def test_malformed_paths_are_reported_with_what_is_allowed(path: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^label: .*{message}.*Write hf://org/name, "):
        parse_hub_path(path, None, "label")


def test_the_revision_may_be_configured_apart() -> None:
    assert parse_hub_path("hf://org/name/a", "v1", "label") == HubPath("org/name", "v1", "a")
    assert parse_hub_path("hf://org/name@v1", "v1", "label") == HubPath("org/name", "v1")
    with pytest.raises(UserError, match="names revision 'v2', but revision=v1"):
        parse_hub_path("hf://org/name@v2", "v1", "label")


WORDS = st.text("ab1._-@/%:2F*", max_size=6) | st.sampled_from(["datasets", "models", "refs/pr/1", "refs/convert/p"])


@given(st.lists(WORDS | st.sampled_from(["/", "@", "name"]), max_size=8).map("".join))
def test_paths_are_parsed_as_the_hub_does(body: str) -> None:
    """With datasets/ in front, nano3 takes the paths that huggingface_hub takes, with the same meaning."""
    utils = pytest.importorskip("huggingface_hub.utils")
    if not hasattr(utils, "parse_hf_uri"):
        pytest.skip("this version of huggingface_hub has no parse_hf_uri")
    path = f"hf://datasets/{body}"
    try:
        uri = utils.parse_hf_uri(path)
        theirs = HubPath(uri.id, uri.revision, uri.path_in_repo)
    except ValueError:
        theirs = None
    try:
        ours = parse_hub_path(path, None, "label")
    except UserError:
        ours = None
    if theirs and re.search(r"(^|/)\.+(/|$)", theirs.inside):
        assert ours is None  # `.` and `..` are no names in a repository
    elif body == body.strip("/"):  # nano3 takes one slash at the end, and none at the beginning
        assert ours == theirs
