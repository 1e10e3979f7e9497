"""manifest.json and blend.json: what the prepared data is, and how its datasets are mixed."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from nano3.data.dataset.checksum import Checksum
from nano3.data.planning.plan import content_hash
from nano3.utils.errors import Failure, UserError

FORMAT = 2
PREPARE_AGAIN = "Prepare the data again with force=true."


class Counts(msgspec.Struct):
    """Totals of shards. A document without tokens counts as a document, but not as a sequence."""

    documents: int
    sequences: int
    tokens: int


class TokenizerEntry(msgspec.Struct, omit_defaults=True):
    """The tokenizer of the data.

    Attributes:
        model: Hub id, folder or file, as configured.
        revision: Commit of a tokenizer from the Hub.
        sha256: SHA-256 of tokenizer.json.
        path: Folder of its copy, relative to the data folder.
        vocab_size: Number of ids.
        eod_id: Id of the end-of-document token, or None if it has none.
        eod_token: Text of the end-of-document token, or None.
        bos_id: Id of the token before each document; None without add_bos, or in data of earlier versions.
        bos_token: Text of the token before each document, or None.
        files: Checksum of every file of the copy (see `checksum`). Empty in data of earlier versions.
    """

    model: str
    revision: str | None
    sha256: str
    path: str
    vocab_size: int
    eod_id: int | None
    eod_token: str | None
    bos_id: int | None = None
    bos_token: str | None = None
    files: dict[str, str] = {}


class InputEntry(msgspec.Struct, omit_defaults=True):
    """A file that was read.

    Attributes:
        name: Path relative to the dataset's root.
        bytes: Size of the file.
        fingerprint: Fingerprint of its content.
        mtime_ns: Modification time in nanoseconds, 0 if unknown.
        format: Format (see `nano3.data.sources.formats`).
        rows: For a sample, the number of first rows that were taken.
    """

    name: str
    bytes: int
    fingerprint: str
    mtime_ns: int
    format: str
    rows: int | None = None


class DatasetEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A dataset of the blend.

    Attributes:
        name: Name in the blend.
        weight: Weight in the blend.
        path: Where the text is, as configured.
        revision: Commit of a dataset on the Hub.
        files: Number of files.
        rows: Rows that were read: documents and skipped rows. None in data of earlier versions.
        documents: Documents that were tokenized.
        empty: Documents without tokens.
        tokens: Tokens, including end-of-document tokens.
        text_bytes: Bytes of text in UTF-8. If tokenized documents were left out, estimated by the tokens of the others.
        truncated: Documents cut to max_doc_tokens, including those left out.
        special_tokens: Special tokens that occurred literally in the text and were encoded as such, including those
            of documents left out.
        skipped: Number of skipped rows by reason; "duplicate" for those that dedup=exact dropped, "not_sampled" for
            those that exceed sample_tokens.
        splits: Totals of each split.
        inputs: The files. Empty in data of earlier versions.
        unencoded: Documents without tokens because no engine could encode them.
        duplicates: Documents whose text an earlier document of the dataset has. None with split_by=position.
        shared: Different texts of the dataset that an earlier dataset of the blend has too. None with
            split_by=position.
        budget: epochs, tokens and max_epochs in the blend, if they are set.
    """

    name: str
    weight: float
    path: str
    revision: str | None
    files: int
    rows: int | None = None
    documents: int
    empty: int
    tokens: int
    text_bytes: int
    skipped: dict[str, int]
    truncated: int
    special_tokens: int
    splits: dict[str, Counts]
    inputs: list[InputEntry] = []
    unencoded: int = 0
    duplicates: int | None = None
    shared: int | None = None
    budget: dict[str, float] = {}


class ShardEntry(msgspec.Struct):
    """A .bin/.idx pair.

    Attributes:
        split: train, valid or test.
        prefix: Path of the files without suffix, relative to the data folder.
        dataset: Name of the dataset.
        documents: Documents, including those without tokens.
        sequences: Documents with tokens.
        tokens: Tokens.
        bin_bytes: Size of the .bin file.
        bin_xxh128: Checksum of the .bin file (see `checksum`).
        idx_xxh128: Checksum of the .idx file.
        source: (file, key) of the first and the last document, including those left out.
    """

    split: str
    prefix: str
    dataset: str
    documents: int
    sequences: int
    tokens: int
    bin_bytes: int
    bin_xxh128: str
    idx_xxh128: str
    source: list[tuple[str, int]]

    @property
    def counts(self) -> Counts:
        """Totals of the shard."""
        return Counts(self.documents, self.sequences, self.tokens)


class Manifest(msgspec.Struct):
    """manifest.json, format 2.

    Attributes:
        format: `FORMAT`.
        blend: Name of the blend.
        plan_hash: Hash of the plan that the data was made from.
        tokenizer: The tokenizer; a copy of it is part of the data.
        dtype: NumPy name of the token dtype.
        options: The options of the preparation (`PrepOptions`).
        datasets: The datasets, in the order of the blend.
        splits: Totals of each split over all datasets.
        shards: The shards in the order of splits and file numbers, without those that hold no tokens.
        versions: Versions of Python, packages and engine.
        checksum: Checksum of the other values, as compact JSON. Empty in data of earlier versions.
    """

    format: int
    blend: str
    plan_hash: str
    tokenizer: TokenizerEntry
    dtype: str
    options: dict[str, str | int | float | bool | None]
    datasets: list[DatasetEntry]
    splits: dict[str, Counts]
    shards: list[ShardEntry]
    versions: dict[str, str]
    checksum: str = ""

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each dataset in the blend."""
        return {dataset.name: dataset.weight for dataset in self.datasets}

    @property
    def budgets(self) -> dict[str, dict[str, float]]:
        """Budgets of the datasets that have any."""
        return {dataset.name: dataset.budget for dataset in self.datasets if dataset.budget}

    @property
    def content(self) -> str:
        """Identity of the data for a run, which includes the weights and budgets."""
        return content_hash(self.plan_hash, self.weights, self.budgets)


def load_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of a data folder.

    Raises:
        UserError: There is no manifest.
        Failure: It cannot be read, is damaged, or has another format.
    """
    path = Path(folder) / "manifest.json"
    data = b""
    try:
        data = path.read_bytes()
        manifest = msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError:
        unfinished = (Path(folder) / ".prep").is_dir()
        hint = (
            "its preparation is not finished: run it again"
            if unfinished
            else "it is not a folder that nano3.data_prep made"
        )
        raise UserError(f"{folder}: no manifest.json; {hint}.") from None
    except msgspec.ValidationError as error:
        raise manifest_error(path, data, error) from error
    except PermissionError:
        raise
    except OSError as error:  # the data may be sound
        raise Failure(f"{path}: cannot be read: {error.strerror}. Check its disk or mount.") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Failure(f"{path}: cannot be read: {error}. {PREPARE_AGAIN}") from error
    if manifest.format != FORMAT:
        raise format_error(path, manifest.format)
    # Data with the checksums of its tokenizer's files has this one too.
    if manifest.checksum != manifest_checksum(manifest) and (manifest.checksum or manifest.tokenizer.files):
        raise Failure(f"{path}: damaged: its checksum differs. {PREPARE_AGAIN}")
    if problems := consistency_problems(manifest):
        raise Failure(f"{path}: damaged: {problem}. {PREPARE_AGAIN}" for problem in problems)
    return manifest


def manifest_checksum(manifest: Manifest) -> str:
    """Return the checksum of a manifest's values."""
    return Checksum(msgspec.json.encode(msgspec.structs.replace(manifest, checksum=""))).hexdigest()


def encode_manifest(manifest: Manifest) -> str:
    """Set a manifest's checksum and return the text of manifest.json."""
    manifest.checksum = manifest_checksum(manifest)
    return encode_json(manifest)


def consistency_problems(manifest: Manifest) -> list[str]:
    """Return what in a manifest contradicts itself, so that it cannot be used. Report each kind once."""
    found: dict[str, str] = {}
    datasets = {dataset.name: dataset for dataset in manifest.datasets}
    for dataset in manifest.datasets:
        if not 0 <= dataset.weight < float("inf"):
            found.setdefault("weight", f"dataset {dataset.name} has the weight {dataset.weight}")
    for shard in manifest.shards:
        entry = datasets.get(shard.dataset)
        if shard.split not in manifest.splits:
            found.setdefault("split", f"{shard.prefix} is in split {shard.split!r}, which does not exist")
        elif entry is None:
            found.setdefault("dataset", f"{shard.prefix} is of dataset {shard.dataset!r}, which does not exist")
        elif shard.split not in entry.splits or entry.splits[shard.split].tokens <= 0:
            found.setdefault("counts", f"{shard.prefix} is not counted in dataset {shard.dataset}")
    if manifest.options and "add_eos" not in manifest.options:
        found["options"] = "options.add_eos is missing"
    return list(found.values())


def is_manifest(path: Path) -> bool:
    """Return whether a file is a manifest of nano3, of any format, even if values in it are damaged."""
    try:
        values = msgspec.json.decode(path.read_bytes())
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and isinstance(values.get("format"), int) and "shards" in values


def manifest_error(path: Path, data: bytes, error: msgspec.ValidationError) -> Failure:
    """Return the error for a manifest.json that is not a manifest of this format."""
    try:
        values = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as unreadable:
        return Failure(f"{path}: cannot be read: {unreadable}. {PREPARE_AGAIN}")
    if not isinstance(values, dict) or not isinstance(found := values.get("format"), int):
        return Failure(f"{path}: not a data manifest of nano3.")
    if found != FORMAT:
        return format_error(path, found)
    if missing := [name for name in Manifest.__struct_fields__ if name not in values]:
        return Failure(f"{path}: damaged: {', '.join(missing)} missing")
    return Failure(f"{path}: damaged: {error}")


def format_error(path: Path, found: int) -> Failure:
    """Return the error for a manifest of another format."""
    return Failure(
        f"{path}: a data manifest of format {found}; this nano3 reads format {FORMAT}. Prepare the data again, "
        f"here with force=true, or use the nano3 that made it."
    )


def make_blend(manifest: Manifest, folder: Path) -> dict[str, list[str]]:
    """Return the content of blend.json, as Megatron's per-split data arguments take it.

    The weight of a shard is its dataset's weight times the shard's share of the dataset's tokens in the split.

    Args:
        manifest: Manifest of the data.
        folder: Data folder.

    Returns:
        For each split a list of weight, absolute prefix, weight, prefix, ...; weights are decimal strings. The list
        of a split without tokens is empty.
    """
    blend: dict[str, list[str]] = {split: [] for split in manifest.splits}
    datasets = {d.name: d for d in manifest.datasets}
    for shard in manifest.shards:
        dataset = datasets[shard.dataset]
        total = dataset.splits[shard.split].tokens
        weight = Decimal(repr(float(dataset.weight))) * shard.tokens / total
        blend[shard.split] += [format_weight(weight), str(folder.absolute() / shard.prefix)]
    return blend


def format_weight(value: Decimal) -> str:
    """Return a number with up to twelve significant digits and without an exponent."""
    text = format(Decimal(f"{value:.11e}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def encode_json(value: Any) -> str:
    """Return `value` as indented JSON with a final newline.

    The bytes are those of `write_json`, except for very small and very large numbers.
    """
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
