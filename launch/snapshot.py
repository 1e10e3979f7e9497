"""Copy the code beside the run at submission, so that later edits do not reach a job that waits in the queue."""

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
# Pure Python packages; last on the module path, for container images without them.
_FALLBACK = ("submitit", "cloudpickle", "typing_extensions")


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code that can be written later."""

    # Named after the bytes of the files.
    folder: Path
    # Source file of each path in the snapshot.
    files: dict[str, Path]
    # Folder of the packages: a Git working copy, or site-packages.
    root: Path

    @property
    def boot(self) -> Path:
        """The copy of launch.bootstrap, which the Python of every rank runs first."""
        return self.folder / "boot.py"

    def write(self) -> None:
        """Write the snapshot unless one with the same bytes exists."""
        if self.folder.exists():
            return
        temp = temp_name(self.folder)
        try:
            self._copy_to(temp)
            temp.replace(self.folder)
        except BaseException as error:  # a full disk, or Ctrl-C
            shutil.rmtree(temp, ignore_errors=True)
            # Another submission may just have written the same snapshot.
            if not (isinstance(error, OSError) and self.folder.exists()):
                raise
        fsync_dir(self.folder.parent)

    def _copy_to(self, folder: Path) -> None:
        for path, source in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / path)
        version = code_version(self.root)
        write_json(folder / "code.json", version)
        if version["edited"]:
            diff = git_bytes(self.root, "diff", "HEAD", "--binary", "--", *_PACKAGES, *_FOLDERS)
            (folder / "code.diff").write_bytes(diff)  # bytes: the files may have any encoding


def plan_snapshot(parent: Path, entries: set[str]) -> Snapshot:
    """Return the snapshot for these entries without writing it.

    It holds nano3, launch, the top-level package of each entry that is not installed, and the packages of submitit that
    a rank needs. From a Git working copy it takes the tracked files with their edits and new files that are not
    ignored.

    Args:
        parent: Folder to write the snapshot into.
        entries: Entries of the jobs, "package.module:function".
    """
    root = Path(launch.__file__).resolve().parent.parent
    files: dict[str, Path] = {"boot.py": root / "launch" / "bootstrap.py"}
    for top in [*_PACKAGES, *sorted({entry.partition(".")[0].partition(":")[0] for entry in entries} - set(_PACKAGES))]:
        files.update(_module_files(top, ""))
    for name in _FOLDERS:
        if (root / name).is_dir():
            files.update(_folder_files(root / name, name))
    for name in _FALLBACK:
        files.update(_module_files(name, "spare/", installed=True))
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(os.fsencode(f"{path}\0") + hashlib.sha256(files[path].read_bytes()).digest())
    return Snapshot(parent / f"code-{digest.hexdigest()[:12]}", dict(sorted(files.items())), root)


def code_version(root: Path) -> dict[str, object]:
    """Return the version of nano3 and, for a Git working copy, its commit and whether it has edits."""
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
    source = Path(next(iter(spec.submodule_search_locations or [spec.origin or ""]))).resolve()
    if "site-packages" in source.parts and not installed and name not in _PACKAGES:
        return {}  # installed for the ranks too
    if source.is_file():
        return {prefix + source.name: source}
    return _folder_files(source, prefix + name, installed)


def _folder_files(folder: Path, target: str, installed: bool = False) -> dict[str, Path]:
    return {
        f"{target}/{path.relative_to(folder)}": path
        for path in _source_paths(folder, installed)
        if path.suffix != ".pyc"
    }


def _source_paths(folder: Path, installed: bool) -> Iterator[Path]:
    listed = "" if installed else git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".")
    if listed:
        yield from (path for name in listed.split("\0") if name and (path := folder / name).is_file())
    else:
        yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
