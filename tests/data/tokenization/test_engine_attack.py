"""Attack the acceptance of the fast engine with random tokenizers: none that passes may give other ids."""

import random
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from random_tokenizers import LLAMA3, QWEN, random_texts, random_tokenizer, save
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from nano3 import sample
from nano3.data.build.engine_check import check_tokenizer
from nano3.data.tokenization import edge_cases
from nano3.data.tokenization.encoders import describe_difference, fast_encoder, reference_encoder
from nano3.data.tokenization.engines import Engines, load_fast, load_reference

all_characters = cache(edge_cases.character_texts)


def attack(folder: Path, seeds: range) -> Counter[str]:
    """Return how many random tokenizers were accepted, refused, or unreadable; fail if one was accepted wrongly."""
    results: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        tokenizer = random_tokenizer(rng)
        file = str(save(tokenizer, folder))
        fast, _ = load_fast(file)
        if fast is None:
            results["unreadable"] += 1
            continue
        reference = load_reference(file, False)
        encoders = fast_encoder(fast, False), reference_encoder(reference)
        if check_tokenizer(file, Engines(reference, fast), *encoders):
            results["refused"] += 1
            continue
        results["accepted"] += 1
        assert not describe_difference(*encoders, random_texts(tokenizer, rng, 500)), f"seed {seed}"
    return results


@pytest.fixture
def short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare fewer texts: the attack is on the rules more than on the comparison."""
    monkeypatch.setattr(edge_cases, "FUZZ_TEXTS", 100)
    monkeypatch.setattr(edge_cases, "LONG", [])
    monkeypatch.setattr(edge_cases, "character_texts", lambda: all_characters()[::100])


@pytest.mark.usefixtures("short_check")
def test_a_few_random_tokenizers(tmp_path: Path) -> None:
    results = attack(tmp_path / "t", range(30))
    assert results["accepted"] >= 3 and results["refused"] >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("short_check")
def test_no_random_tokenizer_passes_and_differs(tmp_path: Path) -> None:
    results = attack(tmp_path / "t", range(2000))
    print(dict(results))
    assert results["accepted"] >= 200 and results["refused"] >= 300


# Known structures


def byte_level(
    *added: AddedToken, pattern: str | None = None, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    """Return a byte-level BPE like GPT-2's, or with a pattern like those of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    if normalizer:
        tokenizer.normalizer = normalizer
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def check(file: Path) -> str:
    fast, error = load_fast(str(file))
    assert fast is not None, error
    reference = load_reference(str(file), False)
    return check_tokenizer(str(file), Engines(reference, fast), fast_encoder(fast, False), reference_encoder(reference))


def special(content: str, **flags: bool) -> AddedToken:
    return AddedToken(content, special=True, **{"normalized": False, **flags})


MARKS = [special(f"<|{name}|>") for name in ("endoftext", "im_start", "im_end")]
ACCEPTED = {
    "gpt2": lambda: byte_level(special("<|endoftext|>", normalized=True)),
    "llama3": lambda: byte_level(*MARKS, *(special(f"<|reserved_{i}|>") for i in range(100)), pattern=LLAMA3),
    "qwen": lambda: byte_level(
        *MARKS, AddedToken("<tool_call>", normalized=False), pattern=QWEN, normalizer=normalizers.NFC()
    ),
}


@pytest.mark.usefixtures("short_check")
@pytest.mark.parametrize("kind", ACCEPTED)
def test_common_tokenizers_use_the_fast_engine(tmp_path: Path, kind: str) -> None:
    assert check(save(ACCEPTED[kind](), tmp_path / kind)) == ""


def test_the_bundled_tokenizer_uses_the_fast_engine() -> None:
    assert check(Path(sample.__file__).parent / "tokenizer" / "tokenizer.json") == ""


@pytest.mark.slow
def test_the_vocabulary_of_the_benchmarks_uses_the_fast_engine(tekken: Path) -> None:
    assert check(tekken / "tokenizer.json") == ""


BLANK = AddedToken("\n\n", normalized=False)
REFUSED = {
    "white_space_before_rstrip": (lambda: byte_level(BLANK, special("<|im_start|>", rstrip=True)), "has white space"),
    "white_space_before_lstrip": (lambda: byte_level(BLANK, special("<|im_end|>", lstrip=True)), "has white space"),
    "strip": (lambda: byte_level(special("<mask>", lstrip=True, rstrip=True)), "'<mask>' has lstrip and rstrip"),
    "single_word": (lambda: byte_level(special("mask", single_word=True)), "'mask' has single_word"),
    "lowercase": (lambda: byte_level(*MARKS, normalizer=normalizers.Lowercase()), "has the normalizer Lowercase"),
    "replaced_pattern": (
        lambda: byte_level(normalizer=normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " ")])),
        "replaces a regular expression",
    ),
    "normalized": (
        lambda: byte_level(AddedToken("é", normalized=True), normalizer=normalizers.NFC()),
        "'é' is matched in normalized text",
    ),
    "overlap": (
        lambda: byte_level(special("<|im"), AddedToken("<|im_start|>", normalized=True)),
        "'<|im_start|>' and '<|im' overlap",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_dangerous_structure_is_refused(tmp_path: Path, kind: str) -> None:
    make, reason = REFUSED[kind]
    assert reason in check(save(make(), tmp_path / kind))


def test_an_incomplete_alphabet_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert "no token for 254 of the 256 bytes" in check(save(tokenizer, tmp_path / "t"))


def test_a_text_on_which_the_reference_panics_is_named(tmp_path: Path) -> None:
    """`tokenizers` panics if two added tokens claim the same white space."""
    tokenizer = byte_level(special("<pad>", rstrip=True), special("  ", lstrip=True))
    file = str(save(tokenizer, tmp_path / "t"))
    fast, reference = fast_encoder(load_fast(file)[0], False), reference_encoder(load_reference(file, False))
    found = describe_difference(fast, reference, ["fine", "<pad>   ", "fine"])
    assert found == "tokenizers: AddedVocabulary bad split, for '<pad>   '"
