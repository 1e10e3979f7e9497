"""Prepared data end to end: the bytes of Megatron's tool, any division into files, and a wrong engine."""

import functools
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from data_helpers import documents, healthy, options, plan_build, reference, run, source, texts, tree, write
from tokenizers import Tokenizer

from nano3.data.build.run import finalize, run_task
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.tokenization.edge_cases import edge_cases
from nano3.utils.errors import Failure, UserError

ONE_SPLIT = {"valid_fraction": 0.0, "test_fraction": 0.0}


@functools.cache
def load(folder: Path) -> Tokenizer:
    """Load a tokenizer once: large ones take seconds."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def megatron_tool(prefix: Path, tokenizer: Path, wanted: list[str], append_eod: bool, split_special: bool) -> None:
    """Do what tools/preprocess_data.py of Megatron-LM does with one process and without sentence splitting.

    Encoder.encode: ids of the text, then the end-of-document id if there are any and `--append-eod` is given, and the
    number of ids in `sentence_lens`; Partition.process_json_file: `add_document(ids, sentence_lens)`, `finalize`.
    """
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    loaded = load(tokenizer)
    loaded.encode_special_tokens = split_special
    eod = loaded.token_to_id("</s>")
    vocabulary = max(loaded.get_vocab(with_added_tokens=True).values()) + 1
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocabulary))
    for text in wanted:
        ids = loaded.encode(text, add_special_tokens=False).ids
        lengths = [len(ids)] if ids else []
        if ids and append_eod:
            ids = [*ids, eod]
            lengths[-1] += 1
        builder.add_document(ids, lengths)
    builder.finalize(f"{prefix}.idx")


def difficult(tokenizer: Path) -> list[str]:
    """The edge cases with the tokenizer's own special tokens in them, and ordinary text."""
    loaded = load(tokenizer)
    special = [token.content for token in loaded.get_added_tokens_decoder().values()][:20]
    return [*edge_cases(special), *texts(60)]


@pytest.mark.parametrize("tokenizer", [pytest.param("tekken", marks=pytest.mark.slow), "byte_bpe", "sentencepiece_bpe"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_bytes_are_those_of_preprocess_data(
    tmp_path: Path, request: pytest.FixtureRequest, tokenizer: str, kind: str
) -> None:
    """Three tokenizers, two formats, with and without end-of-document tokens, special tokens as ids and as text."""
    folder = request.getfixturevalue(tokenizer)
    wanted = difficult(folder)
    path = write(tmp_path / f"a.{kind}", wanted, **({"row_group_size": 50} if kind == "parquet" else {}))
    for add_eos, split_special in ((True, False), (False, False), (True, True)):
        out, theirs = tmp_path / f"out{add_eos}{split_special}", tmp_path / f"m{add_eos}{split_special}"
        keys = {"num_shards": 1, "add_eos": add_eos, "split_special_tokens": split_special, "engine": "strict"}
        run(path, out, folder, **ONE_SPLIT, **keys)
        megatron_tool(theirs, folder, wanted, add_eos, split_special)
        for suffix in (".bin", ".idx"):
            ours = (out / "train" / f"data_00000{suffix}").read_bytes()
            assert ours == theirs.with_name(theirs.name + suffix).read_bytes(), (add_eos, split_special, suffix)


# Any division into files


def divide(folder: Path, wanted: list[str], files: int, kind: str) -> Path:
    """Write documents into several files, in order."""
    edges = [i * len(wanted) // files for i in range(files + 1)]
    for i, (a, b) in enumerate(pairwise(edges)):
        write(folder / f"{i:03d}.{kind}", wanted[a:b])
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz"])
def test_any_number_of_files_gives_the_same_documents(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    """In the same order, with any number of shards; with one shard even the same bytes."""
    wanted = texts(500)
    made = []
    for files in (1, 3, 50):
        folder = divide(tmp_path / f"in{files}", wanted, files, kind)
        run(folder, tmp_path / f"many{files}", byte_bpe, num_shards=7, **ONE_SPLIT)
        assert documents(tmp_path / f"many{files}") == reference(byte_bpe, wanted), files
        run(folder, tmp_path / f"one{files}", byte_bpe, num_shards=1, **ONE_SPLIT)
        made.append(tree(tmp_path / f"one{files}"))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz"])
def test_one_large_and_two_tiny_files_in_four_shards(tmp_path: Path, byte_bpe: Path, kind: str) -> None:
    wanted = [texts(count, seed=count) for count in (2000, 20, 21)]
    for i, rows in enumerate(wanted):
        write(tmp_path / "in" / f"{i}.{kind}", rows)
    manifest = run(tmp_path / "in", tmp_path / "out", byte_bpe, num_shards=4, **ONE_SPLIT)
    assert documents(tmp_path / "out") == reference(byte_bpe, [text for rows in wanted for text in rows])
    tokens = [shard.tokens for shard in manifest.shards]
    assert len(tokens) == 4
    assert max(tokens) < 1.3 * min(tokens)
    assert healthy(tmp_path / "out")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz", "json", "arrow"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_documents_than_shards(tmp_path: Path, byte_bpe: Path, kind: str, count: int) -> None:
    wanted = [f"document {i}" for i in range(count)]
    manifest = run(write(tmp_path / f"a.{kind}", wanted), tmp_path / "out", byte_bpe, num_shards=64)
    assert sorted(documents(tmp_path / "out")) == sorted(reference(byte_bpe, wanted))
    assert all(shard.tokens for shard in manifest.shards)
    blend = json.loads((tmp_path / "out" / "blend.json").read_text())
    assert sum(len(entries) for entries in blend.values()) == 2 * len(manifest.shards)
    assert healthy(tmp_path / "out")


ZERO: dict[str, Callable[[Path], object]] = {
    "no_file": lambda p: p.mkdir(),
    "no_bytes": lambda p: write(p / "a.jsonl", []),
    "blank": lambda p: write(p / "a.jsonl", []).write_bytes(b"\n \n"),
    "no_rows": lambda p: write(p / "a.parquet", []),
    "no_array_entries": lambda p: write(p / "a.json", []),
    "empty_texts": lambda p: write(p / "a.jsonl", ["", ""]),
    "nothing_long_enough": lambda p: write(p / "a.jsonl", ["a", "b"]),
}


@pytest.mark.parametrize("make", ZERO.values(), ids=ZERO.keys())
@pytest.mark.parametrize("sample", [None, 5])
def test_dataset_without_documents_is_rejected(
    tmp_path: Path, byte_bpe: Path, make: Callable[[Path], object], sample: int | None
) -> None:
    """Alone or with another dataset; the message names the empty one."""
    make(tmp_path / "in")
    good = source(write(tmp_path / "good.jsonl", texts(50)), "good")
    for sources in ([source(tmp_path / "in", "bad")], [good, source(tmp_path / "in", "bad")]):
        with pytest.raises(UserError, match=r"'bad'.*(no documents|no tokens|no file)") as caught:
            run(sources, tmp_path / "out", byte_bpe, sample=sample, min_doc_chars=2)
        assert len(caught.value.problems) == 1
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_rerun_of_complete_data_writes_nothing(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a lock or a temporary file: the folder may be read-only."""
    path = write(tmp_path / "a.jsonl", texts(200))
    first = run(path, tmp_path / "out", byte_bpe)

    def state() -> dict[str, tuple[int, int, int]]:
        infos = {str(p): p.stat() for p in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
        return {name: (i.st_mtime_ns, i.st_ctime_ns, i.st_ino) for name, i in infos.items()}

    before = state()
    from nano3.data.dataset import output_dir

    monkeypatch.setattr(output_dir, "create_output_dir", None)
    monkeypatch.setattr("nano3.utils.files.temp_name", None)
    assert run(path, tmp_path / "out", byte_bpe) == first
    assert state() == before


# A wrong engine


@pytest.fixture
def wrong_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fastokens in the workers that is wrong for texts with the word "needle", which no edge case has."""
    package = tmp_path / "stand_in"
    package.mkdir()
    (package / "sitecustomize.py").write_text(
        """
import numpy as np
from fastokens import _native

real = _native.Tokenizer


class Wrong:
    def __init__(self, inner):
        self.inner = inner

    @staticmethod
    def from_file(file):
        return Wrong(real.from_file(file))

    def encode_batch_flat(self, texts, *rest):
        ids, offsets = self.inner.encode_batch_flat(texts, *rest)
        ids, ends = np.frombuffer(ids, np.uint32).copy(), np.frombuffer(offsets, np.uint64)[1:]
        for end, text in zip(ends.tolist(), texts, strict=True):
            if "needle" in text:
                ids[end - 1] ^= 1
        return ids.tobytes(), offsets

    def __getattr__(self, name):
        return getattr(self.inner, name)


_native.Tokenizer = Wrong
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(package))


@pytest.mark.usefixtures("wrong_engine")
@pytest.mark.parametrize("array", [False, True], ids=["here", "array"])
def test_wrong_engine_is_detected_and_replaced(
    tmp_path: Path, byte_bpe: Path, array: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some units are finished before the error is found; in the end every id is the reference's."""
    from nano3.data.planning import plan as layout

    monkeypatch.setattr(layout, "MIN_UNIT", 100_000)
    monkeypatch.setattr(layout, "MAX_UNIT", 100_000)
    wanted = texts(3000, longest=200)
    wanted[2500] = "a needle in a haystack"
    path = write(tmp_path / "a.jsonl", wanted)
    keys = {"check_every": 1, **ONE_SPLIT}
    if array:
        planned = plan_build([source(path)], options(tmp_path / "out", byte_bpe, **keys), "test")
        for task in (0, 2, 1):
            run_task(planned, task, 3)
        manifest = finalize(planned)
    else:
        manifest = run(path, tmp_path / "out", byte_bpe, workers=2, **keys)
    assert "fastokens gave other ids than tokenizers" in capfd.readouterr().err
    assert manifest.versions["engine"] == "tokenizers"
    assert documents(tmp_path / "out") == reference(byte_bpe, wanted)


@pytest.mark.usefixtures("wrong_engine")
def test_strict_engine_stops_at_a_difference(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*texts(2000, longest=200), "a needle"])
    for _ in range(2):
        with pytest.raises(Failure, match="engine=strict: fastokens gave other ids"):
            run(path, tmp_path / "out", byte_bpe, check_every=1, engine="strict")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_shards_hold_every_document_once(tmp_path: Path, byte_bpe: Path) -> None:
    """The documents of all splits are the rows without the skipped ones."""
    wanted = texts(400)
    manifest = run(write(tmp_path / "a.jsonl", wanted), tmp_path / "out", byte_bpe, min_doc_chars=20, num_shards=9)
    entry = manifest.datasets[0]
    assert entry.rows == 400
    assert sum(len(IndexedFile(tmp_path / "out" / s.prefix)) for s in manifest.shards) == entry.documents
    assert entry.documents + sum(entry.skipped.values()) == 400
