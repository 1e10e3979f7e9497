"""What a file is, by its first bytes. The name decides only what bytes cannot: whether text that looks like JSON is
text.
"""

from pathlib import PurePosixPath

HEAD = 64 << 10  # bytes that are looked at

MAGIC = (
    (b"PAR1", "parquet"),
    (b"ARROW1\x00\x00", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),  # IPC stream: continuation marker
    (b"\x1f\x8b", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
)
COMPRESSED = ("gz", "zst", "bz2", "xz")
# Formats of which a part can be read without reading all before it.
SPLITTABLE = ("jsonl", "parquet")
# Bytes of text in one byte of file, roughly: makes shards of unlike files about equal.
TEXT_PER_BYTE = {"parquet": 3, "gz": 4, "zst": 4, "bz2": 4, "xz": 4}
TEXT_NAMES = (".txt", ".text")
JSON_NAMES = (".jsonl", ".json", ".ndjson")
ALLOWED = "parquet, Arrow, JSON lines, a JSON array, .txt; also compressed with gzip, zstd, bzip2 or xz"


def detect(head: bytes, name: str) -> str | None:
    """parquet, arrow, jsonl, json (an array), txt, gz, zst, bz2 or xz; None when the file is none of these.

    `head` is the start of the file, decompressed when `name` still ends in a compression's suffix.
    """
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1].lstrip(".") in (*COMPRESSED, "gzip", "zstd", "bzip2", "lzma"):
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in TEXT_NAMES:
        return "txt"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{") or suffix in JSON_NAMES:
        return "jsonl"
    return None
