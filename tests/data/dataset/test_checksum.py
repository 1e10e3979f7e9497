"""Checksums are those of xxhsum."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import xxhash
from data_helpers import run, texts, write

from nano3.data.dataset.checksum import CHUNK, checksum
from nano3.data.dataset.manifest import load_manifest


def test_manifest_has_the_checksums_of_xxhsum(tmp_path: Path, byte_bpe: Path) -> None:
    data = tmp_path / "out"
    run(write(tmp_path / "a.jsonl", texts(100)), data, byte_bpe)
    shard = load_manifest(data).shards[0]
    for suffix in ("bin", "idx"):
        file = data / f"{shard.prefix}.{suffix}"
        assert getattr(shard, f"{suffix}_xxh128") == xxhash.xxh3_128_hexdigest(file.read_bytes())
        if shutil.which("xxhsum"):
            done = subprocess.run(["xxhsum", "-H2", file], capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == getattr(shard, f"{suffix}_xxh128")


def test_checksum_of_files_of_any_size(tmp_path: Path) -> None:
    for size in (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 7):
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / "a").write_bytes(data)
        assert checksum(tmp_path / "a") == xxhash.xxh3_128_hexdigest(data)
