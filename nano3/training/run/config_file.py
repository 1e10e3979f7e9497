"""config.yaml of a run and of each of its starts: YAML after a line with a checksum of the rest.

Files of earlier versions, and those of users, have no such line.
"""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from nano3.training.run.literal_config import check_literal
from nano3.utils.records import damaged, read_bytes

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HEADER = re.compile(r"# xxh128 ([0-9a-f]{32}) of the lines below; remove this line to accept an edit\n")
# The first line of a file without the header: a key, a comment of a user, a document mark, or nothing.
_OTHER_START = re.compile(r"(['\"]?[\w.]+['\"]?:|#(?! xxh128)|---|\{|\s*\n)")


def with_header(text: str) -> str:
    """Return the text of a configuration, preceded by the line with its checksum."""
    return (
        f"# xxh128 {xxhash.xxh3_128_hexdigest(text.encode())} of the lines below; remove this line to accept an edit\n"
        f"{text}"
    )


def read_config_text(path: Path, fix: str) -> str:
    """Return the text of a config.yaml without the line of the checksum, which is checked.

    Args:
        path: The file.
        fix: What the user can do about a damaged file, as a sentence.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedRecordError: The file is damaged.
        UserError: The file cannot be read.
    """
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is not text: {error}", fix) from error
    header = _HEADER.match(text)
    if header is None:
        first = text.partition("\n")[0]
        if "of the lines below" in first or "xxh128" in first or not _OTHER_START.match(text + "\n"):
            raise damaged(path, f"its first line is {first[:80]!r}", fix)
        return text
    body = text[header.end() :]
    if xxhash.xxh3_128_hexdigest(body.encode()) != header[1]:
        raise damaged(path, "its checksum differs; if you edited it on purpose, remove its first line", fix)
    return body


def load_config_file(path: Path) -> "DictConfig":
    """Read a config.yaml.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedRecordError: The file is damaged, or holds no mapping.
        Failure: It has an interpolation.
        UserError: The file cannot be read.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fix = config_fix(path)
    text = read_config_text(path, fix)
    try:
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise damaged(path, str(error).partition("\n")[0] or type(error).__name__, fix) from error
    if not isinstance(config, DictConfig) or not len(config):
        raise damaged(path, "it holds no mapping of keys to values" if text.strip() else "it is empty", fix)
    check_literal(OmegaConf.to_container(config), path)
    return config


def config_fix(path: Path) -> str:
    """Return what to do about a damaged config.yaml of a run, or of a start."""
    if path.parent.parent.name == "starts":
        return f"Remove {path.parent}; the next start of the run is recorded again."
    starts = sorted(path.parent.glob("starts/*/config.yaml"))
    if starts:
        return f"Restore it: cp {shlex.quote(str(starts[-1]))} {shlex.quote(str(path))}"
    return "Remove it; the next start of the run writes it again."
