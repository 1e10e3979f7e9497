"""Read and check prepared data for training: blend.json and manifest.json, with paths relative to their folder.

It imports neither torch nor megatron, so preflight and dry runs can use it.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.utils.errors import Nano3Error, UserError
from nano3.utils.files import read_json

if TYPE_CHECKING:  # imports numpy
    from nano3.data.dataset.manifest import Manifest, ShardEntry, TokenizerEntry

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Shard:
    """One .bin/.idx pair. `prefix` is the path without suffix, `weight` its weight in the blend of its split."""

    split: str
    dataset: str
    prefix: Path
    weight: float
    tokens: int
    sequences: int = 0


@dataclass(frozen=True)
class TrainingData:
    """A checked data folder.

    Attributes:
        folder: The folder.
        shards: The shards of all splits, in blend order.
        tokenizer: The folder of the tokenizer.
        vocab_size: Ids of the tokenizer.
        eod_id: Id of the end-of-document token.
        fingerprint: Depends on shards, weights and tokenizer, not on the path of the folder.
        bytes_per_token: UTF-8 bytes of text per token of each dataset. A dataset is missing if that is unknown: its
            documents were cut to max_doc_tokens, and the bytes that were cut are not recorded.
        dataset_fingerprints: Depends on the tokens and bounds of the train shards of each dataset, in order.
        tokenizer_sha256: Hash of tokenizer.json.
        eod_token: The end-of-document token; None if the tokenizer has none.
        budgets: epochs, tokens and max_epochs in the blend, of the datasets that have any.
    """

    folder: Path
    shards: tuple[Shard, ...]
    tokenizer: Path
    vocab_size: int
    eod_id: int
    fingerprint: str
    bytes_per_token: dict[str, float] = field(default_factory=dict)
    eod_token: str | None = None
    dataset_fingerprints: dict[str, str] = field(default_factory=dict)
    tokenizer_sha256: str = ""
    budgets: dict[str, dict[str, float]] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Shard, ...]:
        """Return the shards of one split, in blend order."""
        return tuple(s for s in self.shards if s.split == name)

    def tokens(self, split: str) -> int:
        """Return the number of tokens in a split."""
        return sum(s.tokens for s in self.split(split))

    @property
    def blend_per_split(self) -> list[tuple[list[str], list[float]] | None]:
        """GPTDatasetConfig.blend_per_split: (prefixes, weights) of train, valid and test; None for an empty split."""
        return [blend_of(self.split(name)) for name in SPLITS]

    def datasets(self, split: str = "valid") -> dict[str, tuple[Shard, ...]]:
        """Return the shards of each dataset in `split`, in blend order."""
        found: dict[str, list[Shard]] = {}
        for shard in self.split(split):
            found.setdefault(shard.dataset, []).append(shard)
        return {name: tuple(shards) for name, shards in found.items()}

    def shares(self, split: str = "valid") -> dict[str, float]:
        """Return each dataset's share of the samples of `split`; the shares add up to 1."""
        total = sum(s.weight for s in self.split(split))
        return {name: sum(s.weight for s in shards) / total for name, shards in self.datasets(split).items()}

    def require(self, seq_length: int, splits: Sequence[str]) -> None:
        """Check that each split holds at least one sample; Megatron hangs or fails otherwise.

        Args:
            seq_length: Tokens in a sample.
            splits: The splits that are needed.

        Raises:
            UserError: A split is too small.
        """
        problems = [p for name in splits if (p := self._size_problem(name, seq_length))]
        if problems:
            raise UserError(problems)

    def _size_problem(self, split: str, seq_length: int) -> str | None:
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


def blend_of(shards: Sequence[Shard]) -> tuple[list[str], list[float]] | None:
    """Return (prefixes, weights) as megatron.core takes a blend, or None for no shards."""
    return ([str(s.prefix) for s in shards], [s.weight for s in shards]) if shards else None


def open_data(folder: Path) -> TrainingData:
    """Read and check a folder written by `python -m nano3.data_prep`.

    Raises:
        UserError: Lists every problem found.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(
            f"Data folder {folder} does not exist. Make it with `python -m nano3.data_prep "
            f"{shlex.quote(f'output_dir={folder}')}`."
        )
    from nano3.data.dataset.manifest import load_manifest  # imports numpy

    try:
        manifest = load_manifest(folder)
    except Nano3Error as error:
        raise UserError(error.problems) from error
    blends = _read_blend(folder)
    try:
        return _build(folder, manifest, blends)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/blend.json is damaged ({type(error).__name__}: {error}). Prepare the data again."
        ) from error


def _read_blend(folder: Path) -> dict[str, Any]:
    path = folder / "blend.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {folder} is not a finished data folder. Run `python -m nano3.data_prep` on it again; "
            f"it continues where it stopped."
        )
    try:
        value = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Prepare the data again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object. Prepare the data again.")
    return value


def _build(folder: Path, manifest: "Manifest", blends: dict[str, Any]) -> TrainingData:
    from nano3.data.dataset.verify import check_shard_files

    shards: list[Shard] = []
    problems: list[str] = []
    for split in SPLITS:
        entries = {Path(entry.prefix).parts: entry for entry in manifest.shards if entry.split == split}
        for weight, prefix in _pairs(blends.get(split) or []):
            entry = entries.get(Path(prefix).parts[-2:])  # the folder may have been moved
            if entry is None:
                problems.append(
                    f"{folder}/blend.json lists {prefix} in {split}, but manifest.json does not: the two files are "
                    f"from different runs."
                )
                continue
            shards.append(Shard(split, entry.dataset, folder / entry.prefix, weight, entry.tokens, entry.sequences))
            found = check_shard_files(folder, manifest, entry) or _empty_shard(folder, entry)
            problems += [f"{problem}. Copy the file again, or prepare the data again." for problem in found]
    problems += [f"{folder}/blend.json has no {name!r} list." for name in ("train",) if not blends.get(name)]
    problems += _tokenizer_problems(folder / manifest.tokenizer.path, manifest.tokenizer)
    if manifest.tokenizer.eod_id is None:
        problems.append(
            f"{folder}: the tokenizer of this data has no end-of-document token. Prepare the data again with a "
            f"tokenizer that has one."
        )
    if problems or manifest.tokenizer.eod_id is None:
        raise UserError(problems)
    return TrainingData(
        folder=folder,
        shards=tuple(shards),
        tokenizer=folder / manifest.tokenizer.path,
        vocab_size=manifest.tokenizer.vocab_size,
        eod_id=manifest.tokenizer.eod_id,
        fingerprint=_fingerprint(manifest, shards, folder),
        bytes_per_token={
            d.name: d.text_bytes / d.tokens for d in manifest.datasets if d.tokens and d.text_bytes and not d.truncated
        },
        eod_token=manifest.tokenizer.eod_token,
        dataset_fingerprints=_dataset_fingerprints(manifest, shards, folder),
        tokenizer_sha256=manifest.tokenizer.sha256,
        budgets=manifest.budgets,
    )


def _empty_shard(folder: Path, entry: "ShardEntry") -> list[str]:
    if entry.tokens > 0:
        return []
    return [f"{folder / entry.prefix}.bin is empty, and Megatron never returns from an empty shard in blend.json"]


def _pairs(flat: list[Any]) -> list[tuple[float, str]]:
    """Return [(weight, prefix), ...] of ["weight", "prefix", ...]; raise ValueError if a weight is not positive."""
    if not isinstance(flat, list) or len(flat) % 2:
        raise ValueError("a blend list must alternate weight and prefix")
    pairs = [(float(w), str(p)) for w, p in zip(flat[::2], flat[1::2], strict=True)]
    if wrong := [w for w, _ in pairs if not 0 < w < float("inf")]:
        raise ValueError(f"every weight of a blend must be positive and finite, not {wrong[0]}")
    return pairs


def _tokenizer_problems(folder: Path, entry: "TokenizerEntry") -> list[str]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return [f"{path} is missing: the data folder carries its own tokenizer. Copy it from the original folder."]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.sha256:
        return [
            f"{path} is not the tokenizer that made this data (sha256 {found[:12]}, the manifest says "
            f"{entry.sha256[:12]}). Put the original back."
        ]
    return eod_problems(folder, entry.eod_token, entry.eod_id)


def eod_problems(folder: Path, token: str | None, number: int | None) -> list[str]:
    """Return why training would take another token for the end of documents than the data has.

    Args:
        folder: Folder of the tokenizer that training loads; its tokenizer.json is the data's.
        token: End-of-document token of the data.
        number: Its id.
    """
    from nano3.data.tokenization.tokenizer import read_special_tokens

    try:
        named = read_special_tokens(folder).get("eos_token")
    except UserError as error:
        return error.problems
    if named in (None, token):
        return []
    return [
        f"{folder}: its eos_token is {named!r}, but the documents of the data end with {token!r} (id {number}). "
        f"Training would not see where documents end. Put the original tokenizer_config.json back, or prepare the data "
        f"again."
    ]


def _fingerprint(manifest: "Manifest", shards: list[Shard], folder: Path) -> str:
    """Return a sha256 over everything that determines the training samples."""
    hashes = {folder / s.prefix: (s.prefix, s.bin_xxh128) for s in manifest.shards}
    rows = [(s.split, hashes[s.prefix][0], s.weight, hashes[s.prefix][1]) for s in shards]
    return hashlib.sha256(json.dumps([manifest.tokenizer.sha256, rows]).encode()).hexdigest()


def _dataset_fingerprints(manifest: "Manifest", shards: list[Shard], folder: Path) -> dict[str, str]:
    """Return a sha256 over the checksums of the train shards of each dataset."""
    checksums = {folder / s.prefix: (s.bin_xxh128, s.idx_xxh128) for s in manifest.shards}
    found: dict[str, list[tuple[str, str]]] = {}
    for shard in shards:
        if shard.split == "train":
            found.setdefault(shard.dataset, []).append(checksums[shard.prefix])
    return {name: hashlib.sha256(json.dumps(rows).encode()).hexdigest() for name, rows in found.items()}
