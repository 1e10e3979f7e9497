"""What a file is. The name decides whether a file found in a folder may hold text at all, and whether text that looks
like JSON is text; everything else is seen from the first bytes.
"""

HEAD = 64 << 10  # bytes that are looked at

MAGIC = (
    (b"PAR1", "parquet"),
    (b"ARROW1\x00\x00", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),  # IPC stream: continuation marker
    (b"\x1f\x8b", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    *((bytes([kind]) + b"\x2a\x4d\x18", "zst") for kind in range(0x50, 0x60)),  # a skippable frame: pzstd begins so
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
COLUMN_NAMES = (".parquet", ".arrow", ".arrows", ".feather", ".ipc")
PACKED_NAMES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".bzip2", ".xz", ".lzma")
NEVER_EMPTY = (*COLUMN_NAMES, *PACKED_NAMES)  # formats of which every file has a beginning that tells it
KNOWN_NAMES = (*TEXT_NAMES, *JSON_NAMES, *COLUMN_NAMES)
ALLOWED = "parquet, Arrow, JSON lines, a JSON array, .txt; also compressed with gzip, zstd, bzip2 or xz"


def detect(head: bytes, name: str, unpacked: bool = False) -> str | None:
    """parquet, arrow, jsonl, json (an array), txt, gz, zst, bz2 or xz; None when the file is none of these.

    `head` is the start of the file, or (`unpacked`) of what was compressed in it.
    """
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    # Of a file that is compressed in a way unknown here the name says nothing about its bytes.
    suffix = inner_suffix(name) if unpacked or not name.lower().endswith(PACKED_NAMES) else ""
    if suffix in TEXT_NAMES:
        return "txt"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{") or suffix in JSON_NAMES:
        return "jsonl"
    return None


def inner_suffix(name: str) -> str:
    """The suffix below those of compression, in small letters; "" when there is none."""
    last = name.rpartition("/")[2].lower()
    if last.endswith("."):
        return ""
    _, *suffixes = last.lstrip(".").split(".")
    while suffixes and f".{suffixes[-1]}" in PACKED_NAMES:
        suffixes.pop()
    return f".{suffixes[-1]}" if suffixes else ""


def may_hold_text(name: str) -> bool:
    """Whether a file found in a folder is looked into: a known suffix, a number, or none at all (`part-00000`)."""
    if name.endswith(KNOWN_NAMES):  # nearly all, and there may be 10^5
        return True
    suffix = inner_suffix(name)
    return not suffix or suffix[1:].isdigit() or suffix in KNOWN_NAMES
