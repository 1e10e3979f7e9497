"""The sample index without Megatron gives the same tokens as Megatron's dataset."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_processes import SAMPLE, Child

from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare
from nano3.data.dataset.indexed import IndexedFile
from nano3.training.run.sample_index import LABEL, SampleIndex, ShardIndex, TokenSpan
from nano3.utils.errors import Failure, UserError

SEQ, SEED, SAMPLES = 32, 1234, 48
SEQ_LENGTH = 5  # of the drawn indexes


def megatron_samples(data: Path, cache: Path, samples: int) -> list[list[int]]:
    """Return input tokens and last label of each training sample, from Megatron's dataset."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder

    dataset = DatasetBuilder(open_data(data), SEQ, SEED, cache).train(samples)
    rows = [dataset[i] for i in range(samples)]
    return [[*row["tokens"].tolist(), int(row["labels"][-1])] for row in rows]


def index_samples(cache: Path, samples: int) -> list[list[int]]:
    """Return the same from the index and the shards."""
    order = SampleIndex(cache, samples)
    rows = []
    for sample in range(samples):
        member, number = order.locate(sample)
        shard = IndexedFile(member.prefix)
        row: list[int] = []
        for span in member.token_spans(number, shard.lengths):
            start = int(shard.offsets[span.sequence]) // shard.dtype.itemsize
            assert 0 <= span.start < span.stop <= int(shard.lengths[span.sequence])
            row += shard.tokens[start + span.start : start + span.stop].tolist()
        rows.append(row)
    return rows


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    yield lambda job, *args: Child(job, args, tmp_path / "log.txt").result()


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that is not blended: one dataset, one shard."""
    folder = tmp_path_factory.mktemp("one") / "prepared"
    source = SourceConfig(name="code", path=str(SAMPLE / "code.jsonl.zst"), weight=1.0)
    prepare(
        [source],
        PrepOptions(
            output_dir=str(folder), tokenizer_model=str(SAMPLE / "tokenizer"), num_shards=1, sample=40,
            valid_fraction=0.0, test_fraction=0.0, workers=1,
        ),
        "one",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("samples", [SAMPLES, 3000], ids=["within an epoch", "several epochs"])
def test_a_blend(data: Path, tmp_path: Path, child: Callable[..., Any], samples: int) -> None:
    assert child(megatron_samples, data, tmp_path / "cache", samples) == index_samples(tmp_path / "cache", samples)


@pytest.mark.parametrize("samples", [SAMPLES, 20_000], ids=["within an epoch", "several epochs"])
def test_a_single_shard(one_shard: Path, tmp_path: Path, child: Callable[..., Any], samples: int) -> None:
    assert child(megatron_samples, one_shard, tmp_path / "cache", samples) == index_samples(tmp_path / "cache", samples)


def test_the_index_of_the_requested_length_is_used(data: Path, tmp_path: Path, child: Callable[..., Any]) -> None:
    cache = tmp_path / "cache"
    for samples in (SAMPLES, 3000, 96):
        child(megatron_samples, data, cache, samples)
    for samples in (SAMPLES, 96, 3000):
        blend = SampleIndex(cache, samples).blend
        assert blend is not None
        assert samples <= len(blend[0]) <= samples + 3


def test_another_length_is_reported(data: Path, tmp_path: Path, child: Callable[..., Any]) -> None:
    child(megatron_samples, data, tmp_path / "cache", SAMPLES)
    with pytest.raises(
        UserError, match=r"no sample index of 60 samples .*, only of 49: the run was started with another length"
    ):
        SampleIndex(tmp_path / "cache", 60)


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "empty folder"])
def test_a_run_that_has_not_started(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "cache").mkdir()
    with pytest.raises(UserError, match="there is no sample index yet; the run creates it when training starts"):
        SampleIndex(tmp_path / "cache", 48)


@pytest.fixture(scope="module")
def kept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of which tests damage copies."""
    folder = tmp_path_factory.mktemp("kept")
    Child(megatron_samples, (data, folder / "cache", SAMPLES), folder / "log.txt").result()
    return folder / "cache"


@pytest.mark.parametrize("what", ["dataset_index", "dataset_sample_index", "document_index", "shuffle_index"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_index_is_named(kept: Path, tmp_path: Path, what: str, how: str) -> None:
    cache = Path(shutil.copytree(kept, tmp_path / "cache"))
    for path in cache.glob(f"*-train-{what}.npy"):
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(Failure, match=rf"{what}\.npy: cannot be read: .*the next start creates it again"):
        SampleIndex(cache, SAMPLES).locate(0)


def test_a_damaged_description_is_named(kept: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(kept, tmp_path / "cache"))
    for path in cache.glob("*-train-description.txt"):
        path.write_text(path.read_text()[:-5])
    with pytest.raises(Failure, match="a description in it is damaged"):
        SampleIndex(cache, SAMPLES)


def test_the_newest_of_two_indexes_of_one_length(kept: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(kept, tmp_path / "cache"))
    path = next(cache.glob("*-BlendedDataset-train-description.txt"))
    other = json.loads(path.read_text())
    other["weights"] = [0.1, 0.1, 0.8]
    (cache / "new-BlendedDataset-train-description.txt").write_text(json.dumps(other))
    assert SampleIndex(cache, SAMPLES).description["weights"] == [0.1, 0.1, 0.8]


@pytest.mark.parametrize(
    ("sample", "spans"),
    [
        pytest.param(0, [(7, 0, 5)], id="inside one document"),
        pytest.param(1, [(7, 4, 9)], id="to its end"),
        pytest.param(2, [(7, 8, 9), (3, 0, 3), (5, 0, 1)], id="over three"),
    ],
)
def test_token_spans(sample: int, spans: list[tuple[int, int, int]]) -> None:
    """Samples of four tokens and a label from documents 7 (9 tokens), 3 (3) and 5 (6)."""
    lengths = np.array([0, 0, 0, 3, 0, 6, 0, 9])
    rows = np.array([[0, 0], [0, 4], [0, 8], [2, 0]])
    order = ShardIndex(Path("p"), np.array([7, 3, 5]), rows, np.array([0, 1, 2]))
    assert order.token_spans(sample, lengths) == [TokenSpan(Path("p"), *span) for span in spans]
    assert sum(s.stop - s.start for s in order.token_spans(sample, lengths)) == 5


@st.composite
def indexes(draw: st.DrawFn) -> tuple[list[np.ndarray], SampleIndex]:
    """Return sequence lengths of some shards, and an index over them as Megatron builds it."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    members, lengths = [], []
    for shard in range(draw(st.integers(1, 3))):
        own = rng.integers(1, 9, draw(st.integers(2, 12)))
        documents = np.concatenate([rng.permutation(len(own)) for _ in range(draw(st.integers(1, 4)))]).astype(np.int32)
        bounds = np.cumsum([0, *own[documents]])
        starts = np.arange(0, bounds[-1] - LABEL, SEQ_LENGTH)  # where samples begin, as token positions
        entries = np.searchsorted(bounds, starts, "right") - 1
        samples = np.stack([entries, starts - bounds[entries]], axis=1).astype(np.int32)
        shuffle = rng.permutation(max(len(samples) - 1, 0))
        members.append(ShardIndex(Path(f"data/train/data_{shard:05d}"), documents, samples, shuffle))
        lengths.append(own)
    index = SampleIndex.__new__(SampleIndex)
    order = rng.permutation(np.repeat(np.arange(len(members)), [len(m.shuffle) for m in members])).astype(np.int16)
    numbers = np.array([np.count_nonzero(order[:i] == order[i]) for i in range(len(order))], np.int64)
    index.__dict__ |= {"members": members, "blend": (order, numbers), "size": max(len(order) - 1, 0)}
    return lengths, index


@given(indexes())
def test_the_way_back_finds_every_read_of_every_sequence(made: tuple[list[np.ndarray], SampleIndex]) -> None:
    lengths, index = made
    forward: dict[tuple[int, int], set[tuple[int, int, int]]] = {}
    for sample in range(index.size):
        member, number = index.locate(sample)
        shard = index.members.index(member)
        for span in member.token_spans(number, lengths[shard]):
            if span.start < span.stop:
                forward.setdefault((shard, span.sequence), set()).add((sample, span.start, span.stop))
    for shard, own in enumerate(lengths):
        for sequence in range(len(own)):
            found = index.members[shard].samples_of(sequence, own)
            samples = index.samples_of(shard, [number for number, _ in found])
            back = {(samples[number], span.start, span.stop) for number, span in found if number in samples}
            assert back == forward.get((shard, sequence), set())
