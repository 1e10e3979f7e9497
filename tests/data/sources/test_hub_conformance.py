"""The files of each split of a hub dataset are those that the `datasets` library reads."""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.sources.hub_card import SPLIT_WORDS, may_hold_documents, resolve, select_files
from nano3.data.sources.hub_path import HubPath
from nano3.utils.errors import UserError

pytest.importorskip("datasets")

from datasets.builder import BuilderConfig
from datasets.data_files import DataFilesPatternsDict, get_data_patterns, sanitize_patterns
from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS
from datasets.utils.metadata import MetadataConfigs

ROOT = "datasets/org/set@0123"
REPO = HubPath("org/set", None)


class FakeHub(AbstractFileSystem):
    """Answers `hf://` with the paths in `files`."""

    protocol = "hf"
    cachable = False
    files: list[str] = []

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        start = f"{self._strip_protocol(path)}/"
        found: dict[str, dict] = {}
        for file in (f"{ROOT}/{name}" for name in self.files):
            if file.startswith(start):
                name, _, below = file[len(start) :].partition("/")
                kind = "directory" if below else "file"
                found[name] = {"name": start + name, "type": kind, "size": 1, "ETag": "x"}
        if not found and start.rstrip("/") in [f"{ROOT}/{name}" for name in self.files]:
            found[""] = {"name": start.rstrip("/"), "type": "file", "size": 1, "ETag": "x"}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else [item["name"] for item in found.values()]


@pytest.fixture(scope="module", autouse=True)
def fake_hub() -> Iterator[None]:
    fsspec.register_implementation("hf", FakeHub, clobber=True)
    yield
    fsspec.register_implementation("hf", "huggingface_hub.HfFileSystem", clobber=True)


def their_splits(files: list[str], card: dict[str, Any], subset: str | None = None) -> dict[str, set[str]] | None:
    """Return the readable files of each split as `datasets` resolves them; None if it refuses the dataset.

    These are the steps of `HubDatasetModuleFactory.get_module` and `DatasetBuilder._create_builder_config`, without the
    choice of one format.
    """
    FakeHub.files = files
    base = f"hf://{ROOT}"
    try:
        configs = MetadataConfigs.from_dataset_card_data({"configs": [dict(c) for c in card.get("configs", [])]})
        chosen: dict[str, Any] = {}
        if configs:
            name = subset or configs.get_default_config_name()
            if name not in configs:
                return None
            chosen = configs[name]
        data_files, folder = chosen.get("data_files"), chosen.get("data_dir")
        where = posixpath.join(base, folder) if folder else base
        patterns = sanitize_patterns(data_files) if data_files is not None else get_data_patterns(where)
        made = DataFilesPatternsDict.from_patterns(patterns, allowed_extensions=_ALL_ALLOWED_EXTENSIONS)
        config = BuilderConfig(data_files=made, data_dir=folder)
        config._resolve_data_files(base, None)
    except (ValueError, FileNotFoundError):
        return None
    return {
        str(split): {path.removeprefix(f"{base}/") for path in paths if may_hold_documents(path)}
        for split, paths in config.data_files.items()
    }


def our_split(files: list[str], card: dict[str, Any], split: str, subset: str | None = None) -> set[str]:
    """Return the files that nano3 reads of a split; the empty set if it refuses."""
    try:
        return set(select_files(files, card, REPO, subset, split, "label"))
    except UserError:
        return set()


def compare(files: list[str], card: dict[str, Any], subset: str | None = None) -> bool:
    """Assert that all splits have the same files, and return whether `datasets` accepts the dataset."""
    theirs = their_splits(files, card, subset)
    if theirs is None:
        return False
    for split, paths in theirs.items():
        assert our_split(files, card, split, subset) == paths, split
    for split in {"train", "validation", "test", "odd"} - theirs.keys():
        with pytest.raises(UserError, match="is not one of its splits"):
            select_files(files, card, REPO, subset, split, "label")
    return True


def configs(*entries: dict[str, Any]) -> dict[str, Any]:
    """Return a card with these configs, which have names unless given."""
    return {"configs": [{"config_name": f"c{i}", **entry} for i, entry in enumerate(entries)]}


# From the hub's documentation, "File names and splits", "Manual configuration", and "Structure your repository".
SHARDS = [f"data/{s}-0000{i}-of-00002.parquet" for s in ("train", "test", "random") for i in range(2)]
NAMED = ["train.jsonl", "test.jsonl", "data.jsonl", "README.md"]
FOLDERS = ["data/train/a.jsonl", "data/train/b.jsonl", "data/test/a.jsonl", "data/other/a.jsonl", "README.md"]
TREE = ["en/train.jsonl", "en/dev.jsonl", "fr/train.jsonl", "fr/x/train.jsonl", "holdout/a.jsonl", "main.jsonl"]
DOCUMENTED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "one_file": (["data.jsonl", "README.md"], {}),
    "names": (NAMED, {}),
    "prefix": (["my_train_file_1.jsonl", "my_test_file.jsonl", "mytrain.jsonl"], {}),
    "numbers": (["train1.jsonl", "2train.jsonl", "part-1-test-2.jsonl"], {}),
    "folders": (FOLDERS, {}),
    "deep_folder": (["a/b/my_train/c/x.jsonl", "a/b/validation/x.jsonl"], {}),
    "folder_before_name": (["train/test.jsonl", "test.jsonl"], {}),
    "keywords": ([f"{word}/x.jsonl" for words in SPLIT_WORDS.values() for word in words], {}),
    "shards": ([*SHARDS, "data/notes.txt"], {}),
    "shards_elsewhere": ([f"x/{name}" for name in SHARDS], {}),
    "shards_with_a_point": (["data/a.b-00000-of-00001.parquet"], {}),
    "shards_of_a_wrong_split": (["data/a-b-00000-of-00001.parquet"], {}),
    "hidden": ([".git/train.jsonl", "a/.x.jsonl", "__pycache__/a.jsonl", "_b/a.jsonl", "_c.jsonl"], {}),
    "ignored_names": (["config.json", "dataset_info.json", "a/dataset_infos.json", "a.jsonl"], {}),
    "compressed": (["a.jsonl.gz", "b.json.zst", "c.txt.xz", "d.txt.bz2", "e.gz", "LICENSE"], {}),
    "upper_case": (["A.JSONL", "b.jsonl", "Train.jsonl"], {}),
    "unread_formats": (["a.csv", "a.tar", "b.parquet", "c.png"], {}),
    "script_elsewhere": (["a/set.py", "x.jsonl"], {}),
    "code_in_a_folder": (["src/train/run.py", "data.jsonl"], {}),
    "string": (TREE, configs({"data_files": "main.jsonl"})),
    "glob": (TREE, configs({"data_files": "*/*.jsonl"})),
    "deep_glob": (TREE, configs({"data_files": "**/train.jsonl"})),
    "everything": (TREE, configs({"data_files": "**"})),
    "end_of_folder": (TREE, configs({"data_files": "fr/**"})),
    "middle": (TREE, configs({"data_files": "fr/**/train.jsonl"})),
    "braces": (TREE, configs({"data_files": "[ef][nr]/tr?in.jsonl"})),
    "list": (TREE, configs({"data_files": ["main.jsonl", "en/*"]})),
    "splits": (
        TREE,
        configs({"data_files": [{"split": "train", "path": "en/train.jsonl"}, {"split": "odd", "path": "holdout/*"}]}),
    ),
    "lists_of_splits": (
        TREE,
        configs({"data_files": [{"split": "train", "path": ["en/*", "fr/*"]}, {"split": "a.b", "path": ["main*"]}]}),
    ),
    "data_dir": (TREE, configs({"data_dir": "en"})),
    "data_dir_slash": (TREE, configs({"data_dir": "en/"})),
    "data_dir_and_files": (TREE, configs({"data_dir": "fr", "data_files": "x/*.jsonl"})),
    "data_dir_inside_a_split": (["train/a.jsonl", "train/b/test/c.jsonl"], configs({"data_dir": "train"})),
    "default": (TREE, configs({"data_dir": "fr"}, {"data_dir": "en", "default": True})),
    "named_default": (TREE, configs({"data_dir": "fr"}, {"config_name": "default", "data_dir": "en"})),
    "false_default": (TREE, configs({"data_dir": "fr", "default": False}, {"data_dir": "en", "default": True})),
    "no_default": (TREE, configs({"data_dir": "fr"}, {"data_dir": "en"})),
    "two_defaults": (TREE, configs({"data_dir": "fr", "default": True}, {"data_dir": "en", "default": True})),
    "default_and_named_default": (
        TREE,
        configs({"data_dir": "fr", "default": True}, {"config_name": "default", "data_dir": "en"}),
    ),
    "missing_file": (TREE, configs({"data_files": "none.jsonl"})),
    "no_match": (TREE, configs({"data_files": "none/*.jsonl"})),
    "hidden_requested": ([".x/a.jsonl", "__y/a.jsonl", "z.jsonl"], configs({"data_files": [".x/*", "__y/*"]})),
    "hidden_half": ([".x/.a.jsonl", ".x/b.jsonl"], configs({"data_files": ".x/*"})),
    "ignored_requested": (["config.json", "a/config.json"], configs({"data_files": "config.json"})),
    "stars_in_a_name": (TREE, configs({"data_files": "**.jsonl"})),
    "malformed_split": (TREE, configs({"data_files": [{"split": "a-b", "path": "en/*"}]})),
    "malformed_entry": (TREE, configs({"data_files": [{"split": "a", "paths": "en/*"}]})),
    "malformed_number": (TREE, configs({"data_files": 3})),
    "mixed_list": (TREE, configs({"data_files": ["en/*", {"split": "a", "path": "fr/*"}]})),
    "twice": (TREE, configs({"data_files": [{"split": "a", "path": "en/*"}, {"split": "a", "path": "fr/*"}]})),
}
REFUSED = {
    "shards_of_a_wrong_split": r"a-b, in file names such as data/a-b-00000-of-00001\.parquet, cannot be the name",
    "no_default": "names no default subset. Set subset to one of its subsets: c0, c1",
    "two_defaults": "several default subsets: c0, c1. Set subset",
    "default_and_named_default": "several default subsets: c0, default",
    "missing_file": "no file matches none.jsonl",
    "stars_in_a_name": r"in the pattern '\*\*\.jsonl', \*\* is not a whole name",
    "malformed_split": "data_files is malformed",
    "malformed_entry": "data_files is malformed",
    "malformed_number": "data_files is malformed: 3. Allowed are",
    "mixed_list": "data_files is malformed",
    "twice": "data_files is malformed",
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_cases(name: str) -> None:
    files, card = DOCUMENTED[name]
    accepted = compare(files, card)
    assert accepted == (name not in REFUSED)
    if not accepted:
        split = "a-b" if name == "shards_of_a_wrong_split" else "train"
        with pytest.raises(UserError, match=REFUSED[name]):
            select_files(files, card, REPO, None, split, "label")


def test_a_mapping_of_splits() -> None:
    """A card cannot have one, but `load_dataset` takes it, and so does nano3 in a card."""
    data_files = {"train": "en/*", "odd": ["holdout/*", "main.jsonl"]}
    FakeHub.files = TREE
    made = DataFilesPatternsDict.from_patterns(sanitize_patterns(data_files), _ALL_ALLOWED_EXTENSIONS)
    theirs = made.resolve(f"hf://{ROOT}")
    for split in data_files:
        ours = select_files(TREE, configs({"data_files": data_files}), REPO, None, split, "label")
        assert ours == sorted(path.removeprefix(f"hf://{ROOT}/") for path in theirs[split])


WORDS = ["train", "training", "val", "dev", "test", "eval", "valid", "data", "en", "fr", "x"]
FOLDER = st.sampled_from([*WORDS, "my-train", "test_2", "a.val", ".git", "__y", "_z", "trainx"])
FILE = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "my_", "part-", "a.", ".", "_"]),
    st.sampled_from(WORDS),
    st.sampled_from(["", "-00000-of-00002", "-00001-of-00002", "_1", "2", "s", ".en"]),
    st.sampled_from([".jsonl", ".parquet", ".json", ".txt", ".jsonl.gz", ".arrow", ".md", ".py", ".csv", ""]),
).filter(lambda name: not name.endswith(".eval"))  # logs of another tool, which `datasets` reads
PATH = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(FOLDER, max_size=3), FILE)
FILES = st.lists(
    PATH | st.builds("data/{}-00000-of-00001.parquet".format, st.sampled_from(WORDS)), min_size=1, max_size=8
)
PIECE = st.sampled_from(["*", "**", "*.jsonl", "train*", "[!t]*", "?al", "data", "en", "*.*", ".*", "__*", "**"])
PATTERN = st.lists(PIECE, min_size=1, max_size=4).map("/".join)


def is_tree(files: Iterable[str]) -> bool:
    """Return whether no file is also a folder."""
    names = set(files)
    return not any(parent in names for path in names for parent in parents(path))


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


@settings(max_examples=200, deadline=None)
@given(FILES.filter(is_tree))
def test_splits_are_inferred_alike(files: list[str]) -> None:
    compare(sorted(set(files)), {})


@settings(max_examples=200, deadline=None)
@given(st.data(), FILES.filter(is_tree))
def test_cards_are_read_alike(data: st.DataObject, files: list[str]) -> None:
    """Patterns are drawn, and also names of files. A folder's name is left out: nano3 reads it, `datasets` does not."""
    files = sorted(set(files))
    pattern = PATTERN | st.sampled_from(files)
    split = st.sampled_from(["train", "validation", "odd"])
    entry = st.fixed_dictionaries({"split": split, "path": pattern | st.lists(pattern, max_size=3)})
    data_files = pattern | st.lists(pattern, max_size=3) | st.lists(entry, min_size=1, max_size=3)
    config = st.fixed_dictionaries(
        {"config_name": st.sampled_from(["default", "en", "fr"])},
        optional={
            "data_files": data_files,
            "data_dir": st.sampled_from(["data", "en", "train", *[p for f in files for p in parents(f)]]),
            "default": st.booleans(),
        },
    )
    card = {"configs": data.draw(st.lists(config, min_size=1, max_size=3, unique_by=lambda c: c["config_name"]))}
    compare(files, card, data.draw(st.sampled_from([None, *(c["config_name"] for c in card["configs"])])))


@settings(max_examples=200, deadline=None)
@given(FILES.filter(is_tree), PATTERN)
def test_patterns_match_alike(files: list[str], pattern: str) -> None:
    files = sorted(set(files))
    FakeHub.files = files
    made = DataFilesPatternsDict.from_patterns({"train": [pattern]})
    try:
        theirs = made.resolve(f"hf://{ROOT}")["train"]
    except FileNotFoundError:
        return
    try:
        ours = resolve(files, {"train": [pattern]}, "", "train", "label")
    except UserError:
        ours = []
    assert ours == sorted(path.removeprefix(f"hf://{ROOT}/") for path in theirs)
