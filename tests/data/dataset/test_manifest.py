"""The manifest: its totals, the weights in blend.json, and files that are not a manifest."""

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
    """A plan of two datasets: the first has train shards 0 and 1 and valid shard 0, the second train 2 and valid 1."""
    first = paper_dataset([100, 100], shards=(2, 1, 0), cells_per_shard=1)
    second = paper_dataset([100], name="e", shards=(1, 1, 1), cells_per_shard=1)
    second.weight = 0.25
    return paper_plan(folder, [first, second])


def shard_of(plan: Plan, split: int, dataset: int, shard: int, tokens: int) -> ShardReceipt:
    """A receipt with one document per token; without tokens there is no file."""
    name = plan.shard_name(split, dataset, shard) if tokens else None
    ends = ((0, 5), (0, 9))
    return ShardReceipt(split, dataset, shard, name, tokens + 1, tokens, tokens, 2 * tokens, "b", "i", "e", *ends)


def unit_of(number: int, **keys: Any) -> UnitReceipt:
    values = {"engine": "fastokens", "documents": 10, "empty": 1, "skipped": {}, "special": 2, "checked": 0}
    return UnitReceipt(number, **{**values, "truncated": 3, "text_bytes": 100, "fragments": [], **keys})


def manifest_with(folder: Path, tokens: dict[tuple[int, int, int], int]) -> Manifest:
    """A manifest with these numbers of tokens in the shards."""
    plan = plan_of(folder)
    units = [unit_of(0, skipped={"null": 2}), unit_of(1, skipped={"null": 1, "short": 4}), unit_of(2, engine="other")]
    shards = [shard_of(plan, *shard, tokens.get(shard, 0)) for shard in reversed(plan.shards())]
    return make_manifest(plan, shards, units)


TOKENS = {(0, 0, 0): 30, (0, 0, 1): 10, (0, 1, 0): 7, (1, 0, 0): 5}


def test_totals_of_datasets_and_splits(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, TOKENS)
    first, second = manifest.datasets
    assert (first.rows, first.documents, first.skipped) == (27, 20, {"null": 3, "short": 4})
    assert (first.empty, first.special_tokens, first.truncated, first.text_bytes) == (2, 4, 6, 200)
    assert (first.tokens, second.tokens) == (45, 7)
    assert first.splits["train"] == Counts(documents=42, sequences=40, tokens=40)
    assert second.splits["test"] == Counts(documents=1, sequences=0, tokens=0)
    assert manifest.splits["train"].tokens == 47
    assert manifest.versions["engine"] == "fastokens and other"


def test_shards_are_sorted_and_empty_ones_left_out(tmp_path: Path) -> None:
    """Receipts come in the order in which shards were finished."""
    manifest = manifest_with(tmp_path, TOKENS)
    names = [shard.prefix for shard in manifest.shards]
    assert names == ["train/data_00000", "train/data_00001", "train/data_00002", "valid/data_00000"]
    assert manifest.shards[2].source == [("000000", 5), ("000000", 9)]


def test_saved_manifest_is_loaded_back(tmp_path: Path) -> None:
    manifest = manifest_with(tmp_path, TOKENS)
    (tmp_path / "manifest.json").write_text(encode_json(manifest))
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(str(tmp_path)).content == manifest.content


def test_manifest_of_an_earlier_version_is_read_and_written_back(tmp_path: Path) -> None:
    """Data made before `rows` and `inputs` were recorded. Unknown keys are ignored."""
    values = msgspec.to_builtins(manifest_with(tmp_path, TOKENS))
    for dataset in values["datasets"]:
        del dataset["rows"], dataset["inputs"]
    (tmp_path / "manifest.json").write_text(encode_json({**values, "a key of a later version": 1}))
    manifest = load_manifest(tmp_path)
    assert [(d.rows, d.inputs) for d in manifest.datasets] == [(None, [])] * 2
    assert encode_json(manifest) == encode_json(values)


def test_missing_key_of_an_entry_is_reported(tmp_path: Path) -> None:
    values = msgspec.to_builtins(manifest_with(tmp_path, TOKENS))
    del values["shards"][1]["tokens"]
    (tmp_path / "manifest.json").write_text(encode_json(values))
    with pytest.raises(Failure, match=r"damaged: Object missing required field `tokens` - at `\$\.shards\[1\]`"):
        load_manifest(tmp_path)


def test_manifest_is_written_as_json_of_its_format(tmp_path: Path) -> None:
    """The keys and their order, which do not change within a format."""
    values = json.loads(encode_json(manifest_with(tmp_path, TOKENS)))
    assert list(values) == [
        "format", "blend", "plan_hash", "tokenizer", "dtype", "options", "datasets", "splits", "shards", "versions",
        "checksum",
    ]  # fmt: skip
    assert list(values["tokenizer"]) == [
        "model", "revision", "sha256", "path", "vocab_size", "eod_id", "eod_token",
    ]  # fmt: skip
    assert list(values["datasets"][0]) == [
        "name", "weight", "path", "revision", "files", "rows", "documents", "empty", "tokens", "text_bytes", "skipped",
        "truncated", "special_tokens", "splits", "inputs",
    ]  # fmt: skip
    assert list(values["datasets"][0]["inputs"][0]) == ["name", "bytes", "fingerprint", "mtime_ns", "format"]
    assert list(values["splits"]["train"]) == ["documents", "sequences", "tokens"]
    assert list(values["shards"][0]) == [
        "split", "prefix", "dataset", "documents", "sequences", "tokens", "bin_bytes", "bin_xxh128", "idx_xxh128",
        "source",
    ]  # fmt: skip


def test_content_depends_on_weights_and_not_on_order(tmp_path: Path) -> None:
    one, other = manifest_with(tmp_path, TOKENS), manifest_with(tmp_path, TOKENS)
    other.datasets.reverse()
    assert one.content == other.content
    other.datasets[0].weight = 0.75
    assert one.content != other.content


counts = st.integers(0, 10**13)
weights = st.floats(1e-9, 1e9)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(counts, min_size=3, max_size=3), weight=weights, other=weights)
def test_shards_share_their_datasets_weight(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], weight: float, other: float
) -> None:
    shards = [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    manifest = manifest_with(tmp_path_factory.getbasetemp(), dict(zip(shards, tokens, strict=True)))
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
    assert all(set(share) <= set("0123456789.") for share in shares.values()), (
        "Megatron's parser does not take exponents"
    )


@given(st.decimals(Decimal("1e-30"), Decimal("1e30"), allow_nan=False, allow_infinity=False))
def test_weight_has_twelve_digits_and_no_exponent(value: Decimal) -> None:
    text = format_weight(value)
    assert set(text) <= set("0123456789.")
    assert not text.endswith(".")
    assert abs(Decimal(text) - value) <= value * Decimal("5e-12")


@pytest.mark.parametrize(
    ("value", "text"),
    [("1", "1"), ("100", "100"), ("0.1", "0.1"), ("1e-7", "0.0000001"), ("1e20", "1" + "0" * 20)],
)
def test_format_of_simple_weights(value: str, text: str) -> None:
    assert format_weight(Decimal(value)) == text


def test_split_without_tokens_has_an_empty_blend(tmp_path: Path) -> None:
    blend = make_blend(manifest_with(tmp_path, {(0, 0, 0): 1}), tmp_path)
    assert list(blend) == list(SPLITS)
    assert blend["train"] == ["1", str(tmp_path / "train" / "data_00000")]
    assert blend["valid"] == blend["test"] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text() | st.floats(1e-3, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_is_formatted_like_write_json(value: Any) -> None:
    """Both give the same bytes; `encode_json` is faster."""
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
def test_other_json_is_rejected(tmp_path: Path, value: Any) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(value))
    with pytest.raises(Failure, match=r"manifest\.json: (not a data manifest|damaged: blend, plan_hash, .* missing)"):
        load_manifest(tmp_path)


WRONG_TYPES: dict[str, Any] = {"datasets": {}, "splits": {"train": 5}, "tokenizer": [], "versions": None, "shards": [3]}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_type_is_reported_with_its_key(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(
        encode_json({**msgspec.to_builtins(manifest_with(tmp_path, TOKENS)), name: WRONG_TYPES[name]})
    )
    with pytest.raises(Failure, match=rf"manifest\.json: damaged: Expected .* at `\$\.{name}"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("value", [None, 5, {}, "", ["1"], [[], 2]], ids=str)
def test_wrong_value_in_blend_is_reported(tmp_path: Path, value: Any) -> None:
    manifest = manifest_with(tmp_path, TOKENS)
    (tmp_path / "blend.json").write_text(encode_json({**make_blend(manifest, tmp_path), "train": value}))
    (problem,) = check_blend(tmp_path, manifest)
    assert problem.startswith(f"{tmp_path}/blend.json: train does not list the 3 shards here")
    (tmp_path / "blend.json").write_text(encode_json(make_blend(manifest, tmp_path)))
    assert check_blend(tmp_path, manifest) == []


@pytest.mark.parametrize("format", [1, 3])
def test_other_format_is_rejected(tmp_path: Path, format: int) -> None:
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode({"format": format}))
    with pytest.raises(Failure, match=rf"format {format}; this nano3 reads format 2. Prepare the data again"):
        load_manifest(tmp_path)


def test_folder_in_place_of_the_manifest_is_reported(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(Failure, match=r"manifest\.json: cannot be read: Is a directory"):
        load_manifest(tmp_path)


def test_a_disk_that_cannot_be_read_is_no_reason_to_prepare_again(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("/proc/self/mem")  # its first page is an input/output error
    with pytest.raises(Failure, match=r"cannot be read: Input/output error\. Check its disk or mount") as failed:
        load_manifest(tmp_path)
    assert "Prepare the data again" not in str(failed.value)


@pytest.mark.parametrize(("prep", "hint"), [(True, "run it again"), (False, "not a folder that nano3.data_prep made")])
def test_missing_manifest_of_an_unfinished_preparation(tmp_path: Path, prep: bool, hint: str) -> None:
    if prep:
        (tmp_path / ".prep").mkdir()
    with pytest.raises(UserError, match=hint):
        load_manifest(tmp_path)


def test_missing_or_damaged_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder that nano3"):
        load_manifest(tmp_path)
    (tmp_path / ".prep").mkdir()
    with pytest.raises(UserError, match="not finished: run it again"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(Failure, match="cannot be read"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "blend": "x"}')
    with pytest.raises(Failure, match=r"of format 1; this nano3 reads format 2\. .*force=true"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 2, "blend": "x"}')
    with pytest.raises(Failure, match="plan_hash"):
        load_manifest(tmp_path)
