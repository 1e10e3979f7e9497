"""Both engines with every kind of tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_helpers import options, plan_build, source, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.build.unit_encoder import EngineMismatchError, Worker
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.data.tokenization.encoders import (
    Encoded,
    Encoder,
    SpecialTokenCounter,
    fast_encoder,
    first_difference,
    reference_encoder,
)
from nano3.data.tokenization.engines import Engines, load_engines

Load = Callable[..., Engines]
KINDS = ["byte_bpe", "sentencepiece_bpe", "unigram", "tekken"]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> Load:
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
def test_edge_cases(loaded: Load, kind: str, split: bool) -> None:
    """fastokens agrees on every edge case, or reports that it cannot read the tokenizer."""
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
def test_any_text(loaded: Load, kind: str, batch: list[str]) -> None:
    engines = loaded(kind)
    assert first_difference(fast_encoder(engines.fast, False), reference_encoder(engines.reference), batch) is None


def test_reference_encoder_is_plain_encode(loaded: Load, byte_bpe: Path) -> None:
    engines = loaded("byte_bpe")
    cases = edge_cases(special(engines))
    ids, lengths = reference_encoder(engines.reference)(cases)
    rows = [engines.reference.encode(text, add_special_tokens=False).ids for text in cases]
    assert ids.tolist() == [i for row in rows for i in row]
    assert lengths.tolist() == [len(row) for row in rows]


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path, byte_bpe: Path) -> None:
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
def test_first_difference(one: list[list[int]], other: list[list[int]], wrong: int | None) -> None:
    def encoder(rows: list[list[int]]) -> Encoder:
        return lambda texts: (np.array([i for r in rows for i in r], np.uint32), np.array([len(r) for r in rows]))

    assert first_difference(encoder(one), encoder(other), ["a", "b"]) == wrong


def broken(engines: Engines, word: str) -> Encoder:
    """An encoder that is wrong for texts with a certain word."""
    right = reference_encoder(engines.reference)

    def encode(batch: list[str]) -> Encoded:
        ids, lengths = right(batch)
        ends = np.cumsum(lengths)
        out = ids.copy()
        for i, text in enumerate(batch):
            if word in text and lengths[i]:
                out[ends[i] - 1] ^= 1
        return out, lengths

    return encode


def test_failed_recheck_stops_the_unit_and_leaves_no_files(tmp_path: Path, byte_bpe: Path, loaded: Load) -> None:
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


@given(ids=st.lists(st.integers(0, 60)), special=st.sets(st.integers(0, 60), max_size=30))
def test_special_counter(ids: list[int], special: set[int]) -> None:
    assert SpecialTokenCounter(tuple(sorted(special)))(np.array(ids, np.uint32)) == sum(i in special for i in ids)
