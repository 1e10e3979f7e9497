"""Finding the tokenizer: links of a hub's cache, and files that are not what their names say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from data_helpers import options, source, write
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.planning.planner import make_request
from nano3.data.tokenization.tokenizer import copy_tokenizer, find_tokenizer
from nano3.utils.errors import UserError

SPECIAL = [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "</s>", "special": True}]
SPEC = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}}, "added_tokens": SPECIAL}


def folder_of(place: Path, spec: Any = SPEC, **files: Any) -> Path:
    """A folder with tokenizer.json and other files."""
    place.mkdir(parents=True, exist_ok=True)
    for name, value in {"tokenizer": spec, **files}.items():
        (place / f"{name}.json").write_text(json.dumps(value))
    return place


@pytest.mark.parametrize("named", [".", "tokenizer.json"], ids=["folder", "file"])
def test_a_snapshot_in_a_hubs_cache_has_its_config(tmp_path: Path, named: str) -> None:
    """There each file is a link to one that is named by its hash, in another folder."""
    plain = folder_of(tmp_path / "plain", tokenizer_config={"eos_token": "<s>"})
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    info = find_tokenizer(str(snapshot / named), False, True)
    assert info.eod_token == "<s>", "and not </s>, which is guessed where no file names it"
    copy_tokenizer(info, tmp_path / "copy")
    assert find_tokenizer(str(tmp_path / "copy"), False, True).eod_token == "<s>"
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


def test_a_tokenizer_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and tasks of an array may run elsewhere."""
    folder_of(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    info = find_tokenizer("./t", False, True)
    monkeypatch.chdir("/")
    assert Path(info.file).read_bytes() == (tmp_path / "t" / "tokenizer.json").read_bytes()


def test_a_file_of_another_name_gets_the_usual_one_in_the_copy(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "t", special_tokens_map={"eos_token": "b"})
    (place / "tokenizer.json").rename(place / "mine.json")
    info = find_tokenizer(str(place / "mine.json"), False, True)
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
def test_a_json_that_is_no_tokenizer_is_told(tmp_path: Path, spec: Any) -> None:
    place = folder_of(tmp_path / "t", spec)
    with pytest.raises(UserError, match=rf"^tokenizer_model={place}: .*tokenizer\.json is not a Hugging Face tok"):
        find_tokenizer(str(place), False, False)


@pytest.mark.parametrize("config", [[], "text", 5, None], ids=["list", "text", "number", "null"])
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_a_config_that_is_no_object_is_told(tmp_path: Path, name: str, config: Any) -> None:
    place = folder_of(tmp_path / "t", **{name: config})
    with pytest.raises(UserError, match=rf"{name}\.json: a JSON \w+, not an object"):
        find_tokenizer(str(place), False, True)


def test_a_file_that_cannot_be_read_is_told() -> None:
    """Here one that is there and gives an error when it is read."""
    with pytest.raises(UserError, match=r"^tokenizer_model=/proc/self/mem: /proc/self/mem cannot be read: Inp"):
        find_tokenizer("/proc/self/mem", False, True)


ODD_ENDS: dict[str, tuple[Any, int | None]] = {
    "null_is_no_name": ({"eos_token": None}, 4),
    "a_number_is_no_name": ({"eos_token": 3}, 4),
    "an_object_without_content": ({"eos_token": {"special": True}}, 4),
    "a_plain_token_of_the_vocabulary": ({"eos_token": "b"}, 1),
}


@pytest.mark.parametrize(("config", "eod"), ODD_ENDS.values(), ids=ODD_ENDS.keys())
def test_what_a_config_says_of_the_end_of_a_document(tmp_path: Path, config: Any, eod: int | None) -> None:
    assert find_tokenizer(str(folder_of(tmp_path / "t", tokenizer_config=config)), False, True).eod_id == eod


def test_of_two_usual_ends_none_is_guessed(tmp_path: Path) -> None:
    two = [*SPECIAL, {"id": 5, "content": "<|endoftext|>", "special": True}]
    place = folder_of(tmp_path / "t", {**SPEC, "added_tokens": two})
    with pytest.raises(UserError, match="no eos_token, which add_eos=true needs"):
        find_tokenizer(str(place), False, True)
    assert find_tokenizer(str(place), False, False).eod_id is None


def test_all_tokens_that_are_missing_are_told_at_once(tmp_path: Path) -> None:
    config = {"eos_token": "<end>", "bos_token": "<begin>"}
    place = folder_of(tmp_path / "t", tokenizer_config=config)
    with pytest.raises(UserError) as caught:
        find_tokenizer(str(place), True, True)
    assert len(caught.value.problems) == 2
    assert find_tokenizer(str(place), False, False).eod_token is None


@given(
    vocab=st.dictionaries(st.text(max_size=4), st.integers(0, 1000), min_size=1, max_size=6),
    added=st.lists(st.tuples(st.integers(0, 2000), st.text(min_size=1, max_size=4), st.booleans()), max_size=5),
    listed=st.booleans(),
)
def test_the_vocabulary_reaches_to_the_last_id_of_both_lists(
    tmp_path_factory: pytest.TempPathFactory, vocab: dict[str, int], added: list, listed: bool
) -> None:
    """An id beyond `vocab_size` would not fit the dtype that is chosen by it."""
    tokens = [{"id": number, "content": text, "special": special} for number, text, special in added]
    entries = [[text, -1.0] for text in vocab] if listed else vocab
    place = folder_of(tmp_path_factory.getbasetemp() / "t", {"model": {"vocab": entries}, "added_tokens": tokens})
    info = find_tokenizer(str(place), False, False)
    ids = dict(zip(vocab, range(len(vocab)), strict=True)) if listed else dict(vocab)
    ids.update({text: number for number, text, _ in added})
    assert info.vocab_size == max(ids.values()) + 1
    assert info.special_ids == tuple(sorted(number for number, _, special in added if special))


@pytest.mark.parametrize("which", ["output_dir", "tokenizer_model"])
def test_a_name_that_is_not_utf8_is_told_before_anything_is_written(tmp_path: Path, byte_bpe: Path, which: str) -> None:
    """It would be written into the plan, which is JSON."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    path = write(tmp_path / "a.jsonl", ["a"] * 9)
    if which == "tokenizer_model":
        folder_of(odd)
    places = {"output_dir": tmp_path / "out", "tokenizer_model": byte_bpe, which: odd}
    with pytest.raises(UserError, match=rf"{which}=.*caf\\xe9.* is not UTF-8\. Rename it") as caught:
        make_request([source(path)], options(places["output_dir"], places["tokenizer_model"]), "test")
    assert str(caught.value).encode(), "the message itself is text"
    assert not places["output_dir"].exists()
