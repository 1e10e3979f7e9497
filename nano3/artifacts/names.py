"""Names and aliases of artifacts: plain file names without a reserved meaning.

Aliases are derived from the names of blend files and runs. `slugify` replaces characters that an alias may not have;
only reserved words cannot become an alias.
"""

import hashlib
import re

MODEL = "ModelArtifact-pretrain"  # checkpoints of all runs
MAX_LENGTH = 128  # characters, as in W&B; file systems allow 255 bytes
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v\d+")


def name_problem(text: str) -> str | None:
    """Return what is wrong with `text` as the name of an artifact, or None."""
    return _problem(text, "the name of an artifact")


def alias_problem(text: str) -> str | None:
    """Return what is wrong with `text` as an alias, or None. `slugify` corrects some of it."""
    return _problem(text, "an artifact's alias")


def _problem(text: str, what: str) -> str | None:
    if not _PLAIN.fullmatch(text):
        return f"{text!r} cannot be {what}: use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if len(text) > MAX_LENGTH:
        return f"{text[:20]!r}… cannot be {what}: it has {len(text)} characters; at most {MAX_LENGTH} are allowed"
    return reserved_problem(text)


def reserved_problem(text: str) -> str | None:
    """Return why `text` is reserved (`latest` and `v7` mean versions), or None."""
    if text == "latest":
        return "'latest' is reserved for the newest version"
    if _VERSION.fullmatch(text):
        return f"{text!r} is reserved for version {text[1:]}"
    return None


def slugify(text: str) -> str:
    """Return `text` as a plain file name, with '-' for other characters; "" if no character is left ("日本")."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if len(plain) <= MAX_LENGTH:
        return plain
    return f"{plain[: MAX_LENGTH - 9]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def alias_for(text: str) -> tuple[str | None, str | None]:
    """Return the alias derived from `text`, or None and the reason why there is none."""
    plain = slugify(text)
    if not plain:
        return None, f"{text!r} has none of the letters and digits that an alias may have (A-Z, a-z, 0-9)"
    problem = reserved_problem(plain)
    return (None, problem) if problem else (plain, None)
