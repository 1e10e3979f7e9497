"""Test merging: a shard has its units' documents in order, also after an interruption."""

from pathlib import Path

import numpy as np
import pytest
from data_helpers import paper_dataset, paper_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.build.build_state import BuildState
from nano3.data.build.merge import merge_shard
from nano3.data.build.receipts import ShardReceipt, UnitReceipt, unit_receipt_path, write_receipt
from nano3.data.build.shard_fragment import open_fragment
from nano3.data.dataset.checksum import checksum
from nano3.data.dataset.indexed import IndexedFile
from nano3.data.planning.plan import SPLITS, Plan
from nano3.utils.errors import Failure

Documents = list[list[int]]
SHARD = (0, 0, 0)  # split, dataset, shard


def make_unit(build: Path, number: int, documents: Documents | None, engine: str = "fastokens") -> None:
    """Write a unit's fragment for the only shard and its receipt; None for a unit without documents."""
    fragments = []
    if documents is not None:
        writer = open_fragment(build, number, 0, 0)
        for key, ids in enumerate(documents):
            writer.add(np.array(ids, np.uint16), np.array([len(ids)], np.int32), (number, key), (number, key))
        fragments.append(writer.commit())
    count = len(documents or [])
    write_receipt(
        unit_receipt_path(build, number), UnitReceipt(number, engine, count, 0, {}, 0, 0, 0, count, fragments)
    )


def build_of(folder: Path, units: list[Documents | None]) -> tuple[Plan, Path]:
    """Make a build of one shard with a file for each unit."""
    plan = paper_plan(folder, [paper_dataset([100] * len(units), shards=(1, 0, 0), cells_per_shard=len(units))])
    assert plan.units == len(units)
    build = folder / "build"
    for sub in ("units", "shards", *SPLITS):
        (build / sub).mkdir(parents=True)
    for number, documents in enumerate(units):
        make_unit(build, number, documents)
    return plan, build


def merge(plan: Plan, build: Path, state: BuildState | None = None) -> ShardReceipt:
    """Merge the only shard."""
    return merge_shard(plan, build, SHARD, *(state or BuildState(plan, build)).shard_fragments(SHARD))


def merged_documents(build: Path) -> Documents:
    data = IndexedFile(build / "train" / "data_00000")
    return [data.document(i).tolist() for i in range(len(data))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


unit = st.none() | st.lists(st.lists(st.integers(0, 999), max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(unit, min_size=1, max_size=5))
def test_a_shard_is_its_units_documents_in_order(
    tmp_path_factory: pytest.TempPathFactory, units: list[Documents | None]
) -> None:
    plan, build = build_of(tmp_path_factory.mktemp("merge"), units)
    receipt = merge(plan, build)
    wanted = [ids for documents in units for ids in documents or []]
    assert (receipt.documents, receipt.tokens) == (len(wanted), sum(map(len, wanted)))
    assert receipt.sequences == sum(bool(ids) for ids in wanted)
    first = next((n for n, documents in enumerate(units) if documents), None)
    assert receipt.first == (None if first is None else (first, 0))
    if receipt.sequences:
        assert merged_documents(build) == wanted
        assert receipt.bin_bytes == (build / "train" / "data_00000.bin").stat().st_size == 2 * receipt.tokens
        assert receipt.bin_xxh128 == checksum(build / "train" / "data_00000.bin")
        assert receipt.idx_xxh128 == checksum(build / "train" / "data_00000.idx")
    else:
        assert receipt.name is None
        assert names(build / "train") == [], "no files for a shard without a token"
    assert names(build / "units") == [f"{n:06d}.json" for n in range(len(units))], "merged fragments are deleted"
    assert BuildState(plan, build).shards == {SHARD: receipt}
    assert BuildState(plan, build).open_units() == []


# Write errors, made by a folder with the name of the file to be written

UNITS: dict[str, list[Documents | None]] = {
    "one_fragment_is_renamed": [[[1, 2], [3]]],
    "one_fragment_of_several_has_tokens": [[[]], [[1, 2], []], None, [[], []]],
    "fragments_are_copied": [[[1, 2]], [[], [3]], [[4]]],
}
REFUSALS = ["train/data_00000.idx", "shards/train.00000.json"]


@pytest.mark.parametrize("refused", REFUSALS)
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS.keys())
def test_a_failed_merge_succeeds_in_the_next_run(tmp_path: Path, units: list[Documents | None], refused: str) -> None:
    plan, build = build_of(tmp_path, units)
    state = BuildState(plan, build)
    (build / refused / "in the way").mkdir(parents=True)
    with pytest.raises(Failure, match=rf"{refused}: cannot be written: "):
        merge(plan, build, state)
    assert not list(build.rglob(".*")), "no temporary file is left"
    (build / refused / "in the way").rmdir()
    (build / refused).rmdir()
    state = BuildState(plan, build)
    assert state.open_units() == [], "no unit is rebuilt"
    assert [shard for shard, _, _ in state.open_shards()] == [SHARD]
    again = merge(plan, build)
    assert merged_documents(build) == [ids for documents in units for ids in documents or []]
    assert BuildState(plan, build).shards == {SHARD: again}


@pytest.mark.parametrize("after", [True, False], ids=["a_later_file", "an_earlier_file"])
def test_a_renamed_fragment_is_found_if_another_unit_now_has_documents(tmp_path: Path, after: bool) -> None:
    """The run was killed between renaming the only fragment and writing the receipt.

    Then a file is edited, and its unit, which had no document for the shard, has some.
    """
    empty, full = (1, 0) if after else (0, 1)
    plan, build = build_of(tmp_path, [None if n == empty else [[1, 2], [3]] for n in range(2)])
    (build / REFUSALS[0]).mkdir()
    with pytest.raises(Failure):
        merge(plan, build)
    (build / REFUSALS[0]).rmdir()
    unit_receipt_path(build, empty).unlink()
    assert BuildState(plan, build).open_units() == [empty]
    make_unit(build, empty, [[7, 8, 9]])
    receipt = merge(plan, build)
    assert merged_documents(build) == ([[1, 2], [3], [7, 8, 9]] if after else [[7, 8, 9], [1, 2], [3]])
    assert receipt.bin_xxh128 == checksum(build / "train" / "data_00000.bin")
    assert full not in BuildState(plan, build).open_units()


def test_a_rebuilt_fragment_replaces_the_renamed_one(tmp_path: Path) -> None:
    plan, build = build_of(tmp_path, [[[1, 2], [3]]])
    (build / REFUSALS[0]).mkdir()
    with pytest.raises(Failure):
        merge(plan, build)
    (build / REFUSALS[0]).rmdir()
    make_unit(build, 0, [[4], [5, 6]])
    merge(plan, build)
    assert merged_documents(build) == [[4], [5, 6]]


def test_a_shard_that_lost_all_its_tokens_has_no_files(tmp_path: Path) -> None:
    """`finish_build` deletes the old files, as no receipt names them."""
    plan, build = build_of(tmp_path, [[[1, 2]], [[3]]])
    merge(plan, build)
    for number in range(2):
        make_unit(build, number, [[]])
    (build / REFUSALS[1]).unlink()
    receipt = merge(plan, build)
    assert (receipt.name, receipt.documents, receipt.bin_xxh128) == (None, 2, "")


@pytest.mark.parametrize(
    ("engines", "wanted"),
    [(["fastokens", "tokenizers"], "fastokens"), (["tokenizers", "tokenizers"], "tokenizers")],
    ids=["one_is_fast", "none_is"],
)
def test_a_shard_with_any_fast_fragment_counts_as_fast(tmp_path: Path, engines: list[str], wanted: str) -> None:
    """After a mismatch, every shard with a fragment of the fast engine is rebuilt."""
    plan, build = build_of(tmp_path, [None, None])
    for number, engine in enumerate(engines):
        make_unit(build, number, [[number + 1]], engine)
    assert merge(plan, build).engine == wanted
    state = BuildState(plan, build)
    state.mark_mismatch("seen in a test")
    assert bool(state.shards) == bool(BuildState(plan, build).shards) == (wanted == "tokenizers")
    assert BuildState(plan, build).open_units() == ([0, 1] if wanted == "fastokens" else [])
