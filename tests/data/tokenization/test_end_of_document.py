"""The token that ends documents: named in dry runs and tables, chosen by eod_token, and never the end of a turn."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_helpers import documents, healthy, options, run, source, texts, write

from nano3.data.build.run import print_plan
from nano3.data.dataset.manifest import load_manifest
from nano3.data.planning.planner import make_request
from nano3.data.tokenization.end_of_document import DOCUMENT_ENDS, TURN_ENDS
from nano3.data.tokenization.tokenizer import find_tokenizer, read_special_tokens
from nano3.training.dataset import eod_problems, open_data
from nano3.utils.errors import UserError

BASE, TURN = "<|endoftext|>", "<|im_end|>"


def tokenizer(folder: Path, special: list[str], **config: Any) -> Path:
    """Write a tokenizer of three letters, whose special tokens follow them."""
    folder.mkdir(parents=True)
    added = [{"id": 3 + i, "content": token, "special": True} for i, token in enumerate(special)]
    spec = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "7": 2}, "merges": []}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("turn", TURN_ENDS)
@pytest.mark.parametrize("end", DOCUMENT_ENDS[:4])
def test_end_of_turn_is_refused_if_there_is_an_end_of_document(tmp_path: Path, turn: str, end: str) -> None:
    folder = tokenizer(tmp_path / "t", [turn, end], eos_token=turn)
    with pytest.raises(UserError) as caught:
        find_tokenizer(str(folder), False, True)
    for words in (f"{turn!r} (id 3) ends a turn", f"eod_token=4 for {end!r}", "or eod_token=3 to end them"):
        assert words in str(caught.value)
    assert find_tokenizer(str(folder), False, True, "4").eod_token == end
    assert find_tokenizer(str(folder), False, True, "3").eod_token == turn
    assert find_tokenizer(str(folder), False, True, end).eod_id == 4
    assert find_tokenizer(str(folder), False, False).eod_warning == ""


TEMPLATE = "{% for m in messages %}<|turn_over|>{% endfor %}"
SEEMS_RIGHT: dict[str, tuple[list[str], dict[str, Any]]] = {
    "base model": ([BASE, TURN], {"eos_token": BASE, "chat_template": f"x{TURN}"}),
    "in the template too": (["</s>", BASE], {"eos_token": "</s>", "chat_template": "x</s>"}),
    "no known end": (["<|turn_over|>", BASE], {"eos_token": "<|turn_over|>"}),
}
DOUBTFUL: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "in the template": (
        ["<|turn_over|>", "</s>"],
        {"chat_template": TEMPLATE},
        "in its chat template. Set eod_token=4",
    ),
    "in a template": (
        ["<|turn_over|>", "</s>"],
        {"chat_template": [{"name": "default", "template": TEMPLATE}]},
        "in its chat template. Set eod_token=4",
    ),
    "no other": ([TURN], {"eos_token": TURN}, "and it will end documents too"),
}


@pytest.mark.parametrize(("special", "config"), SEEMS_RIGHT.values(), ids=SEEMS_RIGHT.keys())
def test_no_word_about_an_end_of_document(tmp_path: Path, special: list[str], config: dict[str, Any]) -> None:
    info = find_tokenizer(str(tokenizer(tmp_path / "t", special, **config)), False, True)
    assert (info.eod_token, info.eod_warning) == (config["eos_token"], "")


@pytest.mark.parametrize(("special", "config", "warning"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_doubtful_end_is_a_warning(tmp_path: Path, special: list[str], config: dict[str, Any], warning: str) -> None:
    folder = tokenizer(tmp_path / "t", special, **{"eos_token": special[0], **config})
    assert warning in find_tokenizer(str(folder), False, True).eod_warning
    assert find_tokenizer(str(folder), False, True, "3").eod_warning == ""


def test_template_in_its_own_file(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "t", ["<|turn_over|>", "</s>"], eos_token="<|turn_over|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert "Set eod_token=4 for '</s>'" in find_tokenizer(str(folder), False, True).eod_warning


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("<|endofext|>", r"no such token\. Did you mean '<\|endoftext\|>'\?"),
        ("99", "no such id; ids go from 0 to 4"),
        ("", "no such token"),
    ],
)
def test_unknown_token(tmp_path: Path, given: str, message: str) -> None:
    folder = tokenizer(tmp_path / "t", [TURN, BASE], eos_token=TURN)
    with pytest.raises(UserError, match=f"eod_token=.*{message}"):
        find_tokenizer(str(folder), False, True, given)


def test_digits_are_an_id(tmp_path: Path) -> None:
    """Unless an added token is written so; the vocabulary of almost every tokenizer has the digits."""
    assert find_tokenizer(str(tokenizer(tmp_path / "t", [BASE])), False, True, "3").eod_token == BASE
    assert find_tokenizer(str(tokenizer(tmp_path / "u", [BASE, "3"])), False, True, "3").eod_id == 4


def chat_variant(byte_bpe: Path, folder: Path) -> Path:
    """A copy of a tokenizer with an eos_token that ends a turn, and read-only files as in some caches."""
    shutil.copytree(byte_bpe, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|tool|>", "bos_token": "<s>", "x": 1}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|tool|>"}}))
    for path in folder.iterdir():
        path.chmod(0o444)
    return folder


def test_override_goes_into_the_data_and_its_tokenizer(
    tmp_path: Path, byte_bpe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = chat_variant(byte_bpe, tmp_path / "chat")
    path, keys = write(tmp_path / "a.jsonl", texts(40)), {"eod_token": "</s>", "add_bos": True}
    print_plan(make_request([source(path)], options(tmp_path / "out", folder, **keys), "b"))
    named = "each document ends with '</s>' (id 2) and begins with '<s>' (id 1)"
    assert named in " ".join(capsys.readouterr().out.split())
    manifest = run(path, tmp_path / "out", folder, **keys)
    assert named in " ".join(capsys.readouterr().out.split())
    assert (manifest.tokenizer.eod_id, manifest.tokenizer.bos_id, manifest.tokenizer.bos_token) == (2, 1, "<s>")
    assert {(row[0], row[-1]) for row in documents(tmp_path / "out") if row} == {(1, 2)}
    assert read_special_tokens(tmp_path / "out" / "tokenizer")["eos_token"] == "</s>"
    config = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer_config.json").read_text())
    assert config == {"eos_token": "</s>", "bos_token": "<s>", "x": 1}
    assert "<|tool|>" not in (tmp_path / "out" / "tokenizer" / "special_tokens_map.json").read_text()
    assert healthy(tmp_path / "out")
    assert run(path, tmp_path / "out", folder, **{**keys, "eod_token": "2"}).plan_hash == manifest.plan_hash
    with pytest.raises(UserError, match=r"documents ended with '</s>' \(2\), now '<\|tool\|>' \(3\)"):
        run(path, tmp_path / "out", folder, add_bos=True)


def test_training_refuses_another_end_of_document(tmp_path: Path, byte_bpe: Path) -> None:
    run(write(tmp_path / "a.jsonl", texts(40)), tmp_path / "out", byte_bpe)
    assert open_data(tmp_path / "out").eod_token == "</s>"
    config = tmp_path / "out" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<s>"}))
    with pytest.raises(
        UserError, match=r"its eos_token is '<s>', but the documents of the data end with '</s>' \(id 2\)"
    ):
        open_data(tmp_path / "out")
    config.write_text("{}")
    assert open_data(tmp_path / "out").eod_id == 2, "older data whose end-of-document token was guessed"
    config.write_text("[")
    assert "not valid JSON" in eod_problems(tmp_path / "out" / "tokenizer", "</s>", 2)[0]


def test_manifest_of_an_older_version(tmp_path: Path, byte_bpe: Path) -> None:
    run(write(tmp_path / "a.jsonl", texts(40)), tmp_path / "out", byte_bpe)
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    assert not {"bos_id", "bos_token"} & content["tokenizer"].keys()
    for key in ("eod_token", "dedup", "sample_tokens"):
        del content["options"][key]
    del content["checksum"], content["tokenizer"]["files"]
    path.write_text(json.dumps(content))
    assert load_manifest(tmp_path / "out").tokenizer.bos_id is None
    assert open_data(tmp_path / "out").eod_id == 2
    run(tmp_path / "a.jsonl", tmp_path / "out", byte_bpe)
