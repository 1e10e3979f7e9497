"""Texts are found in the documents that contain them, wherever they begin and end, and nowhere else."""

import random
from pathlib import Path

import pytest
from data_helpers import run, write

from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import Manifest
from nano3.data.dataset.text_search import find_text, inner_tokens
from nano3.tools.inspect_data import load_tokenizer

WORDS = ["alpha", "beta,", "gamma", "delta\n\n", "  epsilon", "zeta.", "ηθικά", "42", "don't", "(theta)"]


@pytest.fixture
def made(tmp_path: Path, byte_bpe: Path) -> tuple[Path, Manifest, list[str]]:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(120)]
    manifest = run(write(tmp_path / "a.jsonl", texts), tmp_path / "out", byte_bpe, num_shards=3)
    return tmp_path / "out", manifest, texts


def decoded(folder: Path, manifest: Manifest) -> dict[tuple[str, int], str]:
    tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.json")
    files = {shard.prefix: IndexedFile(folder / shard.prefix) for shard in manifest.shards}
    return {
        (prefix, number): tokenizer.decode(file.document(number).tolist(), skip_special_tokens=False)
        for prefix, file in files.items()
        for number in range(len(file))
    }


def test_every_piece_of_a_text_is_found_where_it_is(made: tuple[Path, Manifest, list[str]]) -> None:
    folder, manifest, texts = made
    documents, tokenizer = decoded(folder, manifest), load_tokenizer(folder / "tokenizer" / "tokenizer.json")
    rng, by_tokens = random.Random(4), 0
    for _ in range(60):
        text = rng.choice([one for one in texts if len(one) > 30])
        begin = rng.randrange(len(text) - 20)
        piece = text[begin : begin + rng.choice([6, 20, 60])]  # often in the middle of a word
        if not piece.strip():
            continue
        found = [tuple(one) for one in find_text(folder, manifest, tokenizer, piece)]
        assert found == [key for key, whole in documents.items() if piece in whole], piece
        assert found
        by_tokens += bool(inner_tokens(tokenizer, piece))
    assert by_tokens > 15


def test_a_text_that_nothing_contains(made: tuple[Path, Manifest, list[str]]) -> None:
    folder, manifest, _ = made
    tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.json")
    assert not list(find_text(folder, manifest, tokenizer, "alpha gamma nothing has this"))
    assert not list(find_text(folder, manifest, tokenizer, "nothing"))
