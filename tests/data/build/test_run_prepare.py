"""Test preparation from text to shards: the right ids in the right splits and shards."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_helpers import documents, healthy, options, reference, run, source, texts, write

from nano3.data.build.run import prepare
from nano3.data.dataset.indexed import IndexedFile

NAMES = ["a.jsonl", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.arrow", "a.json"]


# Bytes


@pytest.mark.parametrize("name", NAMES)
def test_documents_have_the_reference_ids(tmp_path: Path, byte_bpe: Path, name: str) -> None:
    wanted = texts(400)
    manifest = run(write(tmp_path / name, wanted, row_group_size=90), tmp_path / "out", byte_bpe, valid_fraction=0.05)
    got = documents(tmp_path / "out")
    assert sorted(got) == sorted(reference(byte_bpe, wanted))
    assert healthy(tmp_path / "out")
    assert manifest.datasets[0].documents == 400 == sum(s.documents for s in manifest.splits.values())
    assert manifest.datasets[0].empty == sum(not t for t in wanted)
    assert all(s.tokens for s in manifest.splits.values())
    train = documents(tmp_path / "out", "train")
    order = reference(byte_bpe, wanted)
    positions = [order.index(d) for d in train if d]
    assert positions == sorted(positions)  # the order of the source


def test_megatron_reads_every_shard_and_the_text_comes_back(tmp_path: Path, sentencepiece_bpe: Path) -> None:
    pytest.importorskip("megatron.core")
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from tokenizers import Tokenizer

    wanted = [t for t in texts(200) if t]
    run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", sentencepiece_bpe)
    tokenizer = Tokenizer.from_file(str(sentencepiece_bpe / "tokenizer.json"))
    back = []
    for entries in json.loads((tmp_path / "out" / "blend.json").read_text()).values():
        for prefix in entries[1::2]:
            data = IndexedDataset(prefix)
            back += [
                tokenizer.decode(data[i].tolist()[:-1], skip_special_tokens=False).removeprefix(" ")
                for i in range(len(data))
            ]
    assert sorted(back) == sorted(wanted)


@pytest.mark.parametrize("add_eos", [True, False])
def test_bytes_equal_megatrons_tool(tmp_path: Path, byte_bpe: Path, add_eos: bool) -> None:
    """.bin and .idx equal those of Megatron's builder from the reference ids."""
    pytest.importorskip("megatron.core")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    wanted = texts(300)
    keys = {"num_shards": 1, "valid_fraction": 0.0, "test_fraction": 0.0, "add_eos": add_eos}
    run(write(tmp_path / "a.parquet", wanted), tmp_path / "out", byte_bpe, **keys)
    rows = reference(byte_bpe, wanted)
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=DType.optimal_dtype(1500))
    for row in rows if add_eos else [row[:-1] for row in rows]:
        builder.add_document(row, [len(row)] if row else [])
    builder.finalize(str(tmp_path / "m.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"m.{suffix}").read_bytes() == (
            tmp_path / "out" / "train" / f"data_00000.{suffix}"
        ).read_bytes()


def test_long_documents(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = ["word " * 300_000, "short", "é" * 200_000]
    run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, valid_fraction=0.0, test_fraction=0.0)
    assert documents(tmp_path / "out") == reference(byte_bpe, wanted)


def test_max_doc_tokens_keeps_the_end_token(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = texts(100)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, max_doc_tokens=10, add_bos=True)
    rows = [[1, *row[:-1][:10], row[-1]] if row else [] for row in reference(byte_bpe, wanted)]
    assert sorted(documents(tmp_path / "out")) == sorted(rows)
    assert manifest.datasets[0].truncated == sum(len(r) > 11 for r in reference(byte_bpe, wanted))
    assert healthy(tmp_path / "out")


def test_min_doc_chars_counts_what_it_leaves_out(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = texts(100)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, min_doc_chars=40)
    kept = [t for t in wanted if len(t) >= 40]
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, kept))
    assert manifest.datasets[0].skipped == {"short": 100 - len(kept)}


def test_int32_for_a_large_vocabulary(tmp_path: Path, tekken: Path) -> None:
    wanted = texts(200)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", tekken, workers=2)
    assert (manifest.dtype, manifest.versions["engine"], manifest.tokenizer.vocab_size) == (
        "int32",
        "fastokens",
        131072,
    )
    assert sorted(documents(tmp_path / "out")) == sorted(reference(tekken, wanted))


def test_special_tokens_in_the_text(tmp_path: Path, byte_bpe: Path) -> None:
    wanted = ["a </s> b <|tool|>", "plain", "c"]
    whole = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "one", byte_bpe)
    assert whole.datasets[0].special_tokens == 2
    assert sorted(documents(tmp_path / "one")) == sorted(reference(byte_bpe, wanted))
    split = run(tmp_path / "a.jsonl", tmp_path / "two", byte_bpe, split_special_tokens=True)
    assert split.datasets[0].special_tokens == 0
    assert all(2 not in d[:-1] for d in documents(tmp_path / "two"))


# Splits and shards


def test_a_document_keeps_its_split(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "in" / "a.jsonl", texts(2000)).parent
    for out, keys in (("one", {"num_shards": 3}), ("two", {"num_shards": 50, "workers": 3})):
        run(path, tmp_path / out, byte_bpe, valid_fraction=0.02, test_fraction=0.02, **keys)
    for split in ("train", "valid", "test"):
        assert documents(tmp_path / "one", split) == documents(tmp_path / "two", split)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet"])
def test_shards_are_about_equal(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    """One file a hundred times as large as two others, four shards."""
    for i, count in enumerate((3000, 30, 30)):
        write(tmp_path / "in" / f"{i}.{kind}", texts(count, seed=i), row_group_size=400)
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=4, valid_fraction=0.0, test_fraction=0.0)
    tokens = [s.tokens for s in manifest.shards]
    assert len(tokens) == 4
    assert max(tokens) < 1.3 * min(tokens)


def test_more_shards_than_documents(tmp_path: Path, byte_bpe: Path) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl", [f"short {i}"])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=128)
    assert len(manifest.shards) == 3
    blend = json.loads((tmp_path / "out" / "blend.json").read_text())
    for entries in blend.values():
        assert all(Path(f"{p}.bin").stat().st_size for p in entries[1::2])
    assert {s: len(e) for s, e in blend.items()} == {"train": 2, "valid": 2, "test": 2}
    assert len(list((tmp_path / "out").rglob("*.bin"))) == 3


def test_weights_are_shared_out_by_tokens(tmp_path: Path, byte_bpe: Path) -> None:
    sources = [
        source(write(tmp_path / f"{n}.jsonl", texts(300, seed=i)), n, weight=w)
        for i, (n, w) in enumerate((("a", 0.3), ("b", 2)))
    ]
    manifest = run(sources, tmp_path / "out", byte_bpe, num_shards=9)
    entries = json.loads((tmp_path / "out" / "blend.json").read_text())["train"]
    weights = dict(zip(entries[1::2], map(float, entries[::2]), strict=True))
    for name, weight in (("a", 0.3), ("b", 2.0)):
        shards = [s for s in manifest.shards if (s.dataset, s.split) == (name, "train")]
        total = sum(s.tokens for s in shards)
        for s in shards:
            assert weights[str(tmp_path / "out" / s.prefix)] == pytest.approx(weight * s.tokens / total)
    assert not any("e" in w for w in entries[::2])


@pytest.mark.parametrize("wanted", [1, 2, 3, 40, 10_000])
def test_sample(tmp_path: Path, byte_bpe: Path, wanted: int) -> None:
    every = []
    for i, count in enumerate((100, 1, 30, 5)):
        every.append(texts(count, seed=i))
        write(tmp_path / "in" / f"{i}.{('jsonl', 'parquet', 'jsonl.gz', 'json')[i]}", every[-1])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, sample=wanted, valid_fraction=0.1)
    got = documents(tmp_path / "out")
    assert len(got) == manifest.datasets[0].documents == min(wanted, 136)
    rows = [reference(byte_bpe, t) for t in every]
    heads = [[sum(d == row for d in got) for row in r] for r in rows]
    assert sum(1 for h in heads if any(h)) >= min(wanted, 4)  # spread over the files
    assert manifest.splits["train"].documents >= 1
    assert (manifest.splits["valid"].documents > 0) == (wanted > 1)
    blend = json.loads((tmp_path / "out" / "blend.json").read_text())
    assert list(blend) == ["train", "valid", "test"]


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tmp_path: Path, byte_bpe: Path) -> None:
    for i in range(100_000):
        if i % 1000 == 0:
            (tmp_path / "in" / f"{i // 1000:03d}").mkdir(parents=True)
        (tmp_path / "in" / f"{i // 1000:03d}" / f"{i:06d}.txt").write_text(f"document {i}")
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=200, workers=2)
    assert manifest.datasets[0].documents == 100_000 == sum(s.documents for s in manifest.splits.values())
    shutil.rmtree(tmp_path / "in")


HEAVY = ("torch", "transformers", "megatron", "datasets", "tokenizers", "pyarrow", "huggingface_hub")


def test_importing_run_is_light() -> None:
    code = f"import sys, nano3.data.build.run; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_manifest_has_the_source_of_a_shard(tmp_path: Path, byte_bpe: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", ["first", "second"])
    write(tmp_path / "in" / "b.parquet", ["third"])
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=1, valid_fraction=0.0, test_fraction=0.0)
    assert manifest.shards[0].source == [("a.jsonl", 0), ("b.parquet", 0)]
    assert len(IndexedFile(tmp_path / "out" / "train" / "data_00000")) == 3
    assert (
        prepare(
            [source(tmp_path / "in")],
            options(tmp_path / "out", byte_bpe, num_shards=1, valid_fraction=0.0, test_fraction=0.0),
            "renamed",
        ).blend
        == "renamed"
    )
