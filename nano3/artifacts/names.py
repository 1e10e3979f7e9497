"""What an artifact or one of its aliases may be called: a plain file name, and nothing that already means something.

Aliases are made of what people choose for other reasons (a blend file's name, a run's name), so a text that is no
alias becomes one that is (`slugify`), and only words that mean something else are left out.
"""

import hashlib
import re

MODEL = "ModelArtifact-pretrain"  # checkpoints of all runs
MOST = 128  # characters; W&B allows no more, and file systems 255 bytes
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v\d+")


def name_problem(text: str) -> str | None:
    """What is wrong with `text` as the name of an artifact; None when nothing is."""
    return _problem(text, "the name of an artifact")


def alias_problem(text: str) -> str | None:
    """What is wrong with `text` as an alias, as it stands (`slugify` mends some); None when nothing is."""
    return _problem(text, "an artifact's alias")


def _problem(text: str, what: str) -> str | None:
    if not _PLAIN.fullmatch(text):
        return f"{text!r} cannot be {what}: letters, digits, '.', '_' and '-', and a letter or digit first"
    if len(text) > MOST:
        return f"{text[:20]!r}… cannot be {what}: it has {len(text)} characters, {MOST} are allowed"
    return reserved_problem(text)


def reserved_problem(text: str) -> str | None:
    """Why `text` cannot be an alias however it is spelled: `latest` and `v7` mean versions."""
    if text == "latest":
        return "'latest' always means the newest version, so nothing can be called that"
    if _VERSION.fullmatch(text):
        return f"{text!r} means version {text[1:]}, so nothing can be called that"
    return None


def slugify(text: str) -> str:
    """`text` as a plain file name: what is not allowed becomes '-'. "" when nothing is left ("日本")."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    if len(plain) <= MOST:
        return plain
    return f"{plain[: MOST - 9]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def alias_for(text: str) -> tuple[str | None, str | None]:
    """The alias made of `text`, and why there is none."""
    plain = slugify(text)
    if not plain:
        return None, f"{text!r} has no letter or digit that an alias may have (A-Z, a-z, 0-9)"
    problem = reserved_problem(plain)
    return (None, problem) if problem else (plain, None)
