"""Iterations that are left out, by hand and by the guard: real processes, real data, real kills."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_train import bitwise, last, when_logged
from training_processes import SAMPLE, Child, losses, start_ranks, tiny_config, train_here

from nano3.config import PrepOptions, PretrainConfig, SourceConfig
from nano3.data.build.run import prepare
from nano3.data.dataset.indexed import IndexedFile
from nano3.training.dataset import open_data
from nano3.training.hf import loop as hf_loop
from nano3.training.hf.backend import mutable_settings, run_identity, train
from nano3.training.hf.batch import plan_batches
from nano3.training.run.batch_documents import batch_samples, describe_documents, document_spans, open_sample_index
from nano3.training.run.checkpoints import read_checkpoint_info
from nano3.training.run.guard import read_events
from nano3.training.run.metrics import read_metrics
from nano3.training.run.outcome import Outcome, no_hook
from nano3.training.run.resume import ResumePoint
from nano3.training.run.skips import read_skips

SKIPPED = [[5, 6], [9, 9]]
KEPT = [1, 2, 3, 4, 7, 8, 10, 11, 12]


@pytest.fixture(scope="module")
def hand_made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a loop that takes exactly the iterations of `KEPT`, written without the code under test."""
    folder = tmp_path_factory.mktemp("hand_made")
    Child(train_by_hand, (tiny_config(), data, folder), folder / "log.txt").result()
    return folder


def train_by_hand(config: PretrainConfig, data: Path, run_dir: Path) -> None:
    from nano3.training.hf.components import RunInputs, assemble

    opened, size = open_data(data), config.train
    plan = plan_batches(size.global_batch_size, size.micro_batch_size, 1)
    loop = assemble(
        RunInputs(
            config, opened, plan, run_dir, ResumePoint(), 1, run_identity(config, opened), mutable_settings(config),
            no_hook,
        )
    )  # fmt: skip
    loop.validate()
    for iteration in range(1, size.train_iters + 1):
        if iteration in KEPT:
            loop.iteration = iteration - 1
            step = loop.step()
            loop.iteration = iteration
            loop.clock.iterations, loop.clock.training_s = 1, 1.0
            loop.report(step)
        loop.iteration = iteration
        if iteration % size.eval_interval == 0:
            loop.validate()
    loop.save(last=True, final=True)


def config(**changes: Any) -> PretrainConfig:
    return tiny_config(**{"train.skip_iterations": SKIPPED, **changes})


def test_iterations_left_out_by_hand_change_nothing_else(data: Path, hand_made: Path, tmp_path: Path) -> None:
    assert train_here(config(), data, tmp_path).status == "finished"
    assert losses(tmp_path) == losses(hand_made)
    assert [line["iteration"] for line in read_metrics(tmp_path) if "loss" in line] == KEPT
    assert [line["consumed_samples"] for line in read_metrics(tmp_path) if "loss" in line] == [4 * i for i in KEPT]
    assert bitwise(tmp_path, hand_made, tmp_path)
    info = read_checkpoint_info(last(tmp_path))
    assert (info.iteration, info.consumed_samples) == (12, 48)
    assert [str(one) for one in read_skips(tmp_path).ranges] == [
        "5 to 6 (train.skip_iterations)", "9 (train.skip_iterations)",
    ]  # fmt: skip
    assert "leaving out iterations 5 to 6" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_kill_among_them_changes_nothing(data: Path, hand_made: Path, tmp_path: Path, ranks: int) -> None:
    """Rank 0 dies after iteration 7. The checkpoint is of iteration 4, so the resume begins with those left out."""
    first, *others = start_ranks(config(), data, tmp_path, ranks, job=train_and_die)
    first.process.join(200)
    assert first.process.exitcode == -signal.SIGKILL
    for other in others:
        with pytest.raises(RuntimeError):
            other.result()
    assert [r.result().status for r in start_ranks(config(), data, tmp_path, ranks)] == ["finished"] * ranks
    assert "resuming from iteration 4" in (tmp_path / "log_0.txt").read_text()
    assert losses(tmp_path) == losses(hand_made)
    assert bitwise(tmp_path, hand_made, tmp_path)


def train_and_die(config: PretrainConfig, data: Path, run_dir: Path) -> None:
    when_logged(7, lambda: os.kill(os.getpid(), signal.SIGKILL), rank="0")
    train(config, data, run_dir)


def train_and_note_tokens(config: PretrainConfig, data: Path, run_dir: Path) -> Outcome:
    """Train, and append the tokens of every micro batch to RUN/tokens_RANK.jsonl."""
    collate: Callable[..., Any] = hf_loop.collate
    notes = (run_dir / f"tokens_{os.environ.get('RANK', '0')}.jsonl").open("a")

    def noted(*args: Any) -> Any:
        batch = collate(*args)
        notes.write(json.dumps(batch["input_ids"].tolist()) + "\n")
        notes.flush()
        return batch

    hf_loop.collate = noted
    return train(config, data, run_dir)


def consumed(run_dir: Path, ranks: int) -> list[list[list[int]]]:
    """The sorted samples of each iteration that was trained, as token ids."""
    files = [(run_dir / f"tokens_{rank}.jsonl").read_text().splitlines() for rank in range(ranks)]
    micro_steps = [[json.loads(line) for line in lines] for lines in zip(*files, strict=True)]
    each = 4 // (2 * ranks)
    grouped = [micro_steps[i : i + each] for i in range(0, len(micro_steps), each)]
    return [sorted(sample for step in group for batch in step for sample in batch) for group in grouped]


def expected(run_dir: Path, data: Path, iterations: list[int]) -> list[list[list[int]]]:
    """The same from the shards and the sample index, read without torch and Megatron."""
    index = open_sample_index(tiny_config(), run_dir, data)
    found = []
    for iteration in iterations:
        samples: dict[int, list[int]] = {}
        for span in document_spans(index, data, batch_samples(iteration, 4), 4):
            document = IndexedFile(data / span.shard).document(span.document)
            samples.setdefault(span.sample, []).extend(document[span.start : span.stop].tolist())
        found.append(sorted(tokens[:-1] for tokens in samples.values()))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_tokens_of_iterations_left_out_are_not_trained_on(data: Path, tmp_path: Path, ranks: int) -> None:
    quiet = config(**{"train.eval_interval": 0, "train.exit_iteration": 7})
    for limit in (7, None):  # the second start resumes among them
        quiet.train.exit_iteration = limit
        for rank in start_ranks(quiet, data, tmp_path, ranks, job=train_and_note_tokens):
            rank.result()
    assert consumed(tmp_path, ranks) == expected(tmp_path, data, KEPT)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that are easy to learn, and one document of random characters."""
    folder = tmp_path_factory.mktemp("poisoned")
    random.seed(3)
    texts = ["one two three four five six seven eight nine ten " * 12 for _ in range(80)]
    texts[40] = "".join(chr(random.randrange(33, 126)) for _ in range(180))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = PrepOptions(
        output_dir=str(folder / "data"), tokenizer_model=str(SAMPLE / "tokenizer"), num_shards=1, workers=1,
        valid_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    prepare([SourceConfig(name="texts", path=str(folder / "texts.jsonl"), weight=1.0)], options, "poisoned")
    return folder / "data"


def guarded(action: str, **changes: Any) -> PretrainConfig:
    return tiny_config(
        **{
            "guard.action": action, "guard.window": 10, "guard.min_grad_norm_rise": 50.0, "guard.ignore_first": 40,
            "train.train_iters": 100,
            "train.eval_interval": 0, "scheduler.lr_wsd_decay_iters": 20, "checkpoint.keep_last": 0, **changes,
        }
    )  # fmt: skip


def train_with_restarts(config: PretrainConfig, data: Path, run_dir: Path, ranks: int) -> list[Outcome]:
    """Start the ranks again as long as all of them are rolled back, as the launcher does."""
    outcomes = []
    while True:
        ends = [child.result() for child in start_ranks(config, data, run_dir, ranks)]
        assert len({(end.status, end.iteration) for end in ends}) == 1
        outcomes.append(ends[0])
        if ends[0].status != "rolled back":
            return outcomes
        assert ends[0].exit_code() == read_metrics(run_dir)[-1]["exit_code"] == 77


def poison_iterations(run_dir: Path, data: Path, config: PretrainConfig) -> list[int]:
    """The iterations whose batch holds the poisoned document."""
    lengths = {n: len(IndexedFile(data / "train/data_00000").document(n)) for n in range(80)}
    poison = next(n for n, length in lengths.items() if list(lengths.values()).count(length) == 1)
    return [
        i for i in range(1, config.train.train_iters + 1)
        if any(row["document"] == poison for row in describe_documents(config, run_dir, data, i))
    ]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_guard_rolls_back_and_leaves_out_the_poisoned_samples(poisoned: Path, tmp_path: Path, ranks: int) -> None:
    own = guarded("rollback")
    *rollbacks, end = train_with_restarts(own, poisoned, tmp_path / "guarded", ranks)
    assert end.status == "finished" and rollbacks
    record = read_skips(tmp_path / "guarded")
    found = [event["iteration"] for event in read_events(tmp_path / "guarded")]
    assert sorted(found) == record.after(0) and len(found) == record.rollbacks == len(rollbacks)
    poison = poison_iterations(tmp_path / "guarded", poisoned, own)
    assert set(found) <= set(poison) and {i for i in poison if 40 < i < 100} <= set(found)
    for event in read_events(tmp_path / "guarded"):
        assert event["documents"] == describe_documents(own, tmp_path / "guarded", poisoned, event["iteration"])
    by_hand = guarded("none", **{"train.skip_iterations": [[i, i] for i in found]})
    train_with_restarts(by_hand, poisoned, tmp_path / "by_hand", ranks)
    assert losses(tmp_path / "guarded") == losses(tmp_path / "by_hand")
    assert bitwise(tmp_path / "guarded", tmp_path / "by_hand", tmp_path)


def test_the_guard_leaves_out_the_step(poisoned: Path, tmp_path: Path) -> None:
    own = guarded("skip")
    (end,) = train_with_restarts(own, poisoned, tmp_path / "guarded", 1)
    dropped = [[one.first, one.last] for one in read_skips(tmp_path / "guarded").ranges]
    assert end.status == "finished" and dropped
    by_hand = guarded("none", **{"train.skip_iterations": dropped})
    train_with_restarts(by_hand, poisoned, tmp_path / "by_hand", 1)
    assert bitwise(tmp_path / "guarded", tmp_path / "by_hand", tmp_path)


def test_a_bound_ends_the_run(poisoned: Path, tmp_path: Path) -> None:
    from nano3.utils.errors import Failure

    with pytest.raises(Failure, match=r"after 0 rollbacks \(guard.max_rollbacks=0\)"):
        train_with_restarts(guarded("rollback", **{"guard.max_rollbacks": 0}), poisoned, tmp_path, 1)
    assert [event["action"] for event in read_events(tmp_path)] == ["fail"]
