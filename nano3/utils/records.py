"""Small JSON records that a later command relies on, each with a checksum of its values.

    {"iteration": 12, "checkpoint": "/runs/a/checkpoints/iter_0000012", "checksum": "5f0c…"}

The checksum is XXH3 with 128 bits over the other values as compact JSON with sorted keys. It detects damage and edits;
removing its line accepts an edit. Files of earlier versions have none. Their types and ranges are checked all the same.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError
from nano3.utils.files import write_json

CHECKSUM = "checksum"
SEAL = re.compile(rb',"checksum":"([0-9a-f]{32})"\}\n?\Z')
SEAL_SIZE = 64


class DamagedRecordError(UserError):
    """A record is damaged or was edited; the message names the file and the fix."""


def checksum_of(values: Any) -> str:
    """Return the checksum of values that JSON can hold, as hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def with_checksum(record: Any) -> dict[str, Any]:
    """Return the fields of a record, a dataclass, struct or dict, followed by their checksum."""
    if is_dataclass(record) and not isinstance(record, type):
        record = asdict(record)
    elif isinstance(record, msgspec.Struct):
        record = msgspec.to_builtins(record)
    values = json.loads(json.dumps(record))  # as it will be read: keys are text, tuples are lists
    return {**values, CHECKSUM: checksum_of(values)}


def seal(text: bytes) -> bytes:
    """Return a JSON object with a checksum of its bytes as its last value, for files that are large or many.

    Readers that know nothing of the checksum ignore it.

    Args:
        text: A JSON object with at least one value.
    """
    return text[:-1] + b',"%b":"%b"}' % (CHECKSUM.encode(), xxhash.xxh3_128_hexdigest(text[:-1]).encode())


def is_intact(text: bytes) -> bool:
    """Return whether bytes are as `seal` returned them, or were never sealed, as files of earlier versions."""
    found = SEAL.search(text, max(len(text) - SEAL_SIZE, 0))
    return not found or found[1].decode() == xxhash.xxh3_128_hexdigest(text[: found.start()])


def write_record(path: Path, record: Any) -> None:
    """Write a record atomically, with its checksum.

    Args:
        path: The file.
        record: A dataclass, a struct or a dict.
    """
    write_json(path, with_checksum(record))


def read_record[T](path: Path, kind: type[T], fix: str, aliases: Mapping[str, str] | None = None) -> T:
    """Read a record and check its checksum, its keys, and their types and ranges.

    Args:
        path: The file.
        kind: A dataclass or struct; `msgspec.Meta` gives the ranges of its fields.
        fix: What the user can do about a damaged file, as a sentence.
        aliases: Names of fields in files of earlier versions, with the present names.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedRecordError: The file is damaged.
        UserError: The file cannot be read.
    """
    values = read_values(path, fix)
    values = {(aliases or {}).get(key, key): value for key, value in values.items()}
    known = {field.name for field in msgspec.inspect.type_info(kind).fields}  # type: ignore[attr-defined]
    if unknown := [key for key in values if key not in known]:
        raise damaged(path, f"unknown key {unknown[0]!r}", fix)
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise damaged(path, str(error), fix) from error


def read_bytes(path: Path) -> bytes:
    """Return the contents of a record.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except PermissionError:  # explained by the command line
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error, path)}") from error


def read_values(path: Path, fix: str) -> dict[str, Any]:
    """Read the values of a record, without their checksum, and check only that.

    Args:
        path: The file.
        fix: What the user can do about a damaged file, as a sentence.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedRecordError: The file is damaged.
        UserError: The file cannot be read.
    """
    text = read_bytes(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "the file is empty" if not text else str(error), fix) from error
    if not isinstance(values, dict):
        raise damaged(path, f"expected a JSON object, found {type(values).__name__}", fix)
    if CHECKSUM not in values:
        return values
    recorded = values.pop(CHECKSUM)
    if recorded != checksum_of(values):
        raise damaged(
            path, f"its checksum differs; if you edited it on purpose, remove the line with {CHECKSUM!r}", fix
        )
    return values


def damaged(path: Path, why: str, fix: str) -> DamagedRecordError:
    """Return the error for a damaged record.

    Args:
        path: The file.
        why: What is wrong with it.
        fix: What the user can do, as a sentence.
    """
    return DamagedRecordError(f"{path}: damaged ({' '.join(why.split())}). {fix}")
