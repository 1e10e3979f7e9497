"""Reads the file of an offline W&B run (run-ID.wandb): LevelDB's log format, a protobuf `Record` in each entry."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, HEADER = 32768, 7, 7
WAIT_S = 15


def records(folder: Path) -> list[Any]:
    """Every record of the only offline run in FOLDER/wandb. W&B writes in a process of its own, which may be a moment
    behind `finish`: the record of the exit is waited for."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    end = time.monotonic() + WAIT_S
    while True:
        found = [wandb_internal_pb2.Record.FromString(entry) for entry in entries(path.read_bytes())]
        if time.monotonic() > end or any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.2)


def entries(content: bytes) -> Iterator[bytes]:
    """Put chunks together: type 1 is whole, 2, 3 and 4 are first, middle and last."""
    assert content[:4] == b":W&B"
    at, parts = FILE_HEADER, b""
    while at < len(content):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is filled up
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if kind == 0:
            return
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield parts
            parts = b""
