"""The code as it is now, copied beside the run: what is edited later does not reach a job that waits in the queue."""

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import launch
import nano3
from nano3.utils.files import fsync_dir, temp_name, write_json
from nano3.utils.provenance import commit_of, git, git_bytes

_PACKAGES = ("nano3", "launch")
# Beside the packages in a working copy; inside nano3 in a wheel.
_FOLDERS = ("hydra_plugins", "conf")
# Pure Python; found last on the module path, for container images that lack them.
_SPARE = ("submitit", "cloudpickle", "typing_extensions")


@dataclass(frozen=True)
class Snapshot:
    """Files to copy, by their place in the snapshot. `folder` is named after the files' bytes."""

    folder: Path
    files: dict[str, Path]
    root: Path

    @property
    def boot(self) -> Path:
        """The file that every rank's Python runs first."""
        return self.folder / "boot.py"

    def write(self) -> None:
        """Copy, unless a snapshot of the same bytes is there."""
        if self.folder.exists():
            return
        temp = temp_name(self.folder)
        for place, source in self.files.items():
            (temp / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temp / place)
        told = describe(self.root)
        write_json(temp / "code.json", told)
        if told["edited"]:
            diff = git_bytes(self.root, "diff", "HEAD", "--binary", "--", *_PACKAGES, *_FOLDERS)
            (temp / "code.diff").write_bytes(diff)  # of whatever encoding the edited files have
        try:
            temp.replace(self.folder)
        except OSError:
            if not self.folder.exists():
                raise
            shutil.rmtree(temp)  # another submission has written the same meanwhile
        fsync_dir(self.folder.parent)


def plan(parent: Path, entries: set[str]) -> Snapshot:
    """What a snapshot for these entries holds, without writing anything.

    nano3, launch, the top package of each entry that is not installed, and what a rank needs of submitit. In a Git
    working copy: tracked files as they are now, and new ones that are not ignored.
    """
    root = Path(launch.__file__).resolve().parent.parent
    files: dict[str, Path] = {"boot.py": root / "launch" / "bootstrap.py"}
    for top in [*_PACKAGES, *sorted({entry.partition(".")[0].partition(":")[0] for entry in entries} - set(_PACKAGES))]:
        files.update(_module_files(top, ""))
    for name in _FOLDERS:
        if (root / name).is_dir():
            files.update(_folder_files(root / name, name))
    for name in _SPARE:
        files.update(_module_files(name, "spare/", installed=True))
    digest = hashlib.sha256()
    for place in sorted(files):
        digest.update(os.fsencode(f"{place}\0") + hashlib.sha256(files[place].read_bytes()).digest())
    return Snapshot(parent / f"code-{digest.hexdigest()[:12]}", dict(sorted(files.items())), root)


def describe(root: Path) -> dict[str, object]:
    """Version of nano3, and the Git commit and whether it was edited, where the code is a working copy."""
    commit = commit_of(root)
    return {
        "nano3": nano3.__version__,
        "commit": commit,
        "edited": bool(git(root, "status", "--porcelain", "--", *_PACKAGES, *_FOLDERS)) if commit else None,
    }


def _module_files(name: str, prefix: str, installed: bool = False) -> dict[str, Path]:
    spec = importlib.util.find_spec(name)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return {}
    place = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""]))).resolve()
    if "site-packages" in place.parts and not installed and name not in _PACKAGES:
        return {}  # the ranks have it as well
    if place.is_file():
        return {prefix + place.name: place}
    return _folder_files(place, prefix + name, installed)


def _folder_files(folder: Path, place: str, installed: bool = False) -> dict[str, Path]:
    return {f"{place}/{path.relative_to(folder)}": path for path in _paths(folder, installed) if path.suffix != ".pyc"}


def _paths(folder: Path, installed: bool) -> Iterator[Path]:
    listed = "" if installed else git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".")
    if listed:
        yield from (path for name in listed.split("\0") if name and (path := folder / name).is_file())
    else:
        yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
