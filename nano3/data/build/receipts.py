"""Files of a build and the receipts that mark them complete.

    units/000012.train.00003.bin, .len   a fragment: tokens, and tokens per document, of unit 12's documents in train
                                         shard 3
    units/000012.hash                    hashes of unit 12's different texts (see `duplicates`)
    units/000012.json                    receipt of a unit: counts, and its fragments
    train/data_00003.bin, .idx           a shard: its fragments in the order of their units
    shards/train.00003.json              receipt of a shard: counts, checksums, source range

A receipt is written last; work without a valid receipt is redone. The files of a shard are synced to disk before its
receipt is written. The fragments are not, because syncing would take longer than making them: after a power failure,
their checksums show what to redo.
"""

from pathlib import Path

import msgspec

from nano3.data.planning.plan import SPLITS, Plan
from nano3.utils.disk_errors import disk_failure
from nano3.utils.files import temp_name
from nano3.utils.records import is_intact, seal


class Fragment(msgspec.Struct):
    """One unit's documents in one shard.

    Attributes:
        split: Index in `SPLITS`.
        shard: Number of the shard in its dataset and split.
        name: Name of the files in units/, without suffix.
        documents: Number of documents.
        sequences: Number of documents that have tokens.
        tokens: Number of tokens.
        bytes: Size of the .bin file.
        bin_xxh128: Checksum of the .bin file.
        len_xxh128: Checksum of the .len file.
        first: (file number in the dataset, key) of the first document.
        last: The same of the last document.
    """

    split: int
    shard: int
    name: str
    documents: int
    sequences: int
    tokens: int
    bytes: int
    bin_xxh128: str
    len_xxh128: str
    first: tuple[int, int]
    last: tuple[int, int]


class BadFile(msgspec.Struct):
    """The bad rows that a unit left out of one file.

    Attributes:
        file: File number in the dataset.
        rows: Number of bad rows.
        key: Key of the first one.
        reason: What is wrong with the first one.
    """

    file: int
    rows: int
    key: int
    reason: str


class UnitReceipt(msgspec.Struct, omit_defaults=True):
    """What a finished unit contains.

    Attributes:
        unit: Number of the unit in the plan.
        engine: Tokenizer engine that encoded it.
        documents: Number of documents.
        empty: Number of documents without tokens.
        skipped: Number of rows left out, by reason.
        special: Number of special tokens that occurred literally in the text.
        checked: Number of documents compared with the reference engine.
        truncated: Number of documents cut to max_doc_tokens.
        text_bytes: Size of the text in UTF-8.
        fragments: What it wrote for each shard; stored as "parts".
        bad_file: The file with the most bad rows, or None if no row is bad.
        unencoded: Number of documents that no engine could encode; they have no tokens.
        hashed: Number of documents whose texts are hashed; 0 with split_by=position.
        hash_xxh128: Checksum of the .hash file; "" with split_by=position.
    """

    unit: int
    engine: str
    documents: int
    empty: int
    skipped: dict[str, int]
    special: int
    checked: int
    truncated: int
    text_bytes: int
    fragments: list[Fragment] = msgspec.field(name="parts")
    bad_file: BadFile | None = None
    hashed: int = 0
    hash_xxh128: str = ""
    unencoded: int = 0


class ShardReceipt(msgspec.Struct):
    """What the files of a finished shard contain.

    Attributes:
        split: Index in `SPLITS`.
        dataset: Number of the dataset in the plan.
        shard: Number of the shard in its dataset and split.
        name: Prefix of the files, relative to the build; None if the shard has no sequence and therefore no files.
        documents: Number of documents.
        sequences: Number of documents that have tokens.
        tokens: Number of tokens.
        bin_bytes: Size of the .bin file.
        bin_xxh128: Checksum of the .bin file.
        idx_xxh128: Checksum of the .idx file.
        engine: "fastokens" if any fragment was encoded by it, else "tokenizers".
        first: (file number in the dataset, key) of the first document, or None.
        last: The same of the last document.
    """

    split: int
    dataset: int
    shard: int
    name: str | None
    documents: int
    sequences: int
    tokens: int
    bin_bytes: int
    bin_xxh128: str
    idx_xxh128: str
    engine: str
    first: tuple[int, int] | None
    last: tuple[int, int] | None


def add_suffix(path: Path, suffix: str) -> Path:
    """Append a suffix to a path that may already have one."""
    return path.with_name(path.name + suffix)


def unit_receipt_path(build: Path, number: int) -> Path:
    """Return the path of the receipt of unit `number`."""
    return build / "units" / f"{number:06d}.json"


def unit_hashes_path(build: Path, number: int) -> Path:
    """Return the path of the hashes of the texts of unit `number`."""
    return build / "units" / f"{number:06d}.hash"


def shard_receipt_path(build: Path, plan: Plan, split: int, dataset: int, shard: int) -> Path:
    """Return the path of a shard's receipt.

    Args:
        build: Folder of the build.
        plan: The plan.
        split: Index in `SPLITS`.
        dataset: Number of the dataset in the plan.
        shard: Number of the shard in its dataset and split.
    """
    return build / "shards" / f"{SPLITS[split]}.{plan.first_shard(split, dataset) + shard:05d}.json"


def write_receipt(path: Path, receipt: msgspec.Struct) -> None:
    """Write a receipt to a temporary file and rename it.

    It is not synced: a receipt that a power failure damages cannot be read and counts as missing.

    Args:
        path: Path of the receipt.
        receipt: A `UnitReceipt` or `ShardReceipt`.

    Raises:
        Failure: If the file cannot be written.
    """
    temp = temp_name(path)
    try:
        temp.write_bytes(seal(msgspec.json.encode(receipt)))
        temp.replace(path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise disk_failure(error, str(path)) from error


def read_receipt[R: msgspec.Struct](path: Path, kind: type[R]) -> R | None:
    """Return a receipt, or None if it is missing or damaged.

    Args:
        path: Path of the receipt.
        kind: `UnitReceipt` or `ShardReceipt`.
    """
    try:
        text = path.read_bytes()
        return msgspec.json.decode(text, type=kind) if is_intact(text) else None
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
