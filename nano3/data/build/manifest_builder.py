"""Make the manifest of a finished build from its receipts."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from nano3.data.build.duplicates import DuplicateCounts
from nano3.data.build.receipts import ShardReceipt, UnitReceipt
from nano3.data.dataset.manifest import (
    FORMAT,
    Counts,
    DatasetEntry,
    InputEntry,
    Manifest,
    ShardEntry,
    TokenizerEntry,
)
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan
from nano3.utils.provenance import installed_versions


def make_manifest(
    plan: Plan,
    shards: list[ShardReceipt],
    units: list[UnitReceipt],
    duplicates: list[DuplicateCounts] | None = None,
    left_out: list[int] | None = None,
) -> Manifest:
    """Add up the receipts of a finished build.

    Args:
        plan: The plan of the build.
        shards: Receipts of all shards, in any order.
        units: Receipts of all units that read anything, in any order.
        duplicates: Result of `count_duplicates`, or None if texts are not hashed.
        left_out: Result of `count_left_out`, or None if the plan leaves no documents out.
    """
    info = plan.tokenizer
    ordered = sorted(shards, key=lambda s: (s.split, s.dataset, s.shard))
    shards_of: list[list[ShardReceipt]] = [[] for _ in plan.datasets]
    units_of: list[list[UnitReceipt]] = [[] for _ in plan.datasets]
    for shard in shards:
        shards_of[shard.dataset].append(shard)
    for unit in units:
        units_of[plan.unit(unit.unit)[0]].append(unit)
    datasets = [dataset_entry(plan, d, shards_of[d], units_of[d]) for d in range(len(plan.datasets))]
    for entry, counts in zip(datasets, duplicates or (), strict=duplicates is not None):
        entry.duplicates, entry.shared = counts
    for number, documents in enumerate(left_out or ()):
        dropped = sum(duplicates[number]) if duplicates and plan.options.dedup == "exact" else 0
        tokens = sum(f.tokens for unit in units if plan.unit(unit.unit)[0] == number for f in unit.fragments)
        leave_out(datasets[number], {"duplicate": dropped, "not_sampled": documents - dropped}, tokens)
    engine_names = {r.engine for r in units}
    return Manifest(
        format=FORMAT,
        blend=plan.blend,
        plan_hash=plan.hash,
        tokenizer=TokenizerEntry(
            model=info.model,
            revision=info.revision,
            sha256=info.sha256,
            path="tokenizer",
            vocab_size=info.vocab_size,
            eod_id=info.eod_id,
            eod_token=info.eod_token,
            bos_id=info.bos_id if plan.options.add_bos else None,
            bos_token=info.bos_token if plan.options.add_bos else None,
        ),
        dtype=plan.dtype,
        options=asdict(plan.options),
        datasets=datasets,
        splits={name: add_counts(d.splits[name] for d in datasets) for name in SPLITS},
        shards=[shard_entry(plan, s, s.name) for s in ordered if s.name],
        versions={**versions(), "engine": " and ".join(sorted(engine_names)) or "none"},
    )


def leave_out(entry: DatasetEntry, documents: dict[str, int], tokens: int) -> None:
    """Count documents of a dataset that were tokenized and left out as skipped rows.

    Args:
        entry: The dataset; its text is reduced in proportion to its tokens.
        documents: Number of documents left out, by reason.
        tokens: Number of tokens with these documents.
    """
    entry.documents -= sum(documents.values())
    entry.text_bytes = entry.text_bytes * entry.tokens // max(tokens, 1)
    found = {**entry.skipped, **{reason: number for reason, number in documents.items() if number}}
    entry.skipped = dict(sorted(found.items()))


def shard_entry(plan: Plan, receipt: ShardReceipt, prefix: str) -> ShardEntry:
    """Return the manifest's entry of a shard whose files have the given prefix."""
    dataset = plan.datasets[receipt.dataset]
    ends = [receipt.first, receipt.last]
    return ShardEntry(
        split=SPLITS[receipt.split],
        prefix=prefix,
        dataset=dataset.name,
        documents=receipt.documents,
        sequences=receipt.sequences,
        tokens=receipt.tokens,
        bin_bytes=receipt.bin_bytes,
        bin_xxh128=receipt.bin_xxh128,
        idx_xxh128=receipt.idx_xxh128,
        source=[(dataset.keys[end[0]], end[1]) for end in ends if end],
    )


def dataset_entry(plan: Plan, number: int, shards: list[ShardReceipt], units: list[UnitReceipt]) -> DatasetEntry:
    """Return the manifest's entry of dataset `number` of the plan, with the receipts of its shards and units."""
    dataset = plan.datasets[number]
    skipped: dict[str, int] = {}
    for unit in units:
        for reason, n in unit.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + n
    splits = {
        name: add_counts(Counts(s.documents, s.sequences, s.tokens) for s in shards if s.split == i)
        for i, name in enumerate(SPLITS)
    }
    documents = sum(u.documents for u in units)
    return DatasetEntry(
        name=dataset.name,
        weight=dataset.weight,
        path=dataset.path,
        revision=dataset.revision,
        files=len(dataset.keys),
        rows=documents + sum(skipped.values()),
        documents=documents,
        empty=sum(u.empty for u in units),
        tokens=sum(s.tokens for s in splits.values()),
        text_bytes=sum(u.text_bytes for u in units),
        skipped=dict(sorted(skipped.items())),
        truncated=sum(u.truncated for u in units),
        unencoded=sum(u.unencoded for u in units),
        special_tokens=sum(u.special for u in units),
        splits=splits,
        inputs=input_entries(dataset),
        budget=dataset.budget,
    )


def input_entries(dataset: DatasetPlan) -> list[InputEntry]:
    """Return the manifest's entries of a dataset's files."""
    columns = (dataset.keys, dataset.sizes, dataset.fingerprints, dataset.times, dataset.formats)
    rows: Sequence[int | None] = dataset.rows or [None] * len(dataset.keys)
    return [InputEntry(*values) for values in zip(*columns, rows, strict=True)]


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts."""
    found = list(counts)
    return Counts(
        documents=sum(c.documents for c in found),
        sequences=sum(c.sequences for c in found),
        tokens=sum(c.tokens for c in found),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that make the data."""
    packages = ("nano3", "tokenizers", "fastokens", "pyarrow", "numpy", "msgspec")
    return {"python": platform.python_version(), **installed_versions(packages)}
