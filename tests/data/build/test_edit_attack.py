"""Attack builds with edits, kills and reruns: what is published is what one undisturbed run makes of the last input.

Units and shards are built in this process, so that one sequence takes milliseconds.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_helpers import options, source, texts, tree, write

from nano3.data.build.build_state import BuildState
from nano3.data.build.merge import merge_shard
from nano3.data.build.progress import ProgressMeter
from nano3.data.build.resume_build import set_up_build
from nano3.data.build.run import finish_build
from nano3.data.build.unit_encoder import Worker
from nano3.data.dataset import output_dir
from nano3.data.planning import plan as plans
from nano3.data.planning.plan import load_plan
from nano3.data.planning.planner import make_request
from nano3.data.tokenization.encoders import Encoder, reference_encoder
from nano3.data.tokenization.engines import load_engines
from nano3.utils.errors import Nano3Error

REFUSALS = ("changed", "bytes now", "No such file")  # of a file that is edited while it is read
NAMES = ("a.jsonl", "b.parquet", "c.jsonl.gz", "d.arrow")


class KilledError(Exception):
    """The run ends here."""


class Attack:
    """One input folder and one output folder."""

    def __init__(self, folder: Path, tokenizer: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder, self.tokenizer = folder, tokenizer
        self.encoder: Encoder | None = None
        for i, name in enumerate(NAMES):
            write(folder / "in" / name, texts(40, seed=i))

    def build(self, output: Path, steps: int = 1 << 30) -> None:
        """Prepare the data; a "kill" ends it after some steps, and an edit may come between any two."""
        keys = {"num_shards": 5, "valid_fraction": 0.1, "force": True, "engine": "tokenizers"}
        request = make_request([source(self.folder / "in")], options(output, self.tokenizer, **keys), "test")
        with output_dir.hold_output_lock(output):
            path = set_up_build(request, output)
            plan = load_plan(path)
            state = BuildState(plan, path.parent)
            if self.encoder is None:
                self.encoder = reference_encoder(load_engines(plan.tokenizer.file, False, fast=False).reference)
            worker = Worker(plan, path.parent, self.encoder, None)
            for number in state.open_units():
                steps = self.step(steps)
                state.add_unit(worker.encode_unit(number))
            for shard, _, _ in state.open_shards():
                steps = self.step(steps)
                state.shards[shard] = merge_shard(plan, path.parent, shard, *state.shard_fragments(shard))
            self.step(steps)
            finish_build(plan, path, state, ProgressMeter(plan.units, plan.units))

    def step(self, steps: int) -> int:
        if steps == 0:
            raise KilledError
        if steps < 1 << 20 and self.rng.random() < 0.03:
            self.edit()
        return steps - 1

    def edit(self) -> None:
        """Edit, touch, remove or add a file; an edit may keep size and modification time."""
        path = self.folder / "in" / self.rng.choice(NAMES)
        how = self.rng.choice(("rewrite", "same size", "same size and time", "touch", "remove"))
        if how == "rewrite" or not path.exists():
            write(path, texts(self.rng.randrange(20, 50), seed=self.rng.randrange(1000)))
            return
        before = path.stat()
        if how.startswith("same size") and path.suffix == ".jsonl":
            path.write_bytes(path.read_bytes().replace(b"model", self.rng.choice((b"MODEL", b"ledom", b"model"))))
        if how == "same size and time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif how == "touch":
            path.touch()
        elif how == "remove" and len(list(path.parent.iterdir())) > 1:
            path.unlink()

    def sequence(self, results: Counter[str]) -> None:
        """Kill and edit a few runs, damage the build, then finish one and compare it with a fresh build."""
        output = self.folder / "out"
        for _ in range(self.rng.randrange(1, 4)):
            try:
                self.build(output, self.rng.randrange(0, 24))
                results["finished early"] += 1
            except KilledError:
                results["killed"] += 1
            except Nano3Error as error:
                assert any(why in str(error) for why in REFUSALS), error
                results["refused"] += 1
            if self.rng.random() < 0.4:
                self.damage(output)
            if self.rng.random() < 0.7:
                self.edit()
        self.build(output)
        fresh = self.folder / "fresh"
        self.build(fresh)
        assert tree(output) == tree(fresh)
        results["compared"] += 1
        for folder in (output, fresh):
            if folder == fresh or self.rng.random() < 0.5:
                output_dir.remove_path(folder)

    def damage(self, output: Path) -> None:
        """Flip a bit of a file of the unfinished build."""
        files = [
            f for f in sorted((output / ".prep").rglob("*")) if f.is_file() and f.stat().st_size and f.name != "lock"
        ]
        if files:
            path = self.rng.choice(files)
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MIN_UNIT", 4_000)
    monkeypatch.setattr(plans, "MAX_UNIT", 4_000)


def attack(folder: Path, tokenizer: Path, seeds: range, rounds: int) -> Counter[str]:
    results: Counter[str] = Counter()
    for seed in seeds:
        one = Attack(folder / str(seed), tokenizer, seed)
        for _ in range(rounds):
            one.sequence(results)
    print(dict(results))
    return results


def test_edits_kills_and_reruns(tmp_path: Path, byte_bpe: Path) -> None:
    assert attack(tmp_path, byte_bpe, range(2), 4)["compared"] == 8


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if this machine has one: thousands of files are synced."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(100, 170, 10))
def test_many_edits_kills_and_reruns(memory_folder: Path, byte_bpe: Path, first: int) -> None:
    """With the other parameters, 840 sequences."""
    assert attack(memory_folder, byte_bpe, range(first, first + 10), 12)["compared"] == 120
