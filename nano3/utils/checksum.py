"""The checksum of everything that is written: XXH3, 128 bits, in hexadecimal.

It is there to find damage: a disk's, a copy's, a power cut's. Nobody can be kept from making another file with the
same checksum, which SHA-256 would do at a tenth of the speed; that is used where identity counts (plans, tokenizers).
By hand: `xxhsum -H2 FILE`.
"""

from pathlib import Path

import xxhash

NAME = "XXH128"  # as xxhsum calls it; fields that hold one end in _xxh128
CHUNK = 4 << 20

Checksum = xxhash.xxh3_128  # update(bytes), hexdigest()


def checksum(path: Path) -> str:
    """Checksum of a file. Raises `OSError`."""
    digest = Checksum()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as f:
        while size := f.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()
