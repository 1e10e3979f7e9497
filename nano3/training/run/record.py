"""The record of a run in its folder, from which it can be understood and repeated.

RUN/config.yaml            the resolved configuration of the latest start, the only file that ranks read
RUN/starts/0001/           config.yaml, start.json and code.diff of each start, oldest first
RUN/finished.json          the last iteration and its checkpoint, once the run has finished
"""

import platform
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.errors import OmegaConfBaseException

import nano3
from nano3.config import PretrainConfig
from nano3.data.dataset.checksum import Checksum, checksum
from nano3.training.run.checkpoints import iteration_of, latest_checkpoint, recorded_checkpoint_dir
from nano3.training.run.config_file import load_config_file, with_header
from nano3.training.run.literal_config import literal
from nano3.training.run.sound_checkpoints import checkpoint_problems
from nano3.training.run.stop import last_iteration
from nano3.utils.console import say
from nano3.utils.errors import UserError, list_some
from nano3.utils.files import atomic_open, folder_content, write_text
from nano3.utils.provenance import ROOT, commit_of, git_bytes, installed_versions, user_name
from nano3.utils.records import DamagedRecordError, damaged, read_record, write_record
from nano3.utils.redaction import mask_secrets, without_secrets
from nano3.utils.tree import leaves

PACKAGES = (
    "hydra-core",
    "omegaconf",
    "submitit",
    "torch",
    "transformers",
    "accelerate",
    "megatron-core",
    "megatron-bridge",
    "transformer-engine",
    "mamba-ssm",
    "triton",
    "numpy",
    "tokenizers",
)
# Settings that do not change what a run computes. The data's fingerprint stands for how it was prepared.
IGNORED_SETTINGS = ("cluster", "dry_run", "run.env", "run.wandb", "data_blend", "objective", "objective_take")


@dataclass(frozen=True)
class DataReference:
    """The data of a run, as requested and as resolved."""

    # The artifact with its version, or the folder as given.
    reference: str
    # Absolute folder.
    folder: str
    # `content` of its manifest, which covers the documents and the blend.
    fingerprint: str


def save_run_config(
    run_dir: Path, config: PretrainConfig, data: DataReference, overrides: Sequence[str], label: str = ""
) -> Path:
    """Write config.yaml and the record of this start. Call it in one process only.

    Leave a finished run untouched if the settings match or no further iterations are requested. Otherwise, or if its
    last checkpoint is gone, the run is no longer finished.

    Args:
        run_dir: The run folder.
        config: The resolved configuration.
        data: The data of the run.
        overrides: The words of the command line.
        label: The label of a sweep point.

    Returns:
        The path of config.yaml.
    """
    text = with_header(run_config_text(config))
    config_path, finish_path = run_dir / "config.yaml", run_dir / "finished.json"
    if finish_path.exists():
        missing = missing_final_checkpoint(run_dir)
        if missing is None and not run_changed(run_dir, config, data):
            return config_path
        if missing is not None:
            say(
                f"{missing}, the last checkpoint of {run_dir}, is gone or damaged: the run is no longer finished and "
                "trains again"
            )
        finish_path.unlink()
    numbers = [int(p.name) for p in folder_content(run_dir / "starts") if re.fullmatch(r"\d{4}", p.name)]
    start = run_dir / "starts" / f"{max(numbers, default=0) + 1:04d}"
    commit, diff = code_version()
    write_record(
        start / "start.json",
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "user": user_name(),
            "host": socket.gethostname(),
            "overrides": [mask_secrets(word) for word in overrides],
            "label": label,
            "data": vars(data),
            "code": {"commit": commit, "uncommitted": bool(diff), "diff_xxh128": Checksum(diff).hexdigest()},
            "python": platform.python_version(),
            "packages": {"nano3": nano3.__version__, **_installed()},
        },
    )
    with atomic_open(start / "code.diff") as f:
        f.write(diff)
    write_text(start / "config.yaml", text)
    write_text(config_path, text)
    return config_path


def run_config_text(config: PretrainConfig) -> str:
    """Return the text of config.yaml. References are resolved already, so `${` is plain text, as in a shell command."""
    values = asdict(config)
    values["data_blend"] = without_secrets(values["data_blend"])  # not used by a run; its URLs may have passwords
    return "".join(_section_text(_Section(repr((key, value)), key, value)) for key, value in literal(values).items())


@dataclass(frozen=True)
class _Section:
    """A section of plain values. Sections with the same representation are equal, so that one text is made for all."""

    representation: str
    key: str = field(compare=False)
    value: Any = field(compare=False)


@lru_cache(maxsize=256)
def _section_text(section: _Section) -> str:
    """Return a section as OmegaConf.to_yaml writes it; most are the same in all points of a sweep."""
    return yaml.dump(
        {section.key: section.value},
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
        Dumper=get_omega_conf_dumper(),
    )


def run_changed(run_dir: Path, config: PretrainConfig, data: DataReference) -> bool:
    """Return whether the latest start in this folder had other settings or data and there is something left to train.

    Args:
        run_dir: The run folder.
        config: The configuration of this start.
        data: The data of this start.
    """
    try:
        other_data = read_latest_start(run_dir)["data"]["fingerprint"] != data.fingerprint
        differ = bool(changed_settings(run_dir, config))
    except (FileNotFoundError, KeyError, DamagedRecordError):  # no start was recorded, or its record is damaged
        # Only the checkpoint can prove that nothing is left to train.
        return (run_dir / "finished.json").exists() and not has_all_iterations(run_dir, config)
    return other_data or (differ and not has_all_iterations(run_dir, config))


def has_all_iterations(run_dir: Path, config: PretrainConfig) -> bool:
    """Return whether the run has finished, with a checkpoint, at or after the last iteration of this configuration."""
    done = valid_finish_record(run_dir)
    return bool(done and done["checkpoint"] and done["iteration"] >= last_iteration(config))


def changed_settings(run_dir: Path, config: PretrainConfig) -> list[str]:
    """Return the keys whose value differs from RUN/config.yaml, without those of `IGNORED_SETTINGS`.

    Args:
        run_dir: The run folder.
        config: The configuration of this start.

    Raises:
        FileNotFoundError: There is no RUN/config.yaml.
        DamagedRecordError: RUN/config.yaml is damaged.
    """
    before, now = load_config_file(run_dir / "config.yaml"), OmegaConf.create(run_config_text(config))
    for one in (before, now):
        for key in IGNORED_SETTINGS:
            OmegaConf.update(one, key, None)
    trees: list[Any] = [OmegaConf.to_container(one) for one in (before, now)]
    flat = [dict(leaves(tree)) for tree in trees]
    return sorted(key for key in flat[0] | flat[1] if flat[0].get(key, ...) != flat[1].get(key, ...))


def late_settings_warning(run_dir: Path, config: PretrainConfig) -> str | None:
    """Return a warning about settings that differ from those the run has finished with, or None."""
    try:
        keys = changed_settings(run_dir, config) if has_all_iterations(run_dir, config) else []
    except FileNotFoundError:
        return None
    if not keys:
        return None
    return (
        f"{run_dir} has finished with other values of {list_some(keys, 3)}; nothing is trained with the new "
        "ones. Set more iterations (train.train_iters), or another name (run.name=...)."
    )


def valid_finish_record(run_dir: Path) -> dict[str, Any] | None:
    """Return the contents of finished.json, or None if the run has not finished or its last checkpoint is gone."""
    return read_finish_record(run_dir) if missing_final_checkpoint(run_dir) is None else None


def finish_text(run_dir: Path, done: dict[str, Any]) -> str:
    """Return where the result of a finished run is.

    Args:
        run_dir: The run folder.
        done: The contents of finished.json.
    """
    return f"iteration {done['iteration']} is in {done['checkpoint'] or run_dir}; nothing to do"


def missing_final_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint in finished.json if it no longer exists or is evidently damaged, else None."""
    done = read_finish_record(run_dir)
    named = done["checkpoint"] if done else None
    if not named:
        return None
    moved = recorded_checkpoint_dir(run_dir) / Path(named).name
    for folder in (Path(named), moved):
        if folder.is_dir() and not checkpoint_problems(folder, read_files=False):
            return None
    return Path(named)


def abandoned_checkpoint_problems(run_dir: Path, config: PretrainConfig) -> list[str]:
    """Return why another checkpoint.save would restart this run at iteration 0, or an empty list.

    Args:
        run_dir: The run folder.
        config: The configuration of this start.
    """
    if not (run_dir / "config.yaml").is_file() or not config.checkpoint.save:
        return []
    old, new = recorded_checkpoint_dir(run_dir), Path(config.checkpoint.save)
    given = Path(config.checkpoint.load or new)
    newest = latest_checkpoint(old) if old != new else None
    if newest is None or latest_checkpoint(new) or given.is_relative_to(old):
        return []
    return [
        f"checkpoint.save={new}: this run has saved {newest} and would restart at iteration 0. To resume from that "
        f"checkpoint add checkpoint.load={old} checkpoint.keep_iteration=true; to start from scratch use another name: "
        "run.name=..."
    ]


class FinishRecord(msgspec.Struct):
    """RUN/finished.json: the last iteration and its checkpoint; None if the run saves none."""

    iteration: Annotated[int, msgspec.Meta(ge=0)]
    checkpoint: str | None = None


def read_finish_record(run_dir: Path) -> dict[str, Any] | None:
    """Return the contents of finished.json, or None if there is none.

    Raises:
        DamagedRecordError: The file is damaged.
    """
    path = run_dir / "finished.json"
    fix = "Remove it: the run then resumes from its newest checkpoint, and ends at once if that is its last."
    try:
        done = read_record(path, FinishRecord, fix)
    except FileNotFoundError:
        return None
    if done.checkpoint is not None:
        try:
            saved = iteration_of(Path(done.checkpoint))
        except ValueError as error:
            raise damaged(path, str(error), fix) from error
        if saved != done.iteration:
            raise damaged(path, f"iteration {done.iteration}, but the checkpoint is {done.checkpoint}", fix)
    return {"iteration": done.iteration, "checkpoint": done.checkpoint}


def load_run_config(path: Path) -> PretrainConfig:
    """Read RUN/config.yaml.

    Raises:
        UserError: The file is missing, damaged, or not a configuration of this version of nano3.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), load_config_file(path))
        config = OmegaConf.to_object(merged)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; it is written when the run starts") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(
            f"{path} is not a configuration of this version of nano3: {str(error).splitlines()[0]}"
        ) from None
    assert isinstance(config, PretrainConfig)
    return config


@cache
def _installed() -> dict[str, str]:
    return installed_versions(PACKAGES)


@cache
def code_version() -> tuple[str | None, bytes]:
    """Return the commit of nano3's checkout and its uncommitted diff; (None, b"") for an installed package.

    One command has one version: a sweep saves it with every point.
    """
    commit = commit_of(ROOT)
    return commit, git_bytes(ROOT, "diff", "HEAD") if commit else b""


class CodeRecord(msgspec.Struct):
    """The code of a start. `diff_xxh128` is the checksum of code.diff, "" in records of earlier versions."""

    commit: str | None = None
    uncommitted: bool = False
    diff_xxh128: str = ""


class StartFile(msgspec.Struct):
    """RUN/starts/0001/start.json."""

    data: DataReference
    code: CodeRecord
    time: str = ""
    user: str = ""
    host: str = ""
    overrides: list[str] = []
    label: str = ""
    python: str = ""
    packages: dict[str, str] = {}


def latest_start_dir(run_dir: Path) -> Path | None:
    """Return the folder of the latest recorded start, or None. Its start.json may be damaged or missing."""
    found = (path for path in folder_content(run_dir / "starts") if re.fullmatch(r"\d{4,}", path.name))
    # start.json is written first, so a folder without any of the files is that of an interrupted start.
    return max((p for p in found if (p / "start.json").exists() or (p / "config.yaml").exists()), default=None)


def read_latest_start(run_dir: Path) -> dict[str, Any]:
    """Return start.json of the latest start; empty if none is recorded.

    Raises:
        DamagedRecordError: The file is damaged or missing.
    """
    start = latest_start_dir(run_dir)
    return read_start_file(start) if start else {}


def read_start_file(start: Path) -> dict[str, Any]:
    """Return start.json of a start.

    Raises:
        DamagedRecordError: The file is damaged or missing, or code.diff does not belong to it.
    """
    path, fix = start / "start.json", f"Remove {start}; the next start of the run is recorded again."
    try:
        record = read_record(path, StartFile, fix)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing", fix) from error
    diff = start / "code.diff"
    if record.code.diff_xxh128 and diff.exists() and checksum(diff) != record.code.diff_xxh128:
        raise damaged(diff, "its checksum differs from that in start.json", fix)
    values: dict[str, Any] = msgspec.to_builtins(record)
    return values
