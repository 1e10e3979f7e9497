"""Both engines on every kind of tokenizer; what is done when they differ."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import options, plan_build, source, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.build.unit_encoder import EngineMismatchError, Worker
from nano3.data.planning.plan import SPLITS, load_plan
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.data.tokenization.encoders import SpecialTokenCounter, fast_encoder, first_difference, reference_encoder
from nano3.data.tokenization.engines import Engines, load_engines
from nano3.data.tokenization.special_tokens import frame, truncate
from nano3.data.tokenization.tokenizer import copy_tokenizer, find_tokenizer
from nano3.utils.errors import UserError

KINDS = ["byte_bpe", "sentencepiece_bpe", "unigram", "tekken"]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest):
    """Engines by kind of tokenizer, loaded once."""
    made: dict[tuple[str, bool], Engines] = {}

    def get(kind: str, split: bool = False) -> Engines:
        if (kind, split) not in made:
            folder = request.getfixturevalue(kind)
            made[kind, split] = load_engines(str(folder / "tokenizer.json"), split, True)
        return made[kind, split]

    return get


def special(engines: Engines) -> list[str]:
    return [t.content for t in engines.reference.get_added_tokens_decoder().values()][:40]


@pytest.mark.parametrize("split", [False, True], ids=["special_as_ids", "special_as_text"])
@pytest.mark.parametrize("kind", KINDS)
def test_edge_cases(loaded, kind: str, split: bool) -> None:
    """The fast engine agrees on every edge case, or says that it cannot read the tokenizer."""
    engines = loaded(kind, split)
    if engines.fast is None:
        assert kind == "unigram"
        assert "fastokens cannot read this tokenizer" in engines.fast_error
        return
    cases = [*edge_cases(special(engines)), *texts(200)]
    fast, reference = fast_encoder(engines.fast, split), reference_encoder(engines.reference)
    wrong = first_difference(fast, reference, cases)
    assert wrong is None, cases[wrong]
    assert fast([])[0].tolist() == [] == fast([])[1].tolist()


@settings(max_examples=80, deadline=None)
@given(batch=st.lists(st.text(max_size=60), max_size=6), kind=st.sampled_from(["byte_bpe", "sentencepiece_bpe"]))
def test_any_text(loaded, kind: str, batch: list[str]) -> None:
    engines = loaded(kind)
    assert first_difference(fast_encoder(engines.fast, False), reference_encoder(engines.reference), batch) is None


def test_the_reference_is_plain_encode(loaded, byte_bpe: Path) -> None:
    engines = loaded("byte_bpe")
    cases = edge_cases(special(engines))
    ids, lengths = reference_encoder(engines.reference)(cases)
    rows = [engines.reference.encode(text, add_special_tokens=False).ids for text in cases]
    assert ids.tolist() == [i for row in rows for i in row]
    assert lengths.tolist() == [len(row) for row in rows]


def test_truncation_in_the_file_is_ignored(tmp_path: Path, byte_bpe: Path) -> None:
    spec = json.loads((byte_bpe / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    plain = load_engines(str(byte_bpe / "tokenizer.json"), False, True)
    other = load_engines(str(tmp_path / "tokenizer.json"), False, True)
    for encode in (reference_encoder(other.reference), fast_encoder(other.fast, False)):
        assert first_difference(encode, reference_encoder(plain.reference), ["a", "x y z " * 50]) is None


@pytest.mark.parametrize(
    ("one", "other", "wrong"),
    [
        ([[1, 2], [3]], [[1, 2], [3]], None),
        ([[1, 2], [3]], [[1, 2], [4]], 1),
        ([[1], [2, 3]], [[1, 2], [3]], 0),
        ([[], [1]], [[1], []], 0),
    ],
    ids=["same", "id", "moved_bound", "empty"],
)
def test_first_difference(one, other, wrong) -> None:
    def encoder(rows):
        return lambda texts: (np.array([i for r in rows for i in r], np.uint32), np.array([len(r) for r in rows]))

    assert first_difference(encoder(one), encoder(other), ["a", "b"]) == wrong


def broken(engines: Engines, word: str):
    """An encoder that is wrong where a word appears."""
    right = reference_encoder(engines.reference)

    def encode(batch: list[str]):
        ids, lengths = right(batch)
        ends = np.cumsum(lengths)
        out = ids.copy()
        for i, text in enumerate(batch):
            if word in text and lengths[i]:
                out[ends[i] - 1] ^= 1
        return out, lengths

    return encode


def test_a_re_check_that_fails_stops_the_unit_and_leaves_nothing(tmp_path: Path, byte_bpe: Path, loaded) -> None:
    documents = [*texts(300), "the needle", *texts(100, seed=1)]
    path = write(tmp_path / "a.jsonl", documents)
    plan_path = plan_build([source(path)], options(tmp_path / "out", byte_bpe, check_every=1, num_shards=1), "t")
    engines = loaded("byte_bpe")
    worker = Worker(
        load_plan(plan_path), plan_path.parent, reference_encoder(engines.reference), broken(engines, "needle")
    )
    with pytest.raises(EngineMismatchError, match=r"a\.jsonl, document with key"):
        worker.encode_unit(0)
    assert not list((plan_path.parent / "units").iterdir())
    worker.fast = None
    assert worker.encode_unit(0).engine == "tokenizers"


# Framing, against the plainest code


rows = st.lists(st.lists(st.integers(5, 9), max_size=6), max_size=12)


@given(rows=rows, bos=st.sampled_from([None, 1]), eos=st.sampled_from([None, 2]), limit=st.integers(1, 8))
def test_frame_and_truncate(rows: list[list[int]], bos: int | None, eos: int | None, limit: int) -> None:
    ids = np.array([i for r in rows for i in r], np.uint32)
    lengths = np.array([len(r) for r in rows], np.int64)
    ids, lengths, cut = truncate(ids, lengths, limit)
    tokens, lengths = frame(ids, lengths, bos, eos, np.dtype(np.uint16))
    wanted = [([bos] if bos else []) + r[:limit] + ([eos] if eos else []) if r else [] for r in rows]
    assert tokens.tolist() == [i for r in wanted for i in r]
    assert lengths.tolist() == [len(r) for r in wanted]
    assert cut == sum(len(r) > limit for r in rows)


@given(ids=st.lists(st.integers(0, 60)), special=st.sets(st.integers(0, 60), max_size=30))
def test_special_counter(ids: list[int], special: set[int]) -> None:
    assert SpecialTokenCounter(tuple(sorted(special)))(np.array(ids, np.uint32)) == sum(i in special for i in ids)


# Finding the tokenizer


def test_what_is_read_of_a_tokenizer(byte_bpe: Path, unigram: Path, tmp_path: Path) -> None:
    for model in (byte_bpe, byte_bpe / "tokenizer.json"):
        info = find_tokenizer(str(model), False, True)
        assert (info.vocab_size, info.eod_id, info.eod_token, info.bos_id) == (1500, 2, "</s>", 1)
        assert info.special_ids == (0, 1, 2, 3)
    assert find_tokenizer(str(unigram), True, True).vocab_size > 100
    copy_tokenizer(info, tmp_path / "copy")
    assert find_tokenizer(str(tmp_path / "copy"), False, True).sha256 == info.sha256
    assert SPLITS == ("train", "valid", "test")


def variant(folder: Path, tmp_path: Path, **files) -> Path:
    """A copy of a tokenizer with other config files; None removes one."""
    out = tmp_path / "variant"
    shutil.copytree(folder, out)
    for name, value in files.items():
        path = out / f"{name}.json"
        path.unlink(missing_ok=True)
        if value is not None:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    return out


ENDS = {
    "config": ({"tokenizer_config": {"eos_token": "<s>"}}, 1),
    "config_as_object": ({"tokenizer_config": {"eos_token": {"content": "<|tool|>", "special": True}}}, 3),
    "special_map": ({"tokenizer_config": None, "special_tokens_map": {"eos_token": "<s>"}}, 1),
    "config_wins": ({"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<s>"}}, 2),
    "only_usual_name": ({"tokenizer_config": None}, 2),
}


@pytest.mark.parametrize(("files", "eod"), ENDS.values(), ids=ENDS.keys())
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
def test_a_wrong_tokenizer_is_told(byte_bpe: Path, tmp_path: Path, files: dict, message: str) -> None:
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
def test_no_such_tokenizer(model: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_tokenizer(model, False, True)
