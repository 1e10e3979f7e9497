"""Resolve `split_by=auto`: the rule of what the output folder already holds, else the text rule.

Plans and manifests of versions without this option do not have it. They were made by the position rule.
"""

from pathlib import Path

import msgspec

from nano3.config import PrepOptions
from nano3.data.sources.own_files import is_publishing, prep_dir


class StoredOptions(msgspec.Struct):
    """The option in question."""

    split_by: str = "position"


class StoredFile(msgspec.Struct):
    """A manifest.json or plan.json, of which only the options are read."""

    options: StoredOptions


def resolve_split_rule(options: PrepOptions, position_hash: str) -> str:
    """Return "text" or "position".

    Args:
        options: Options of the preparation.
        position_hash: Hash of the plan if it has the position rule.
    """
    if options.split_by != "auto":
        return options.split_by
    output = Path(options.output_dir)
    interrupted = prep_dir(output) / position_hash[:16]
    if is_publishing(output):
        name = (prep_dir(output) / "publish").read_text().strip()
        return "text" if options.force else stored_rule(prep_dir(output) / name / "plan.json")
    if (output / "manifest.json").exists() and not options.force:
        return stored_rule(output / "manifest.json")
    return stored_rule(interrupted / "plan.json") if (interrupted / "units").is_dir() else "text"


def stored_rule(path: Path) -> str:
    """Return the rule in a manifest or plan; "text" if it cannot be read."""
    try:
        rule = msgspec.json.decode(path.read_bytes(), type=StoredFile).options.split_by
    except PermissionError:
        raise
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return "text"
    return rule if rule == "text" else "position"
