"""Files of a build and the receipts that say they are whole.

    units/000012.train.00003.bin, .len   tokens, and tokens per document, of unit 12's documents in train shard 3
    units/000012.json                    receipt: counts, and the parts
    train/data_00003.bin, .idx           the parts in the order of their units
    shards/train.00003.json              receipt: counts, checksums, source range

Receipts are written last; what has no valid receipt is done again. A shard's files are on disk (fsync) before its
receipt. A unit's parts are not forced to disk, which would take longer than making them: after a power cut their
checksums tell what to redo.
"""

from pathlib import Path

import msgspec

from nano3.data.planning.plan import SPLITS, Plan
from nano3.utils.disk_errors import disk_failure
from nano3.utils.files import temp_name


class Fragment(msgspec.Struct):
    """One unit's documents in one shard. `first` and `last` are (file number, key) of documents."""

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


class UnitReceipt(msgspec.Struct):
    """What became of a unit. `skipped` counts rows by reason; `special` counts special tokens that stood in the
    text.
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
    parts: list[Fragment]


class ShardReceipt(msgspec.Struct):
    """What is in a shard's files. `name` is None when it has no sequence, and then there are no files."""

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
    """`path` with a further suffix."""
    return path.with_name(path.name + suffix)


def unit_receipt(build: Path, number: int) -> Path:
    """Where a unit's receipt is."""
    return build / "units" / f"{number:06d}.json"


def shard_receipt(build: Path, plan: Plan, split: int, dataset: int, shard: int) -> Path:
    """Where a shard's receipt is."""
    return build / "shards" / f"{SPLITS[split]}.{plan.first_shard(split, dataset) + shard:05d}.json"


def write_receipt(path: Path, receipt: msgspec.Struct) -> None:
    """Write a receipt under a temporary name and rename it. One that a power cut spoils cannot be read and counts as
    none.
    """
    temp = temp_name(path)
    try:
        temp.write_bytes(msgspec.json.encode(receipt))
        temp.replace(path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise disk_failure(error, str(path)) from error


def read_unit(build: Path, number: int) -> UnitReceipt:
    """Read a unit's receipt."""
    return msgspec.json.decode(unit_receipt(build, number).read_bytes(), type=UnitReceipt)


def read_receipt[R: msgspec.Struct](path: Path, kind: type[R]) -> R | None:
    """A receipt, or None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
