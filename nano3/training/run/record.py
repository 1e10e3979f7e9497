"""What a run folder remembers of each start, so that the run can be understood and repeated.

RUN/config.yaml            the resolved configuration of the latest start; ranks read this file and nothing else
RUN/starts/0001/           config.yaml, start.json and code.diff of every start, oldest first
"""

import platform
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nano3
from nano3.config import PretrainConfig
from nano3.training.run.checkpoints import latest_checkpoint, recorded_checkpoint_dir
from nano3.training.run.stop import last_iteration
from nano3.utils.console import say
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import atomic_open, read_json, write_json, write_text
from nano3.utils.provenance import commit_of, git_bytes, installed_versions, user_name
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
ROOT = Path(__file__).resolve().parents[3]
# Where a run works and is watched, not what it computes, and how its data were prepared (their fingerprint tells): a
# finished run is the same with other values of these.
IGNORED_SETTINGS = ("cluster", "dry_run", "run.env", "run.wandb", "data_blend")


@dataclass(frozen=True)
class DataReference:
    """The data of a run: what was asked for and what it was found to be."""

    # As given: an artifact or a folder; pinned to the version when it is an artifact.
    reference: str
    # Absolute folder.
    folder: str
    # `content` of its manifest: what it holds and how it is mixed.
    fingerprint: str


def save_run_config(
    run_dir: Path, config: PretrainConfig, data: DataReference, overrides: Sequence[str], label: str = ""
) -> Path:
    """Write config.yaml and the record of this start; return the path of config.yaml. Call it on one process only.

    A finished run stays as it is when it is the same run, or has all the iterations that it is asked for: its record is
    that of the training that was. With more to train, or without the checkpoint that it ended with, it is no longer
    finished.
    """
    text = run_config_text(config)
    frozen, valid_finish_record = run_dir / "config.yaml", run_dir / "finished.json"
    if valid_finish_record.exists():
        lost = missing_final_checkpoint(run_dir)
        if lost is None and not run_changed(run_dir, config, data):
            return frozen
        if lost is not None:
            say(f"{lost}, with which {run_dir} had finished, is gone: the run is no longer finished and trains again")
        valid_finish_record.unlink()
    numbers = [int(p.name) for p in (run_dir / "starts").glob("*") if re.fullmatch(r"\d{4}", p.name)]
    start = run_dir / "starts" / f"{max(numbers, default=0) + 1:04d}"
    commit, diff = code_version()
    write_json(
        start / "start.json",
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "user": user_name(),
            "host": socket.gethostname(),
            "overrides": list(overrides),
            "label": label,
            "data": vars(data),
            "code": {"commit": commit, "uncommitted": bool(diff)},
            "python": platform.python_version(),
            "packages": {"nano3": nano3.__version__, **installed_versions(PACKAGES)},
        },
    )
    with atomic_open(start / "code.diff") as f:
        f.write(diff)
    write_text(start / "config.yaml", text)
    write_text(frozen, text)
    return frozen


def run_config_text(config: PretrainConfig) -> str:
    """The configuration as config.yaml has it. References are resolved by now, so `${` is text, as in a shell line."""
    return OmegaConf.to_yaml(OmegaConf.create(_literal(asdict(config))))


def _literal(value: Any) -> Any:
    """A copy in which OmegaConf looks nothing up: a backslash before every `${`, and those before it doubled."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def run_changed(run_dir: Path, config: PretrainConfig, data: DataReference) -> bool:
    """Whether the newest start in this run folder, if there is one, was of another run than this, which has something
    left to train.

    A run of another model or other data is refused before this is asked.
    """
    try:
        other_data = read_latest_start(run_dir)["data"]["fingerprint"] != data.fingerprint
        differ = bool(changed_settings(run_dir, config))
    except (FileNotFoundError, KeyError, ValueError):  # no start was recorded, or its record is damaged
        return False
    return other_data or (differ and not has_all_iterations(run_dir, config))


def has_all_iterations(run_dir: Path, config: PretrainConfig) -> bool:
    """Whether the run has finished, with a checkpoint, at or after the iteration that this configuration ends at."""
    done = valid_finish_record(run_dir)
    return bool(done and done["checkpoint"] and done["iteration"] >= last_iteration(config))


def changed_settings(run_dir: Path, config: PretrainConfig) -> list[str]:
    """Keys that have another value than in the newest start of a run folder, those of `IGNORED_SETTINGS` left out.

    Raises `FileNotFoundError` when there is none.
    """
    before, now = (OmegaConf.load(run_dir / "config.yaml"), OmegaConf.create(run_config_text(config)))
    for one in (before, now):
        for key in IGNORED_SETTINGS:
            OmegaConf.update(one, key, None)
    trees: list[Any] = [OmegaConf.to_container(one) for one in (before, now)]
    flat = [dict(leaves(tree)) for tree in trees]
    return sorted(key for key in flat[0] | flat[1] if flat[0].get(key, ...) != flat[1].get(key, ...))


def late_settings_warning(run_dir: Path, config: PretrainConfig) -> str | None:
    """What to say of settings that come too late, since the run has finished with others; None when there are none."""
    try:
        keys = changed_settings(run_dir, config) if has_all_iterations(run_dir, config) else []
    except FileNotFoundError:
        return None
    if not keys:
        return None
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        f"{run_dir} has finished with other values of {', '.join(keys[:3])}{more}; nothing is trained with those given "
        "now. Ask for more iterations (train.train_iters), or give the run another name (run.name=...)."
    )


def valid_finish_record(run_dir: Path) -> dict[str, Any] | None:
    """What finished.json says of a run that has reached its end, with the checkpoint that it names still there (or none
    named: none was asked for); else None."""
    return read_finish_record(run_dir) if missing_final_checkpoint(run_dir) is None else None


def missing_final_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that finished.json names, if it is gone."""
    done = read_finish_record(run_dir)
    named = done["checkpoint"] if done else None
    if (
        not named or Path(named).is_dir() or (recorded_checkpoint_dir(run_dir) / Path(named).name).is_dir()
    ):  # the run was moved
        return None
    return Path(named)


def abandoned_checkpoint_problems(run_dir: Path, config: PretrainConfig) -> list[str]:
    """Told when a run that has saved is started with another checkpoint.save: it would begin again at iteration 0."""
    if not (run_dir / "config.yaml").is_file() or not config.checkpoint.save:
        return []
    old, new = recorded_checkpoint_dir(run_dir), Path(config.checkpoint.save)
    given = Path(config.checkpoint.load or new)
    newest = latest_checkpoint(old) if old != new else None
    if newest is None or latest_checkpoint(new) or given.is_relative_to(old):
        return []
    return [
        f"checkpoint.save={new}: this run has saved {newest} and would begin again at iteration 0. To go on from there "
        f"add checkpoint.load={old} checkpoint.keep_iteration=true; to begin anew give it another name: run.name=..."
    ]


def read_finish_record(run_dir: Path) -> dict[str, Any] | None:
    """What finished.json says, whatever has become of the checkpoint that it names; None without one. Raises
    `Failure`."""
    marker = run_dir / "finished.json"
    if not marker.is_file():
        return None
    then = "the run then goes on from its newest checkpoint, and has nothing to do when that is its last"
    return {"checkpoint": None} | read_state_file(marker, "iteration", then)


def read_state_file(path: Path, key: str, consequence: str) -> dict[str, Any]:
    """Read a small JSON object beside a run's checkpoints or results.

    Args:
        path: The file.
        key: A key that the object must have.
        consequence: What happens if the user removes the file.

    Raises:
        Failure: The file is damaged; names the file and what removing it means.
    """
    try:
        content = read_json(path)
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"it has no {key!r}")
    except (ValueError, OSError) as error:
        raise Failure(f"{path}: damaged ({error}). Remove it: {consequence}.") from error
    return content


def load_run_config(path: Path) -> PretrainConfig:
    """Read a frozen config.yaml. Raises `UserError` when it is not one of this version of nano3."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), OmegaConf.load(path))
        config: Any = OmegaConf.to_object(merged)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; a run folder gets it when the run is started") from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(
            f"{path} is not a configuration of this version of nano3: {str(error).splitlines()[0]}"
        ) from None
    return config


def code_version() -> tuple[str | None, bytes]:
    """Commit of the checkout that nano3 runs from and its uncommitted changes; (None, b"") for an installed package."""
    commit = commit_of(ROOT)
    return commit, git_bytes(ROOT, "diff", "HEAD") if commit else b""


def latest_start_dir(run_dir: Path) -> Path | None:
    """The folder of the newest start; None when none is recorded."""
    return max((path.parent for path in (run_dir / "starts").glob("*/start.json")), default=None)


def read_latest_start(run_dir: Path) -> dict[str, Any]:
    """start.json of the newest start; {} when none is recorded."""
    start = latest_start_dir(run_dir)
    return read_json(start / "start.json") if start else {}
