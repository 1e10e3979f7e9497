"""Long documents in chunks: the same ids as the whole text, in little memory."""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from data_helpers import WORDS, documents, loaded_engines, reference, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nano3.data.build import unit_encoder
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import load_manifest
from nano3.data.tokenization import long_documents
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.data.tokenization.encoders import Encoder, fast_encoder, reference_encoder
from nano3.data.tokenization.engines import load_engines

TOKENIZERS = ["byte_bpe", "sentencepiece_bpe", "unigram", "tekken"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few hundred characters, so that a test has many cuts."""
    for name, value in {"CHUNK_CHARS": 300, "SEARCH_CHARS": 100, "CONTEXT_CHARS": 60}.items():
        monkeypatch.setattr(long_documents, name, value)


@pytest.fixture(params=TOKENIZERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """The fast engine if it can read the tokenizer, else the reference."""
    engines = loaded_engines(request.getfixturevalue(request.param))
    return fast_encoder(engines.fast, False) if engines.fast else reference_encoder(engines.reference)


@pytest.fixture(scope="module")
def byte_bpe_encoder(byte_bpe: Path) -> Encoder:
    return fast_encoder(loaded_engines(byte_bpe).fast, False)


def encode_in_chunks(text: str, encode: Encoder) -> tuple[list[int], list[str]]:
    """Ids and chunks of a text."""
    found = list(long_documents.encode_chunks(text, encode))
    return [i for ids, _ in found for i in ids.tolist()], [chunk for _, chunk in found]


@pytest.mark.usefixtures("small_chunks")
def test_chunks_have_the_ids_of_the_whole_text(encoder: Encoder) -> None:
    rng = random.Random(1)
    samples = edge_cases(["</s>", "<|tool|>"])
    for _ in range(40):
        text = "".join(rng.choices([*WORDS, *samples, " and then ", "\n", "\n\n", ". "], k=400))
        ids, chunks = encode_in_chunks(text, encoder)
        assert "".join(chunks) == text
        assert ids == encoder([text])[0].tolist()


@pytest.mark.usefixtures("small_chunks")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.sampled_from([" word", "\n", "a b", "日本。"])), max_size=60))
def test_chunks_of_any_text(byte_bpe_encoder: Encoder, parts: list[str]) -> None:
    text = " ".join(parts)
    assert encode_in_chunks(text, byte_bpe_encoder)[0] == byte_bpe_encoder([text])[0].tolist()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("name", "text", "many"),
    [
        ("byte_bpe", "some words and more " * 200, True),
        ("tekken", "日本語のテキスト。" * 300, True),
        ("tekken", "x" * 4000, False),
        ("sentencepiece_bpe", "some words and more " * 200, False),
    ],
    ids=["words", "chinese", "one word", "one sequence"],
)
def test_where_a_text_is_cut(name: str, text: str, many: bool, request: pytest.FixtureRequest) -> None:
    engines = loaded_engines(request.getfixturevalue(name))
    chunks = encode_in_chunks(text, fast_encoder(engines.fast, False))[1]
    assert (len(chunks) > 5) == many
    if many:
        assert max(map(len, chunks)) < 700, "memory is needed for one chunk"


OPTIONS = [{}, {"add_bos": True}, {"max_doc_tokens": 1000, "add_bos": True}, {"add_eos": False, "max_doc_tokens": 3}]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("keys", OPTIONS, ids=["eos", "bos", "limit", "no eos"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_long_and_short_documents_together(tmp_path: Path, byte_bpe: Path, name: str, keys: dict) -> None:
    """The data is the same whether documents count as long or not."""
    wanted = texts(60)
    for i in (0, 7, 8, 59):
        wanted[i] = f"{i} " + " ".join(texts(80, seed=i))
    path = write(tmp_path / name, wanted)
    counts = []
    for long in (1 << 30, 2000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unit_encoder, "LONG", long)
            counts.append(prepare_here(path, tmp_path / str(long), byte_bpe, check_every=1, **keys))
    assert counts[0] == counts[1]
    assert documents(tmp_path / "2000") == documents(tmp_path / str(1 << 30))
    if not keys:
        assert sorted(documents(tmp_path / "2000")) == sorted(reference(byte_bpe, wanted))


def prepare_here(path: Path, output: Path, tokenizer: Path, **keys: Any) -> dict[str, Any]:
    """Prepare with the worker in this process, where sizes are patched; return the dataset's manifest entry."""
    from data_helpers import options, plan_build, source

    from nano3.data.build.run import finalize
    from nano3.data.planning.plan import load_plan

    plan_path = plan_build([source(path)], options(output, tokenizer, **keys), "test")
    plan = load_plan(plan_path)
    engines = load_engines(plan.tokenizer.file, False, fast=True)
    worker = unit_encoder.Worker(
        plan, plan_path.parent, reference_encoder(engines.reference), fast_encoder(engines.fast, False)
    )
    for unit in range(plan.units):
        worker.encode_unit(unit)
    manifest = finalize(plan_path)
    return {
        key: value for key, value in msgspec.to_builtins(manifest.datasets[0]).items() if key not in ("path", "root")
    }


MEASURE = """
import json, resource, sys
from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare
source, options = json.loads(sys.argv[1])
prepare([SourceConfig(**source)], PrepOptions(**options), "test")
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.zst"])
def test_documents_of_100_mb_need_little_memory(tmp_path: Path, tekken: Path, name: str) -> None:
    """A worker needs 250 MB and a few times the longest document, for its line or page and its text."""
    sentence = " ".join(w for w in WORDS if w.isascii())
    long = [f"{i} {sentence}" * (104_000_000 // (len(sentence) + 2)) for i in range(3)]
    path = write(tmp_path / name, [*texts(50), *long, *texts(50, seed=1)], row_group_size=1)
    del long
    request = [
        {"name": "d", "path": str(path)},
        {"output_dir": str(tmp_path / "out"), "tokenizer_model": str(tekken), "workers": 1, "num_shards": 4},
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(request)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 700
    tokenizer = Tokenizer.from_file(str(tekken / "tokenizer.json"))
    found = 0
    for entry in load_manifest(tmp_path / "out").shards:
        data = IndexedFile(tmp_path / "out" / entry.prefix)
        for start, length in zip(data.offsets.tolist(), data.lengths.tolist(), strict=True):
            if length > 10_000_000:
                ids = data.tokens[start // 4 : start // 4 + 1000].tolist()
                assert tokenizer.decode(ids).startswith(tuple(f"{i} {sentence}" for i in range(3)))
                found += 1
    assert found == 3


def test_memory_of_children_is_measured() -> None:
    """RUSAGE_CHILDREN measures the largest child in KiB, as the test above assumes."""
    subprocess.run([sys.executable, "-c", "x = b'1' * (310 << 20)"], check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024 > 300
