"""The manifest: what it adds up, the weights it gives, and the ways in which it is no manifest."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from data_helpers import paper_dataset, paper_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.build.manifest_builder import make_manifest
from nano3.data.build.receipts import ShardReceipt, UnitReceipt
from nano3.data.dataset.manifest import Counts, Manifest, encode_json, format_weight, load_manifest, make_blend
from nano3.data.dataset.verify import check_blend
from nano3.data.planning.plan import SPLITS, Plan
from nano3.utils.errors import Failure, UserError


def plan_of(folder: Path) -> Plan:
    """Two datasets: shards 0 and 1 of train and 0 of valid are the first's, 2 of train and 1 of valid the second's."""
    first = paper_dataset([100, 100], shards=(2, 1, 0), cells_per_shard=1)
    second = paper_dataset([100], name="e", shards=(1, 1, 1), cells_per_shard=1)
    second.weight = 0.25
    return paper_plan(folder, [first, second])


def shard_of(plan: Plan, split: int, dataset: int, shard: int, tokens: int) -> ShardReceipt:
    """A receipt of one document for each token; none has no file."""
    name = plan.shard_name(split, dataset, shard) if tokens else None
    ends = ((0, 5), (0, 9))
    return ShardReceipt(split, dataset, shard, name, tokens + 1, tokens, tokens, 2 * tokens, "b", "i", "e", *ends)


def unit_of(number: int, **keys: Any) -> UnitReceipt:
    values = {"engine": "fastokens", "documents": 10, "empty": 1, "skipped": {}, "special": 2, "checked": 0}
    return UnitReceipt(number, **{**values, "truncated": 3, "text_bytes": 100, "parts": [], **keys})


def made(folder: Path, tokens: dict[tuple[int, int, int], int]) -> Manifest:
    """A manifest with so many tokens in the shards."""
    plan = plan_of(folder)
    units = [unit_of(0, skipped={"null": 2}), unit_of(1, skipped={"null": 1, "short": 4}), unit_of(2, engine="other")]
    shards = [shard_of(plan, *shard, tokens.get(shard, 0)) for shard in reversed(plan.shards())]
    return make_manifest(plan, shards, units)


TOKENS = {(0, 0, 0): 30, (0, 0, 1): 10, (0, 1, 0): 7, (1, 0, 0): 5}


def test_a_dataset_has_what_its_units_and_shards_have(tmp_path: Path) -> None:
    manifest = made(tmp_path, TOKENS)
    first, second = manifest.datasets
    assert (first.rows, first.documents, first.skipped) == (27, 20, {"null": 3, "short": 4})
    assert (first.empty, first.special_tokens, first.truncated, first.text_bytes) == (2, 4, 6, 200)
    assert (first.tokens, second.tokens) == (45, 7)
    assert first.splits["train"] == Counts(documents=42, sequences=40, tokens=40)
    assert second.splits["test"] == Counts(documents=1, sequences=0, tokens=0)
    assert manifest.splits["train"].tokens == 47
    assert manifest.versions["engine"] == "fastokens and other"


def test_shards_stand_in_the_order_of_their_files_and_those_without_files_not_at_all(tmp_path: Path) -> None:
    """Receipts come in the order in which joins have ended."""
    manifest = made(tmp_path, TOKENS)
    names = [shard.prefix for shard in manifest.shards]
    assert names == ["train/data_00000", "train/data_00001", "train/data_00002", "valid/data_00000"]
    assert manifest.shards[2].source == [("000000", 5), ("000000", 9)]


def test_a_manifest_comes_back_from_its_file(tmp_path: Path) -> None:
    manifest = made(tmp_path, TOKENS)
    (tmp_path / "manifest.json").write_text(encode_json(manifest))
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(str(tmp_path)).content == manifest.content


def test_the_identity_of_data_knows_the_weights_and_not_the_order(tmp_path: Path) -> None:
    one, other = made(tmp_path, TOKENS), made(tmp_path, TOKENS)
    other.datasets.reverse()
    assert one.content == other.content
    other.datasets[0].weight = 0.75
    assert one.content != other.content


counts = st.integers(0, 10**13)
weights = st.floats(1e-9, 1e9)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(counts, min_size=3, max_size=3), weight=weights, other=weights)
def test_weights_of_shards_are_their_datasets_weight_shared_out(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], weight: float, other: float
) -> None:
    shards = [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    manifest = made(tmp_path_factory.getbasetemp(), dict(zip(shards, tokens, strict=True)))
    for dataset, value in zip(manifest.datasets, (weight, other), strict=True):
        dataset.weight = value
    entries = make_blend(manifest, Path("/data"))["train"]
    shares = dict(zip(entries[1::2], entries[::2], strict=True))
    assert list(shares) == [f"/data/train/data_{n:05d}" for n in range(3) if tokens[n]]
    for mine, value in (((0, 1), weight), ((2,), other)):
        found = {n: Decimal(shares[f"/data/train/data_{n:05d}"]) for n in mine if tokens[n]}
        total = sum(tokens[n] for n in found)
        for n, share in found.items():
            assert float(share) == pytest.approx(value * tokens[n] / total, rel=1e-10)
    assert all(set(share) <= set("0123456789.") for share in shares.values()), "Megatron's own parser wants it plain"


@given(st.decimals(Decimal("1e-30"), Decimal("1e30"), allow_nan=False, allow_infinity=False))
def test_a_weight_has_no_exponent_and_twelve_digits(value: Decimal) -> None:
    text = format_weight(value)
    assert set(text) <= set("0123456789.")
    assert not text.endswith(".")
    assert abs(Decimal(text) - value) <= value * Decimal("5e-12")


@pytest.mark.parametrize(
    ("value", "text"),
    [("1", "1"), ("100", "100"), ("0.1", "0.1"), ("1e-7", "0.0000001"), ("1e20", "1" + "0" * 20)],
)
def test_plain_weights_look_plain(value: str, text: str) -> None:
    assert format_weight(Decimal(value)) == text


def test_a_split_without_tokens_has_no_entry(tmp_path: Path) -> None:
    blend = make_blend(made(tmp_path, {(0, 0, 0): 1}), tmp_path)
    assert list(blend) == list(SPLITS)
    assert blend["train"] == ["1", str(tmp_path / "train" / "data_00000")]
    assert blend["valid"] == blend["test"] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text() | st.floats(1e-3, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_is_laid_out_as_pythons(value: Any) -> None:
    """What `write_json` writes, only quicker: neither makes a difference of bytes for the other."""
    assert encode_json(value) == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


NOT_A_MANIFEST: dict[str, Any] = {
    "a_list": [],
    "a_text": "manifest",
    "null": None,
    "no_format": {},
    "a_format_in_words": {"format": "2"},
    "only_a_format": {"format": 2},
}


@pytest.mark.parametrize("value", NOT_A_MANIFEST.values(), ids=NOT_A_MANIFEST.keys())
def test_json_that_is_no_manifest_is_told(tmp_path: Path, value: Any) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(value))
    with pytest.raises(Failure, match=r"manifest\.json: (not a data manifest|damaged: blend, plan_hash, .* missing)"):
        load_manifest(tmp_path)


WRONG_KINDS: dict[str, Any] = {"datasets": {}, "splits": {"train": 5}, "tokenizer": [], "versions": None, "shards": [3]}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_a_value_of_another_kind_is_told_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(
        encode_json({**msgspec.to_builtins(made(tmp_path, TOKENS)), name: WRONG_KINDS[name]})
    )
    with pytest.raises(Failure, match=rf"manifest\.json: damaged: Expected .* at `\$\.{name}"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("value", [None, 5, {}, "", ["1"], [[], 2]], ids=str)
def test_a_blend_that_lists_something_else_for_a_split_is_told(tmp_path: Path, value: Any) -> None:
    manifest = made(tmp_path, TOKENS)
    (tmp_path / "blend.json").write_text(encode_json({**make_blend(manifest, tmp_path), "train": value}))
    (problem,) = check_blend(tmp_path, manifest)
    assert problem.startswith(f"{tmp_path}/blend.json: train does not list the 3 shards here")
    (tmp_path / "blend.json").write_text(encode_json(make_blend(manifest, tmp_path)))
    assert check_blend(tmp_path, manifest) == []


@pytest.mark.parametrize("format", [1, 3])
def test_a_manifest_of_another_format_is_told(tmp_path: Path, format: int) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode({"format": format}))
    with pytest.raises(Failure, match=rf"format {format}; this nano3 reads format 2. Prepare the data again"):
        load_manifest(tmp_path)


def test_a_folder_in_place_of_the_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(Failure, match=r"manifest\.json: cannot be read: .*Is a directory"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(("prep", "hint"), [(True, "run it again"), (False, "not a folder that nano3.data_prep made")])
def test_a_folder_without_one_says_whether_it_is_on_the_way(tmp_path: Path, prep: bool, hint: str) -> None:
    if prep:
        (tmp_path / ".prep").mkdir()
    with pytest.raises(UserError, match=hint):
        load_manifest(tmp_path)
