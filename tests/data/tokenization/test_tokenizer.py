"""Finding tokenizers: the Hub's cache, special tokens, and damaged or wrong files."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_helpers import options, source, write
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.planning.planner import make_request
from nano3.data.tokenization.tokenizer import copy_tokenizer, find_tokenizer, is_local_path, smallest_dtype
from nano3.utils.errors import UserError

SPECIAL = [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "</s>", "special": True}]
SPEC = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}}, "added_tokens": SPECIAL}


def folder_of(folder: Path, spec: Any = SPEC, **files: Any) -> Path:
    """A folder with tokenizer.json and other files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"tokenizer": spec, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("named", [".", "tokenizer.json"], ids=["folder", "file"])
def test_snapshot_in_the_hub_cache_has_its_config(tmp_path: Path, named: str) -> None:
    """Files in the cache are links to files in another folder, which are named by their hash."""
    plain = folder_of(tmp_path / "plain", tokenizer_config={"eos_token": "<s>"})
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    info = find_tokenizer(str(snapshot / named), False, True)
    assert info.eod_token == "<s>", "not </s>, which is the guess if no file names a token"
    copy_tokenizer(info, tmp_path / "copy")
    assert find_tokenizer(str(tmp_path / "copy"), False, True).eod_token == "<s>"
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and tasks of an array may run in other folders."""
    folder_of(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    info = find_tokenizer("./t", False, True)
    monkeypatch.chdir("/")
    assert Path(info.file).read_bytes() == (tmp_path / "t" / "tokenizer.json").read_bytes()


def test_copy_has_the_usual_file_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "t", special_tokens_map={"eos_token": "b"})
    (folder / "tokenizer.json").rename(folder / "mine.json")
    info = find_tokenizer(str(folder / "mine.json"), False, True)
    copy_tokenizer(info, tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["special_tokens_map.json", "tokenizer.json"]
    assert find_tokenizer(str(tmp_path / "copy"), False, True).eod_id == 1


def model(**keys: Any) -> dict[str, Any]:
    return {**SPEC, **keys}


NOT_A_TOKENIZER: dict[str, Any] = {
    "a_list": [],
    "no_model": {"added_tokens": SPECIAL},
    "no_vocabulary": model(model={"type": "BPE"}),
    "an_empty_vocabulary": {"model": {"vocab": {}}},
    "ids_in_words": model(model={"vocab": {"a": "0"}}),
    "an_empty_entry": model(model={"vocab": [[]]}),
    "numbers_for_entries": model(model={"vocab": [1, 2]}),
    "an_added_token_without_id": model(added_tokens=[{"content": "x"}]),
    "an_added_token_without_content": model(added_tokens=[{"id": 5}]),
    "an_added_token_with_its_id_in_words": model(added_tokens=[{"content": "x", "id": "5", "special": True}]),
    "an_added_token_whose_id_is_null": model(added_tokens=[{"content": "x", "id": None}]),
    "an_added_token_in_a_list": model(added_tokens=[{"content": ["x"], "id": 5}]),
    "added_tokens_by_name": model(added_tokens={"x": 5}),
}


@pytest.mark.parametrize("spec", NOT_A_TOKENIZER.values(), ids=NOT_A_TOKENIZER.keys())
def test_other_json_is_rejected(tmp_path: Path, spec: Any) -> None:
    folder = folder_of(tmp_path / "t", spec)
    with pytest.raises(UserError, match=rf"^tokenizer_model={folder}: .*tokenizer\.json is not a Hugging Face tok"):
        find_tokenizer(str(folder), False, False)


@pytest.mark.parametrize("config", [[], "text", 5, None], ids=["list", "text", "number", "null"])
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_config_must_be_an_object(tmp_path: Path, name: str, config: Any) -> None:
    folder = folder_of(tmp_path / "t", **{name: config})
    with pytest.raises(UserError, match=rf"{name}\.json: a JSON \w+, not an object"):
        find_tokenizer(str(folder), False, True)


def test_unreadable_file_is_reported() -> None:
    """The file exists, but reading it fails."""
    with pytest.raises(UserError, match=r"^tokenizer_model=/proc/self/mem: /proc/self/mem cannot be read: Inp"):
        find_tokenizer("/proc/self/mem", False, True)


EOD_CONFIGS: dict[str, tuple[Any, int | None]] = {
    "null_is_no_name": ({"eos_token": None}, 4),
    "a_number_is_no_name": ({"eos_token": 3}, 4),
    "an_object_without_content": ({"eos_token": {"special": True}}, 4),
    "a_plain_token_of_the_vocabulary": ({"eos_token": "b"}, 1),
}


@pytest.mark.parametrize(("config", "eod"), EOD_CONFIGS.values(), ids=EOD_CONFIGS.keys())
def test_eod_token_in_the_config(tmp_path: Path, config: Any, eod: int | None) -> None:
    assert find_tokenizer(str(folder_of(tmp_path / "t", tokenizer_config=config)), False, True).eod_id == eod


def test_no_guess_between_two_usual_eod_tokens(tmp_path: Path) -> None:
    two = [*SPECIAL, {"id": 5, "content": "<|endoftext|>", "special": True}]
    folder = folder_of(tmp_path / "t", {**SPEC, "added_tokens": two})
    with pytest.raises(UserError, match="no eos_token, which add_eos=true needs"):
        find_tokenizer(str(folder), False, True)
    assert find_tokenizer(str(folder), False, False).eod_id is None


def test_all_missing_tokens_are_reported_at_once(tmp_path: Path) -> None:
    config = {"eos_token": "<end>", "bos_token": "<begin>"}
    folder = folder_of(tmp_path / "t", tokenizer_config=config)
    with pytest.raises(UserError) as caught:
        find_tokenizer(str(folder), True, True)
    assert len(caught.value.problems) == 2
    assert find_tokenizer(str(folder), False, False).eod_token is None


@given(
    vocab=st.dictionaries(st.text(max_size=4), st.integers(0, 1000), min_size=1, max_size=6),
    added=st.lists(st.tuples(st.integers(0, 2000), st.text(min_size=1, max_size=4), st.booleans()), max_size=5),
    listed=st.booleans(),
)
def test_vocab_size_covers_vocabulary_and_added_tokens(
    tmp_path_factory: pytest.TempPathFactory, vocab: dict[str, int], added: list, listed: bool
) -> None:
    """An id beyond `vocab_size` might not fit the dtype chosen for it."""
    tokens = [{"id": number, "content": text, "special": special} for number, text, special in added]
    entries = [[text, -1.0] for text in vocab] if listed else vocab
    folder = folder_of(tmp_path_factory.getbasetemp() / "t", {"model": {"vocab": entries}, "added_tokens": tokens})
    info = find_tokenizer(str(folder), False, False)
    ids = dict(zip(vocab, range(len(vocab)), strict=True)) if listed else dict(vocab)
    ids.update({text: number for number, text, _ in added})
    assert info.vocab_size == max(ids.values()) + 1
    assert info.special_ids == tuple(sorted(number for number, _, special in added if special))


@pytest.mark.parametrize("which", ["output_dir", "tokenizer_model"])
def test_names_must_be_utf8(tmp_path: Path, byte_bpe: Path, which: str) -> None:
    """They are written into the plan, which is JSON. Nothing is written before the error."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    path = write(tmp_path / "a.jsonl", ["a"] * 9)
    if which == "tokenizer_model":
        folder_of(odd)
    folders = {"output_dir": tmp_path / "out", "tokenizer_model": byte_bpe, which: odd}
    with pytest.raises(UserError, match=rf"{which}=.*caf\\xe9.* is not UTF-8\. Rename it") as caught:
        make_request([source(path)], options(folders["output_dir"], folders["tokenizer_model"]), "test")
    assert str(caught.value).encode(), "the message itself is text"
    assert not folders["output_dir"].exists()


def test_tokenizer_info(byte_bpe: Path, unigram: Path, tmp_path: Path) -> None:
    for model in (byte_bpe, byte_bpe / "tokenizer.json"):
        info = find_tokenizer(str(model), False, True)
        assert (info.vocab_size, info.eod_id, info.eod_token, info.bos_id) == (1500, 2, "</s>", 1)
        assert info.special_ids == (0, 1, 2, 3)
    assert find_tokenizer(str(unigram), True, True).vocab_size > 100
    copy_tokenizer(info, tmp_path / "copy")
    assert find_tokenizer(str(tmp_path / "copy"), False, True).sha256 == info.sha256


def variant(folder: Path, tmp_path: Path, **files: Any) -> Path:
    """A copy of a tokenizer with other files; None removes a file."""
    out = tmp_path / "variant"
    shutil.copytree(folder, out)
    for name, value in files.items():
        path = out / f"{name}.json"
        path.unlink(missing_ok=True)
        if value is not None:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    return out


EOD_FILES = {
    "config": ({"tokenizer_config": {"eos_token": "<s>"}}, 1),
    "config_as_object": ({"tokenizer_config": {"eos_token": {"content": "<|tool|>", "special": True}}}, 3),
    "special_map": ({"tokenizer_config": None, "special_tokens_map": {"eos_token": "<s>"}}, 1),
    "config_wins": ({"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<s>"}}, 2),
    "only_usual_name": ({"tokenizer_config": None}, 2),
}


@pytest.mark.parametrize(("files", "eod"), EOD_FILES.values(), ids=EOD_FILES.keys())
def test_end_of_document_token(byte_bpe: Path, tmp_path: Path, files: dict, eod: int) -> None:
    assert find_tokenizer(str(variant(byte_bpe, tmp_path, **files)), False, True).eod_id == eod


WRONG = {
    "not_in_vocabulary": (
        {"tokenizer_config": {"eos_token": "<|end|>"}},
        "eos_token '<|end|>' is not in the vocabulary",
    ),
    "broken_config": ({"tokenizer_config": "{"}, "tokenizer_config.json: not valid JSON"),
    "broken_tokenizer": ({"tokenizer": "{"}, "is not a Hugging Face tokenizer.json"),
    "other_json": ({"tokenizer": {"a": 1}}, "is not a Hugging Face tokenizer.json"),
    "no_tokenizer": ({"tokenizer": None}, "the folder has no tokenizer.json"),
}


@pytest.mark.parametrize(("files", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_tokenizer_is_rejected(byte_bpe: Path, tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        find_tokenizer(str(variant(byte_bpe, tmp_path, **files)), False, True)


def test_no_end_of_document_token(byte_bpe: Path, tmp_path: Path) -> None:
    folder = variant(byte_bpe, tmp_path, tokenizer_config=None)
    spec = json.loads((folder / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"no eos_token, which add_eos=true needs. Name it in .*tokenizer_config\.json"):
        find_tokenizer(str(folder), False, True)
    assert find_tokenizer(str(folder), False, False).eod_id is None


@pytest.mark.parametrize("model", ["/no/such", "./no", "no/such/file.json", "x.json"])
def test_missing_tokenizer_is_reported(model: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_tokenizer(model, False, True)


NOT_FOUND = {
    "a/b/c": "no such file or folder",
    "hf://a/b": "no such file or folder",
    "~nobody-of-this-name/x": "no such file or folder",
    "nvidia/": "not the id of a model",
    "@main": "not the id of a model",
    "org/name@": "no revision after @",
    "name@": "no revision after @",
    "-x/y": "'-x' cannot be a name on the hub",
    "a--b/c": "'a--b' cannot be a name on the hub",
    "org/name.git": "'name.git' cannot be a name on the hub",
    "a b": "'a b' cannot be a name on the hub",
    "a\0b": "cannot be a name on the hub",
    "org/données": "cannot be a name on the hub",
    f"{'a' * 100}/b": "cannot be a name on the hub",
    "a" * 300: "File name too long",
}


@pytest.mark.parametrize(("model", "expected"), NOT_FOUND.items(), ids=map(repr, NOT_FOUND))
def test_what_is_neither_a_path_nor_an_id_of_the_hub(model: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        find_tokenizer(model, False, True)
    assert f"tokenizer_model={model}: " in str(error.value) and expected in str(error.value)


def test_a_revision_may_have_slashes() -> None:
    assert not is_local_path("org/name@refs/pr/1")


@pytest.mark.parametrize(("vocab", "dtype"), [(10, "uint16"), (65499, "uint16"), (65500, "int32"), (131072, "int32")])
def test_smallest_dtype_is_the_one_of_megatron(vocab: int, dtype: str) -> None:
    assert smallest_dtype(vocab) == dtype
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert indexed_dataset.DType.optimal_dtype(vocab).__name__ == dtype
