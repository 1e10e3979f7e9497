"""A working folder as an old nano3 has left it: unpacked wherever a test wants it, and commands run in it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).parent / "v0_1"
# Where the folder was when it was made: this is in its files, and becomes the place it is unpacked to.
MADE_AT = "/tmp/nano3-old"
# The three commands.
PREP, TRAIN, TOOL = ("-m", "nano3.data_prep"), ("-m", "nano3.pretrain"), ("-m", "nano3")
APPLICATIONS = {"prep": PREP, "train": TRAIN}
RUNS = Path("output/nano3/runs")
# Files that hold lengths of their texts, or no text.
BINARY = {".bin", ".idx", ".npy", ".pt", ".safetensors", ".png", ".parquet", ".gz", ".zst", ".msgpack"}
# Values of metrics.jsonl that say how fast a run was, not what it computed.
TIMING = ("tokens_per_s", "seconds", "elapsed_s", "time", "startup/")
ADDED = ("bits_per_byte", "valid_bits_per_byte", "expert_min_load", "expert_entropy", "expert_dropped", "data_hash")
# One thread, and instructions that every x86-64 processor has: the same sums wherever the tests run.
NUMBERS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
DECIDING = ("torch", "numpy", "transformers", "accelerate", "megatron-core")


def baseline() -> dict[str, Any]:
    """What the old code made: checksums, losses, and the commands that were typed."""
    found: dict[str, Any] = json.loads((OLD / "baseline.json").read_text())
    return found


def typed(command: str) -> list[str]:
    """A command of the baseline as words for Python."""
    application, *words = command.split()
    return [*APPLICATIONS[application], *words]


class Work:
    """`python WORDS...` in a folder that has an artifact store (home/) and profiles (conf/) of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"NANO3_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "400"}
        if (folder / "conf").is_dir():
            own["NANO3_CONF"] = str(folder / "conf")
        self.env = {**os.environ, **NUMBERS, **own}

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        """Begin a command; what it prints is kept."""
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *words: str, code: int = 0, **env: str) -> str:
        """Run a command to its end and give what it printed; fails unless the exit code is `code`."""
        from commands import run_command  # make.py has no use for it

        if words[:2] == TRAIN:
            return ended(self.start(*words, **env), code)
        exit_code, stdout, stderr = run_command(words, self.folder, {**self.env, **env})
        assert exit_code == code, stdout + stderr
        return stdout + stderr

    def run_dir(self, name: str) -> Path:
        """The run folder of run.name=NAME."""
        return self.folder / RUNS / name


def ended(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for a command and give what it printed; fails unless the exit code is `code`."""
    told, _ = process.communicate()
    assert process.returncode == code, told
    return told


# What is compared


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shards(data: Path) -> dict[str, str]:
    """Checksums of the .bin and .idx of prepared data."""
    files = sorted(path for split in ("train", "valid", "test") for path in (data / split).glob("*.*"))
    return {str(path.relative_to(data)): sha256(path) for path in files}


def facts(data: Path, store: Path, alias: str) -> dict[str, Any]:
    """What identifies prepared data: its bytes, how they are mixed, and what it is called."""
    blend = json.loads((data / "blend.json").read_text())
    number = (store / "DataBlendsArtifact-pretrain" / f"{alias}.alias").read_text().split()[-1]  # after a checksum
    registered = json.loads((store / "DataBlendsArtifact-pretrain" / f"v{number}.json").read_text())
    manifest = json.loads((data / "manifest.json").read_text())
    return {
        "sha256": shards(data),
        "blend": {
            split: [str(Path(word).relative_to(data)) if i % 2 else word for i, word in enumerate(words)]
            for split, words in blend.items()
        },
        "format": manifest["format"],
        "dtype": manifest["dtype"],
        "plan": manifest["plan_hash"],
        "content": registered["fingerprint"],
        "tokenizer": manifest["tokenizer"]["sha256"],
        "splits": manifest["splits"],
    }


def lines(run: Path) -> list[dict[str, Any]]:
    """The training and validation lines of metrics.jsonl, without the timings and the metrics added since 0.1.0."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(TIMING + ADDED)}
        for line in found
        if "loss" in line or "valid_loss" in line
    ]


def table_rows(told: str, folder: Path) -> list[list[str]]:
    """The cells of a table that was printed, with the working folder left out."""
    return [re.split(r" {2,}", line.strip()) for line in told.replace(f"{folder}/", "").splitlines() if "  " in line]


def versions() -> dict[str, str]:
    """Of the packages that add the numbers up."""
    return {name: version(name) for name in DECIDING}


def same_lines(now: list[dict[str, Any]], then: list[dict[str, Any]], made_with: Mapping[str, str]) -> None:
    """Fails unless all numbers are the same to the last digit; with other versions of torch and its like, unless they
    are nearly the same."""
    if now == then:
        return
    assert versions() != made_with, difference(now, then)
    assert [list(line) for line in now] == [list(line) for line in then]
    for new, old in zip(now, then, strict=True):
        assert new == pytest.approx(old, rel=1e-3)
    warnings.warn(f"equal to three digits only: made with {dict(made_with)}, now {versions()}", stacklevel=2)


def difference(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> str:
    """The first lines that differ."""
    pairs = [(new, old) for new, old in zip(now, then, strict=False) if new != old]
    return f"{len(now)} lines, {len(then)} before; now {pairs[0][0]}, before {pairs[0][1]}" if pairs else "lengths"


# Unpacking


def unpack(folder: Path, runs: bool = True) -> Work:
    """The old working folder at another place, as if it had been made there; without its runs if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(OLD / "work.tar.xz") as archive:
        wanted = [one for one in archive if runs or one.name.partition("/")[0] not in ("output", "saved")]
        archive.extractall(folder, wanted, filter="data")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            move_file(path, folder)
    for store in (folder / "home").iterdir():
        move_places(store, folder)
    return Work(folder)


def move_file(path: Path, folder: Path) -> None:
    """Write the new place where the old one is named; times stay."""
    if path.suffix in BINARY or "tfevents" in path.name:
        return
    before = path.read_bytes()
    after = before.replace(MADE_AT.encode(), str(folder).encode())
    if after == before:
        return
    kept = path.stat()
    path.write_bytes(after)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    if path.name.endswith("-description.txt"):  # Megatron's index: its files are named after the description's sum
        old, new = (hashlib.md5(text, usedforsecurity=False).hexdigest() for text in (before, after))
        for file in path.parent.glob(f"{old}-*"):
            file.rename(file.with_name(file.name.replace(old, new)))


def move_places(artifact: Path, folder: Path) -> None:
    """The store's files that are named by the hash of a path."""
    for version_file in artifact.glob("v*.json"):
        new = json.loads(version_file.read_text())["path"]
        old = new.replace(str(folder), MADE_AT, 1)
        place = artifact / "places" / place_name(old)
        if place.exists():
            place.rename(artifact / "places" / place_name(new))


def place_name(path: str) -> str:
    """What the store calls the file that has the newest version at a path."""
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def remember_anew(memory: Path, folder: Path, change: str = "") -> None:
    """Make the memory of looked-at files one of the files as they lie here. Nobody can set the time of an inode back.

    `change` names a file of which something else is then remembered.
    """
    tables = msgspec.msgpack.decode(memory.read_bytes())
    for table in tables.values():
        table["root"] = table["root"].replace(MADE_AT, str(folder))
        for i, key in enumerate(table["keys"]):
            seen = (Path(table["root"]) / key).stat()
            assert (seen.st_size, seen.st_mtime_ns) == (table["sizes"][i], table["times"][i])
            table["inode_times"][i] = seen.st_ctime_ns
            if key == change:
                table["prints"][i] = "0" * len(table["prints"][i])
    memory.write_bytes(msgspec.msgpack.encode(tables))
