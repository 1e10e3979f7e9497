"""The file formats that documents are read from, and how a file's format is detected.

A file's first bytes decide its format. Its name decides only whether a file found in a folder may hold text at all,
whether unmarked text is plain text or JSON, and what a compressed stream holds.

CONTRIBUTING.md lists the steps to add a format.
"""

import json
from dataclasses import dataclass

HEAD_SIZE = 64 << 10  # bytes read to detect a format
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FileFormat:
    """How a format is detected and planned.

    Attributes:
        suffixes: Lowercase suffixes of its files. Files in a folder with an unknown suffix are not read.
        magic: Byte strings; a file of the format starts with one of them. Empty for text.
        compressed: Whether the file is a compressed stream of text or JSON.
        splittable: Whether a part of the file can be read without reading everything before it.
        text_per_byte: Estimated bytes of text in one byte of the file, so that shards of mixed formats are about equal.
    """

    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...] = ()
    compressed: bool = False
    splittable: bool = False
    text_per_byte: int = 1


FORMATS = {
    "jsonl": FileFormat((".jsonl", ".json", ".ndjson"), splittable=True),
    "json": FileFormat((".json",)),  # one array of objects, or objects over several lines
    "txt": FileFormat((".txt", ".text")),  # one document
    "parquet": FileFormat((".parquet",), (b"PAR1",), splittable=True, text_per_byte=3),
    "arrow": FileFormat(
        (".arrow", ".arrows", ".feather", ".ipc"),
        (b"ARROW1\x00\x00", b"\xff\xff\xff\xff"),  # IPC file; IPC stream (its continuation marker)
    ),
    "gz": FileFormat((".gz", ".gzip"), (b"\x1f\x8b",), compressed=True, text_per_byte=4),
    "zst": FileFormat(
        (".zst", ".zstd"),
        # A frame, or one of the skippable frames that pzstd starts files with (RFC 8878, section 3.1.2).
        (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
        compressed=True,
        text_per_byte=4,
    ),
    "bz2": FileFormat((".bz2", ".bzip2"), (b"BZh",), compressed=True, text_per_byte=4),
    # .lzma files have no magic bytes and cannot be read; the suffix is here so that they are reported.
    "xz": FileFormat((".xz", ".lzma"), (b"\xfd7zXZ\x00",), compressed=True, text_per_byte=4),
}
SUPPORTED = (
    "parquet, Arrow, JSON lines, a JSON array or objects over several lines, .txt; also compressed with gzip, zstd, "
    "bzip2 or xz"
)

CSV_COMMAND = (
    'python -c "import csv, json, sys; csv.field_size_limit(2**31 - 1); '
    '[print(json.dumps(row)) for row in csv.DictReader(sys.stdin{})]" < OLD > NEW.jsonl'
)
# Formats that are recognized only to refuse them by name, with the command that converts them.
REFUSED = {
    "csv": ("is CSV", CSV_COMMAND.format("")),
    "tsv": ("is TSV", CSV_COMMAND.format(", delimiter='\\t'")),
    "tar": ("is a tar archive", "mkdir NEW && tar -xf OLD -C NEW, and set path to the folder NEW"),
    "zip": ("is a zip archive", "unzip OLD -d NEW, and set path to the folder NEW"),
    "utf16": ("is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    # Without a byte order mark, by which iconv would know the order.
    "utf16le": ("is UTF-16LE, not UTF-8", "iconv -f UTF-16LE -t UTF-8 OLD > NEW"),
    "utf16be": ("is UTF-16BE, not UTF-8", "iconv -f UTF-16BE -t UTF-8 OLD > NEW"),
    "utf32": ("is UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8 OLD > NEW"),
}
REFUSED_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tar": "tar", ".tgz": "tar", ".zip": "zip"}
TAR_MAGIC = slice(257, 262)
ZIP_MAGIC = b"PK\x03\x04"
# In this order: the byte order mark of UTF-32 starts with that of UTF-16.
WIDE_MARKS = (
    (b"\xff\xfe\x00\x00", "utf32"),
    (b"\x00\x00\xfe\xff", "utf32"),
    (b"\xff\xfe", "utf16"),
    (b"\xfe\xff", "utf16"),
)
WIDE_JSON = {b"{\x00": "utf16le", b"[\x00": "utf16le", b"\x00{": "utf16be", b"\x00[": "utf16be"}

MAGIC = tuple((magic, name) for name, f in FORMATS.items() for magic in f.magic)
TEXT_SUFFIXES = FORMATS["txt"].suffixes
JSON_SUFFIXES = FORMATS["jsonl"].suffixes
COMPRESSED_SUFFIXES = tuple(suffix for f in FORMATS.values() if f.compressed for suffix in f.suffixes)
KNOWN_SUFFIXES = tuple(dict.fromkeys(suffix for f in FORMATS.values() if not f.compressed for suffix in f.suffixes))
NEVER_EMPTY = tuple(suffix for f in FORMATS.values() if f.magic for suffix in f.suffixes)


def detect_format(head: bytes, name: str, unpacked: bool = False) -> str | None:
    """Return a key of `FORMATS` or `REFUSED`, or None if the file has none of these formats.

    Args:
        head: The first bytes of the file.
        name: Name of the file; only its suffixes matter.
        unpacked: Whether `head` was decompressed, so that the suffix below the compression counts.
    """
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(ZIP_MAGIC):
        return "zip"
    if head[TAR_MAGIC] == b"ustar":
        return "tar"
    for mark, kind in WIDE_MARKS:
        if head.startswith(mark):
            return kind
    # A compressed file without known magic bytes: the suffix below the compression does not describe these bytes.
    suffix = inner_suffix(name) if unpacked or not name.lower().endswith(COMPRESSED_SUFFIXES) else ""
    if suffix in TEXT_SUFFIXES:
        return unmarked_utf16(head) or "txt"
    start = head.removeprefix(UTF8_BOM).lstrip()
    if suffix in JSON_SUFFIXES and (kind_of_wide := WIDE_JSON.get(head[:2]) or unmarked_utf16(head)):
        return kind_of_wide
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "json" if continues_on_next_line(start) else "jsonl"
    return "jsonl" if suffix in JSON_SUFFIXES else REFUSED_SUFFIXES.get(suffix)


def unmarked_utf16(head: bytes) -> str | None:
    """Return the kind of UTF-16 without a byte order mark, or None. In Latin text, every other byte is 0."""
    half = min(len(head), 256) // 2
    first, second = head[: 2 * half : 2].count(0), head[1 : 2 * half : 2].count(0)
    if head.startswith(UTF8_BOM):
        return None
    if 2 * second > half and not first:
        return "utf16le"
    return "utf16be" if 2 * first > half and not second else None


def continues_on_next_line(start: bytes) -> bool:
    """Return whether the JSON object at the start of a file continues on its next line.

    The first line must then end between two tokens of an object. A line that was cut in the middle of JSON lines also
    may, but the line after it starts with another object.
    """
    line, _, rest = start.partition(b"\n")
    line, after = line.rstrip(), rest[:4096].lstrip()[:1]
    if not after or (after == b"{" and not line.endswith((b"[", b":"))):
        return False
    text = line.decode(errors="replace")
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        pass
    return False


def refusal(kind: str) -> str:
    """Return what a file of a format in `REFUSED` is, and how to convert it."""
    what, command = REFUSED[kind]
    return f"{what}, which is not read. Convert it: {command}"


def inner_suffix(name: str) -> str:
    """Return the lowercase suffix below the suffixes of compression, or "" if there is none."""
    last = name.rpartition("/")[2].lower()
    if last.endswith("."):
        return ""
    _, *suffixes = last.lstrip(".").split(".")
    while suffixes and f".{suffixes[-1]}" in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return f".{suffixes[-1]}" if suffixes else ""


def may_hold_text(name: str) -> bool:
    """Return whether a file found in a folder has a known suffix, a number as its suffix, or none (`part-00000`)."""
    if name.endswith(KNOWN_SUFFIXES):  # the fast path: there may be 10^5 files
        return True
    suffix = inner_suffix(name)
    return not suffix or suffix[1:].isdigit() or suffix in KNOWN_SUFFIXES
