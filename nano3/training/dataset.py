"""Prepared data as training sees it: blend.json and manifest.json read, checked, and rebased on the folder they lie in.

Imports neither torch nor megatron, so that preflight and dry runs can use it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano3.utils.errors import UserError
from nano3.utils.files import read_json

SPLITS = ("train", "valid", "test")
FORMAT = 2


@dataclass(frozen=True)
class Shard:
    """One .bin/.idx pair. `prefix` is its path without suffix; `weight` its weight in its split's blend."""

    split: str
    dataset: str
    prefix: Path
    weight: float
    tokens: int


@dataclass(frozen=True)
class TrainingData:
    """A checked data folder. `fingerprint` changes with shards, weights and tokenizer, not with the folder's place."""

    folder: Path
    shards: tuple[Shard, ...]
    tokenizer: Path
    vocab_size: int
    eod_id: int
    fingerprint: str

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of one split, in blend order."""
        return tuple(s for s in self.shards if s.split == name)

    def tokens(self, split: str) -> int:
        """Tokens in a split."""
        return sum(s.tokens for s in self.split(split))

    @property
    def blend_per_split(self) -> list[tuple[list[str], list[float]] | None]:
        """GPTDatasetConfig.blend_per_split: (prefixes, weights) of train, valid and test; None for an empty split."""
        return [blend(self.split(name)) for name in SPLITS]

    def datasets(self, split: str = "valid") -> dict[str, tuple[Shard, ...]]:
        """Dataset name -> its shards in `split`, in blend order."""
        found: dict[str, list[Shard]] = {}
        for shard in self.split(split):
            found.setdefault(shard.dataset, []).append(shard)
        return {name: tuple(shards) for name, shards in found.items()}

    def shares(self, split: str = "valid") -> dict[str, float]:
        """Dataset name -> its share of the samples of `split`; together 1."""
        total = sum(s.weight for s in self.split(split))
        return {name: sum(s.weight for s in shards) / total for name, shards in self.datasets(split).items()}

    def require(self, seq_length: int, splits: Sequence[str]) -> None:
        """Raise `UserError` unless every named split holds a whole sample (Megatron loops or fails otherwise)."""
        problems = [p for name in splits if (p := self._too_little(name, seq_length))]
        if problems:
            raise UserError(problems)

    def _too_little(self, split: str, seq_length: int) -> str | None:
        tokens = self.tokens(split)
        if tokens > seq_length:
            return None
        amount = f"only {tokens:,} tokens" if tokens else "no tokens"
        more = "Prepare more text (a larger sample=, or more datasets)"
        if split != "train":
            more += f", give this split a larger share ({split}_fraction=)"
        fix = f"{more}, or set a smaller train.seq_length"
        if split == "valid":
            fix += ", or train.eval_interval=0 to train without validation"
        return (
            f"The {split} split of {self.folder} has {amount}; one sample of train.seq_length={seq_length} needs "
            f"{seq_length + 1:,}. {fix}."
        )


def blend(shards: Sequence[Shard]) -> tuple[list[str], list[float]] | None:
    """(prefixes, weights) as megatron.core takes a blend, or None for no shards."""
    return ([str(s.prefix) for s in shards], [s.weight for s in shards]) if shards else None


def open_data(folder: Path) -> TrainingData:
    """Read and check a folder written by `python -m nano3.data_prep`; raises `UserError` with every problem found."""
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(
            f"Data folder {folder} does not exist. Make it with `python -m nano3.data_prep output_dir={folder}`."
        )
    manifest, blends = (_read(folder, name) for name in ("manifest.json", "blend.json"))
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder}/manifest.json has format {manifest.get('format')!r}; this nano3 reads format {FORMAT}. Prepare "
            f"the data again."
        )
    try:
        return _build(folder, manifest, blends)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: manifest.json or blend.json is damaged ({type(error).__name__}: {error}). Prepare the data "
            f"again."
        ) from error


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {folder} is not a finished data folder. Run `python -m nano3.data_prep` on it again; "
            f"it goes on where it stopped."
        )
    try:
        value = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Prepare the data again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object. Prepare the data again.")
    return value


def _build(folder: Path, manifest: dict[str, Any], blends: dict[str, Any]) -> TrainingData:
    entries = {(s["split"], s["prefix"]): s for s in manifest["shards"]}
    shards: list[Shard] = []
    problems: list[str] = []
    for split in SPLITS:
        for weight, prefix in _pairs(blends.get(split) or []):
            entry = next((e for (name, rel), e in entries.items() if name == split and _ends_with(prefix, rel)), None)
            if entry is None:
                problems.append(
                    f"{folder}/blend.json lists {prefix} in {split}, which manifest.json does not know: the two files "
                    f"are of different runs."
                )
                continue
            shard = Shard(split, entry["dataset"], folder / entry["prefix"], weight, int(entry["tokens"]))
            problems += _shard_problems(shard, entry)
            shards.append(shard)
    problems += [f"{folder}/blend.json has no {name!r} list." for name in ("train",) if not blends.get(name)]
    tokenizer = folder / manifest["tokenizer"]["path"]
    problems += _tokenizer_problems(tokenizer, manifest["tokenizer"])
    if problems:
        raise UserError(problems)
    return TrainingData(
        folder=folder,
        shards=tuple(shards),
        tokenizer=tokenizer,
        vocab_size=int(manifest["tokenizer"]["vocab_size"]),
        eod_id=int(manifest["tokenizer"]["eod_id"]),
        fingerprint=_fingerprint(manifest, shards, folder),
    )


def _pairs(flat: list[Any]) -> list[tuple[float, str]]:
    """["w", "prefix", ...] -> [(w, prefix), ...]; raises `ValueError` when a weight is no positive number."""
    if len(flat) % 2:
        raise ValueError("a blend list must alternate weight and prefix")
    pairs = [(float(w), str(p)) for w, p in zip(flat[::2], flat[1::2], strict=True)]
    if any(w <= 0 for w, _ in pairs):
        raise ValueError("every weight of a blend must be positive")
    return pairs


def _ends_with(prefix: str, relative: str) -> bool:
    """Whether an absolute prefix, perhaps of another place, is this shard of the manifest."""
    tail = Path(relative).parts
    return Path(prefix).parts[-len(tail) :] == tail


def _shard_problems(shard: Shard, entry: dict[str, Any]) -> list[str]:
    """Sizes only: the content is checked by `nano3 verify`."""
    from nano3.data.dataset.indexed import HEADER, MAGIC  # imports numpy

    bin_path, idx_path = (shard.prefix.with_name(shard.prefix.name + s) for s in (".bin", ".idx"))
    missing = [str(p) for p in (bin_path, idx_path) if not p.is_file()]
    if missing:
        return [
            f"{' and '.join(missing)} missing, though the manifest lists this shard of {shard.dataset}. Run data_prep "
            f"again to remake it."
        ]
    if shard.tokens < 1:
        return [f"{bin_path} is empty: an empty shard must not stand in blend.json (Megatron does not end on it)."]
    problems = []
    if (size := bin_path.stat().st_size) != entry["bin_bytes"]:
        problems.append(
            f"{bin_path} has {size:,} bytes, the manifest says {entry['bin_bytes']:,}: a copy that broke off? Copy it "
            f"or prepare it again."
        )
    with idx_path.open("rb") as f:
        head = f.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        return [*problems, f"{idx_path} is not a Megatron index file. Copy it or prepare it again."]
    _, _, _, sequences, boundaries = HEADER.unpack(head)
    expected = HEADER.size + 12 * sequences + 8 * boundaries
    if (size := idx_path.stat().st_size) != expected or sequences != entry["sequences"]:
        problems.append(
            f"{idx_path} has {size:,} bytes and {sequences:,} sequences; its header asks for {expected:,} bytes and "
            f"the manifest for {entry['sequences']:,} sequences. Copy it or prepare it again."
        )
    return problems


def _tokenizer_problems(folder: Path, entry: dict[str, Any]) -> list[str]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return [f"{path} is missing: the data folder carries its own tokenizer. Copy it from the original folder."]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry["sha256"]:
        return [
            f"{path} is not the tokenizer that made this data (sha256 {found[:12]}, the manifest says "
            f"{entry['sha256'][:12]}). Put the original back."
        ]
    return []


def _fingerprint(manifest: dict[str, Any], shards: list[Shard], folder: Path) -> str:
    """sha256 over what decides the training samples."""
    hashes = {s["prefix"]: s["bin_xxh128"] for s in manifest["shards"]}
    rows = [
        (s.split, str(s.prefix.relative_to(folder)), s.weight, hashes[str(s.prefix.relative_to(folder))])
        for s in shards
    ]
    return hashlib.sha256(json.dumps([manifest["tokenizer"]["sha256"], rows]).encode()).hexdigest()
