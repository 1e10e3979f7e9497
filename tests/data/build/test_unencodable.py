"""Documents that an engine cannot encode are named with file and row, or left out."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import options, plan_build, source, texts, write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from nano3 import sample
from nano3.data.build.run import prepare
from nano3.data.build.unit_encoder import Worker
from nano3.data.build.worker_pool import WorkerPool
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.dataset.manifest import Manifest
from nano3.data.dataset.verify import verify
from nano3.data.planning.plan import load_plan
from nano3.data.tokenization.encoders import Encoded, EncodeError, Encoder, fast_encoder, reference_encoder
from nano3.data.tokenization.engines import load_engines
from nano3.utils.errors import Failure

PANIC = "<pad>   "  # two added tokens of `panicking` claim the same white space
TRAIN_ONLY = {"valid_fraction": 0.0, "test_fraction": 0.0, "num_shards": 1}


@pytest.fixture(scope="module")
def panicking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with which `tokenizers` panics for `PANIC`, and which fastokens may not encode."""
    folder = tmp_path_factory.mktemp("panicking")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(20), trainer)
    for token in (AddedToken("</s>"), AddedToken("<pad>", rstrip=True), AddedToken("  ", lstrip=True)):
        tokenizer.add_special_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return folder


def run(path: Path, output: Path, tokenizer: Path, **keys: Any) -> Manifest:
    return prepare([source(path)], options(output, tokenizer, workers=1, **TRAIN_ONLY, **keys), "test")


def test_a_text_that_panics_is_named_or_left_out(
    tmp_path: Path, panicking: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", ["one", "two", PANIC, "four"])
    with pytest.raises(Failure, match=rf"{re.escape(str(path))}: row 3 .*AddedVocabulary bad split.* bad_rows=skip"):
        run(path, tmp_path / "out", panicking)
    manifest = run(path, tmp_path / "out", panicking, bad_rows="skip", max_bad_rows=1)
    entry = manifest.datasets[0]
    assert (entry.documents, entry.empty, entry.unencoded, entry.rows) == (4, 1, 1, 4)
    assert "1 of them could not be tokenized" in capfd.readouterr().out
    data = IndexedFile(tmp_path / "out" / manifest.shards[0].prefix)
    assert [len(data.document(i)) > 0 for i in range(len(data))] == [True, True, False, True], "rows keep their numbers"
    assert not [problem for _, found in verify(tmp_path / "out") for problem in found]


def test_the_limit_of_bad_rows_counts_it(tmp_path: Path, panicking: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["one", PANIC, "three"])
    with pytest.raises(Failure, match=r"1 of 3 rows are bad \(1 not tokenized\).*the first in row 2"):
        run(path, tmp_path / "out", panicking, bad_rows="skip", max_bad_rows=0)


def fails_at(word: str, right: Encoder) -> Encoder:
    """Return an encoder that fails on texts with a word."""

    def encode(batch: list[str]) -> Encoded:
        if any(word in text for text in batch):
            raise EncodeError("fastokens: match limit exceeded")
        return right(batch)

    return encode


def worker_for(path: Path, output: Path, tokenizer: Path, **keys: Any) -> Worker:
    plan_path = plan_build([source(path)], options(output, tokenizer, **TRAIN_ONLY, **keys), "test")
    plan = load_plan(plan_path)
    engines = load_engines(plan.tokenizer.file, False, fast=True)
    encoders = reference_encoder(engines.reference), fast_encoder(engines.fast, False)
    return Worker(plan, plan_path.parent, *encoders)


def test_the_reference_encodes_what_the_fast_engine_cannot(tmp_path: Path, byte_bpe: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["one", "the needle", "three"])
    worker = worker_for(path, tmp_path / "out", byte_bpe, check_every=0)
    wanted = worker.reference(["one", "the needle", "three"])[0].tolist()
    worker.fast = fails_at("needle", worker.reference)
    receipt = worker.encode_unit(0)
    assert (receipt.documents, receipt.empty, receipt.unencoded) == (3, 0, 0)
    ids = np.fromfile(worker.build / "units" / f"{receipt.fragments[0].name}.bin", worker.plan.dtype)
    assert [i for i in ids.tolist() if i != worker.plan.tokenizer.eod_id] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
def test_ten_million_spaces_are_named_or_left_out(tmp_path: Path, bad_rows: str) -> None:
    """Both engines limit the steps of a regular expression. The beginning of the document could be encoded."""
    path = write(tmp_path / "a.jsonl", ["one", "two " * 1_000_000 + " " * 12_000_000, "three"])
    worker = worker_for(path, tmp_path / "out", Path(sample.__file__).parent / "tokenizer", bad_rows=bad_rows)
    if bad_rows == "skip":
        receipts = [worker.encode_unit(unit) for unit in range(worker.plan.units)]
        sums = [sum(getattr(r, name) for r in receipts) for name in ("documents", "unencoded", "empty")]
        assert sums == [3, 1, 1]
        assert any(r.bad_file and "limit" in r.bad_file.reason for r in receipts)
    else:
        with pytest.raises(Failure, match=r"a\.jsonl: row 2 .*the text cannot be tokenized"):
            worker.encode_unit(0)


def test_a_killed_worker_is_reported_with_file_and_row(tmp_path: Path, byte_bpe: Path) -> None:
    """As the kernel kills a process if memory is short."""
    path = write(tmp_path / "a.jsonl", ["one", "two", "x" * 9_000_000])
    plan_path = plan_build([source(path)], options(tmp_path / "out", byte_bpe, **TRAIN_ONLY), "test")
    with WorkerPool(plan_path, 1, fast=True) as pool:
        pool.submit(0, ("unit", 0))
        server = pool._server.process.pid
        with pytest.raises(Failure, match=r"a worker process died during unit 0, in row 3 of .*a\.jsonl or after it"):
            while pool.busy:
                list(pool.results(timeout=0.02))
                if pool._at.get(0, (0, 0, 0))[2] > 0:  # the third document
                    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
                        os.kill(int(child), signal.SIGKILL)
