"""Which checkpoints can be trusted: verify their files, and set damaged ones aside.

A checkpoint is sound if checkpoint.json is undamaged and every file that it lists has its size and checksum. Checksums
are XXH3 with 128 bits; earlier releases recorded SHA-256.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from nano3.data.dataset.checksum import checksum
from nano3.training.run.checkpoints import (
    MARKER,
    CheckpointInfo,
    FileRecord,
    complete_checkpoints,
    iteration_of,
    read_checkpoint_info,
    removal_hint,
)
from nano3.training.run.rank_sync import map_over_ranks
from nano3.utils.console import warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import fsync_dir, name_aside
from nano3.utils.records import DamagedRecordError

# In the run folder: one line for each checkpoint that was set aside.
DAMAGE_LOG = "damaged_checkpoints.jsonl"
# What a damaged newest checkpoint leads to (checkpoint.on_damage).
ON_DAMAGE = ("fallback", "refuse")
# Files read at a time; checksums are computed without Python's lock.
_THREADS = 8


@dataclass(frozen=True)
class DamagedCheckpoint:
    """A checkpoint folder and what is wrong with it."""

    folder: Path
    problems: list[str]


def newest_sound(root: Path, at_most: int | None = None, read_files: bool = True) -> Path | None:
    """Return the newest checkpoint in `root` that is sound, or None.

    Args:
        root: The checkpoint folder of a run.
        at_most: Ignore checkpoints of later iterations.
        read_files: Compare checksums, which reads every file; otherwise only checkpoint.json and the sizes.
    """
    return find_sound(root, at_most, read_files)[0]


def find_sound(
    root: Path, at_most: int | None = None, read_files: bool = True
) -> tuple[Path | None, list[DamagedCheckpoint]]:
    """Return what `newest_sound` returns, and the damaged checkpoints after it, newest first.

    Args:
        root: The checkpoint folder of a run.
        at_most: Ignore checkpoints of later iterations.
        read_files: Compare checksums too.
    """
    found: list[DamagedCheckpoint] = []
    for folder in reversed(complete_checkpoints(root)):
        if at_most is not None and iteration_of(folder) > at_most:
            continue
        problems = checkpoint_problems(folder, read_files)
        if not problems:
            return folder, found
        found.append(DamagedCheckpoint(folder, problems))
    return None, found


def checkpoint_problems(folder: Path, read_files: bool = True) -> list[str]:
    """Return what is wrong with a checkpoint, or an empty list.

    Args:
        folder: The checkpoint folder.
        read_files: Compare checksums too.
    """
    try:
        info = read_checkpoint_info(folder)
    except DamagedRecordError as error:
        return error.problems
    return file_problems(folder, info, read_files)


def file_problems(folder: Path, info: CheckpointInfo, read_files: bool = True) -> list[str]:
    """Return each file of a checkpoint that is missing or differs from checkpoint.json.

    Args:
        folder: The checkpoint folder.
        info: Its checkpoint.json.
        read_files: Compare checksums too.
    """
    items: list[tuple[str, FileRecord]] = [(str(folder / name), record) for name, record in info.files.items()]
    if read_files:
        items.sort(key=lambda item: item[1]["bytes"], reverse=True)  # each rank reads about as many bytes
        suspected = map_over_ranks(find_suspects, items)
        # The view of this rank decides: a sound checkpoint must not be set aside for what one node cannot read.
        items = [item for item, suspect in zip(items, suspected, strict=True) if suspect]
    found = _each_file(partial(_file_problem, read_file=read_files), items)
    return sorted(problem for problem in found if problem)


def find_suspects(items: list[tuple[str, FileRecord]]) -> list[bool]:
    """Return whether this rank finds a file missing, changed or unreadable, for each file.

    Args:
        items: Path, size and checksum of each file.
    """
    return _each_file(_is_suspect, items)


def _is_suspect(item: tuple[str, FileRecord]) -> bool:
    try:
        return _file_problem(item) is not None
    except PermissionError:
        return True


def _each_file[Result](
    check: Callable[[tuple[str, FileRecord]], Result], items: list[tuple[str, FileRecord]]
) -> list[Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return [*pool.map(check, items)]


def _file_problem(item: tuple[str, FileRecord], read_file: bool = True) -> str | None:
    path, expected = Path(item[0]), item[1]
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path} has {size:,} bytes instead of {expected['bytes']:,}"
        if not read_file:
            return None
        if (recorded := expected.get("xxh128")) and checksum(path) != recorded:
            return f"{path} has changed (its checksum differs)"
        if (recorded := expected.get("sha256")) and file_sha256(path) != recorded:
            return f"{path} has changed (sha256 differs)"
    except FileNotFoundError:
        return f"{path} is missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None


def verify_checkpoint(folder: Path, info: CheckpointInfo) -> None:
    """Compare the size and checksum of every file with checkpoint.json.

    Args:
        folder: The checkpoint folder.
        info: Its checkpoint.json.

    Raises:
        Failure: Lists each file that is missing or differs.
    """
    if problems := file_problems(folder, info):
        raise Failure([f"Checkpoint damaged: {problem}. {removal_hint(folder)}" for problem in problems])


def check_damage(root: Path, on_damage: str, read_files: bool) -> tuple[Path | None, list[DamagedCheckpoint]]:
    """Return what `find_sound` returns, unless the run must not start from it.

    Args:
        root: The checkpoint folder of a run.
        on_damage: `checkpoint.on_damage`.
        read_files: Compare checksums too.

    Raises:
        UserError: The newest checkpoint is damaged, and on_damage is "refuse" or no other one is sound.
    """
    sound, found = find_sound(root, read_files=read_files)
    if not found or (sound and on_damage != "refuse"):
        return sound, found
    if sound:
        hint = f"checkpoint.on_damage=fallback resumes from {sound.name}"
    else:
        hint = f"No sound checkpoint is left in {root}. To start from scratch, remove or rename the damaged ones"
    raise UserError([f"Checkpoint damaged: {_sentence(problem)} {hint}." for one in found for problem in one.problems])


def set_aside_damaged(root: Path, run_dir: Path, on_damage: str) -> None:
    """Rename the checkpoints after the newest sound one, which are damaged, and report each on stderr and in a file.

    Call it on rank 0, before a start chooses its checkpoint. The ranks together read every file of the checkpoint that
    the start resumes from, so this takes about as long as loading it; on one node, loading then finds them in memory.

    Args:
        root: The checkpoint folder of the run.
        run_dir: The run folder.
        on_damage: `checkpoint.on_damage`.

    Raises:
        UserError: The newest checkpoint is damaged, and on_damage is "refuse" or no other one is sound.
    """
    sound, found = check_damage(root, on_damage, read_files=True)
    for one in found:
        aside = name_aside(one.folder, "damaged")
        one.folder.rename(aside)
        fsync_dir(root)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": str(one.folder),
            "set_aside": str(aside),
            "problems": one.problems,
            "newest_sound": str(sound),
        }
        with (run_dir / DAMAGE_LOG).open("a") as f:
            f.write(json.dumps(line) + "\n")
        warn(
            f"CHECKPOINT DAMAGED: {_sentence(' '.join(one.problems))} It was renamed to {aside.name}; the run falls "
            f"back to {sound}. Check the disk. Recorded in {run_dir / DAMAGE_LOG}."
        )
    if sound and not read_checkpoint_info(sound).files:
        warn(
            f"{sound} has no checksums, so it cannot be verified: the run was ended before they were recorded, or an "
            "earlier version of nano3 saved it."
        )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def describe_files(folder: Path, known: dict[str, str] | None = None) -> dict[str, FileRecord]:
    """Return the size and checksum of every file of a checkpoint except checkpoint.json, by relative path.

    Args:
        folder: The checkpoint folder.
        known: Checksums that were computed while the files were written.

    Raises:
        OSError: A file cannot be read.
    """
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p != folder / MARKER)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: (known or {}).get(name) or checksum(folder / name), names)
        return {
            name: FileRecord(bytes=(folder / name).stat().st_size, xxh128=value)
            for name, value in zip(names, sums, strict=True)
        }


def prune(root: Path, keep_last: int, saved: Path, remove: Callable[[Path], None], read_files: bool = True) -> None:
    """Remove old checkpoints after a save, unless no sound one would be left.

    Args:
        root: The checkpoint folder of a run.
        keep_last: Number of checkpoints to keep, with the new one; 0 keeps all.
        saved: The new checkpoint.
        remove: Removes one checkpoint folder.
        read_files: Compare the checksums of the new checkpoint too.
    """
    others = [folder for folder in complete_checkpoints(root) if folder != saved]
    old = others[: -keep_last + 1 or None] if keep_last > 0 else []
    kept = [folder for folder in others if folder not in old]
    if old and all(checkpoint_problems(folder, read_files) for folder in (saved, *reversed(kept))):
        warn(f"{root}: the newest {keep_last} checkpoint(s) are damaged, so older ones are kept. Check the disk.")
        return
    for folder in old:
        remove(folder)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
