"""manifest.json and blend.json: what the prepared data is, and how it is mixed."""

import platform
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from nano3.data.build.receipts import ShardReceipt, UnitReceipt
from nano3.data.planning.plan import SPLITS, DatasetPlan, Plan, content_hash
from nano3.utils.errors import Failure, UserError
from nano3.utils.provenance import installed_versions

FORMAT = 2
AGAIN = "Prepare the data again with force=true."


@dataclass
class Manifest:
    """manifest.json, format 2. Everything in it is plain JSON.

    tokenizer: model, sha256, path (folder beside the manifest), vocab_size, eod_id, eod_token, revision.
    datasets:  for each name, weight, path, revision, files (their number), rows = documents + skipped, documents,
               empty, tokens, text_bytes, skipped {reason: rows}, special_tokens, truncated,
               splits {split: {documents, sequences, tokens}},
               inputs, the files: name, bytes, fingerprint, mtime_ns (0 where unknown), format, and rows for a sample.
    splits:    {split: {documents, sequences, tokens}} over all datasets.
    shards:    for each split, prefix (relative), dataset, documents, sequences, tokens, bin_bytes, bin_xxh128,
               idx_xxh128 (checksum.py), and source, the first and last document as [file, key].
    A document without tokens counts as a document, not as a sequence.
    """

    format: int
    blend: str
    plan_hash: str
    tokenizer: dict[str, Any]
    dtype: str
    options: dict[str, Any]
    datasets: list[dict[str, Any]]
    splits: dict[str, dict[str, int]]
    shards: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def content(self) -> str:
        """Identity of the data as a run sees it; weights are part of it."""
        return content_hash(self.plan_hash, {d["name"]: d["weight"] for d in self.datasets})


def load_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of a data folder. Raises `UserError` when there is none, `Failure` when it is damaged."""
    path = Path(folder) / "manifest.json"
    try:
        values = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        unfinished = (Path(folder) / ".prep").is_dir()
        hint = (
            "its preparation is not finished: run it again"
            if unfinished
            else "it is not a folder that nano3.data_prep made"
        )
        raise UserError(f"{folder}: no manifest.json; {hint}.") from None
    except (ValueError, OSError) as error:
        raise Failure(f"{path}: cannot be read: {error}. {AGAIN}") from error
    if not isinstance(values, dict) or not isinstance(found := values.get("format"), int):
        raise Failure(f"{path}: not a data manifest. {AGAIN}")
    if found != FORMAT:
        raise Failure(
            f"{path}: a data manifest of format {found}; this nano3 reads format {FORMAT}. Prepare the data again, "
            f"here with force=true, or use the nano3 that made it."
        )
    known = [f.name for f in fields(Manifest)]
    if missing := [name for name in known if name not in values]:
        raise Failure(f"{path}: damaged: {', '.join(missing)} missing")
    try:
        return msgspec.convert({name: values[name] for name in known}, Manifest)
    except msgspec.ValidationError as error:
        raise Failure(f"{path}: damaged: {error}") from error


def make_manifest(plan: Plan, shards: list[ShardReceipt], units: list[UnitReceipt]) -> Manifest:
    """Add up the receipts of a whole build."""
    info = plan.tokenizer
    entries = [shard_entry(plan, s) for s in sorted(shards, key=lambda s: (s.split, s.dataset, s.shard)) if s.name]
    datasets = [dataset_entry(plan, d, shards, units) for d in range(len(plan.datasets))]
    splits = {name: sum_counts([d["splits"][name] for d in datasets]) for name in SPLITS}
    engine_names = {r.engine for r in units}
    return Manifest(
        format=FORMAT,
        blend=plan.blend,
        plan_hash=plan.hash,
        tokenizer={
            "model": info.model,
            "revision": info.revision,
            "sha256": info.sha256,
            "path": "tokenizer",
            "vocab_size": info.vocab_size,
            "eod_id": info.eod_id,
            "eod_token": info.eod_token,
        },
        dtype=plan.dtype,
        options=asdict(plan.options),
        datasets=datasets,
        splits=splits,
        shards=entries,
        versions={**versions(), "engine": " and ".join(sorted(engine_names)) or "none"},
    )


def shard_entry(plan: Plan, receipt: ShardReceipt) -> dict[str, Any]:
    dataset = plan.datasets[receipt.dataset]
    ends = [receipt.first, receipt.last]
    return {
        "split": SPLITS[receipt.split],
        "prefix": receipt.name,
        "dataset": dataset.name,
        "documents": receipt.documents,
        "sequences": receipt.sequences,
        "tokens": receipt.tokens,
        "bin_bytes": receipt.bin_bytes,
        "bin_xxh128": receipt.bin_xxh128,
        "idx_xxh128": receipt.idx_xxh128,
        "source": [[dataset.keys[end[0]], end[1]] for end in ends if end],
    }


def dataset_entry(plan: Plan, number: int, shards: list[ShardReceipt], units: list[UnitReceipt]) -> dict[str, Any]:
    dataset = plan.datasets[number]
    low, high = plan.first_units[number], plan.first_units[number + 1]
    mine = [u for u in units if low <= u.unit < high]
    skipped: dict[str, int] = {}
    for unit in mine:
        for reason, n in unit.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + n
    splits = {
        name: sum_counts([counts(s) for s in shards if (s.split, s.dataset) == (i, number)])
        for i, name in enumerate(SPLITS)
    }
    return {
        "name": dataset.name,
        "weight": dataset.weight,
        "path": dataset.path,
        "revision": dataset.revision,
        "files": len(dataset.keys),
        "rows": sum(u.documents for u in mine) + sum(skipped.values()),
        "documents": sum(u.documents for u in mine),
        "empty": sum(u.empty for u in mine),
        "tokens": sum(s["tokens"] for s in splits.values()),
        "text_bytes": sum(u.text_bytes for u in mine),
        "skipped": dict(sorted(skipped.items())),
        "truncated": sum(u.truncated for u in mine),
        "special_tokens": sum(u.special for u in mine),
        "splits": splits,
        "inputs": input_entries(dataset),
    }


def input_entries(dataset: DatasetPlan) -> list[dict[str, Any]]:
    """The files that were read."""
    names = ("name", "bytes", "fingerprint", "mtime_ns", "format")
    columns = (dataset.keys, dataset.sizes, dataset.prints, dataset.times, dataset.formats)
    entries: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    for entry, rows in zip(entries, dataset.rows or (), strict=False):
        entry["rows"] = rows
    return entries


def counts(receipt: ShardReceipt) -> dict[str, int]:
    return {"documents": receipt.documents, "sequences": receipt.sequences, "tokens": receipt.tokens}


def sum_counts(rows: list[dict[str, int]]) -> dict[str, int]:
    return {key: sum(row[key] for row in rows) for key in ("documents", "sequences", "tokens")}


def make_blend(manifest: Manifest, folder: Path) -> dict[str, list[str]]:
    """blend.json: for each split weight, absolute prefix, weight, … (no entry at all for a split without tokens).

    A shard's weight is its dataset's weight times its share of the dataset's tokens in the split, as a decimal string.
    """
    blend: dict[str, list[str]] = {split: [] for split in manifest.splits}
    datasets = {d["name"]: d for d in manifest.datasets}
    for shard in manifest.shards:
        dataset = datasets[shard["dataset"]]
        total = dataset["splits"][shard["split"]]["tokens"]
        weight = Decimal(repr(float(dataset["weight"]))) * shard["tokens"] / total
        blend[shard["split"]] += [decimal(weight), str(folder.absolute() / shard["prefix"])]
    return blend


def decimal(value: Decimal) -> str:
    """Twelve significant digits, never with an exponent."""
    text = format(Decimal(f"{value:.11e}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def versions() -> dict[str, str]:
    """What made the data."""
    packages = ("nano3", "tokenizers", "fastokens", "pyarrow", "numpy", "msgspec")
    return {"python": platform.python_version(), **installed_versions(packages)}


def encode_json(value: Any) -> str:
    """Indented JSON with a final newline, as `write_json` would write it but for very small and very large numbers."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
