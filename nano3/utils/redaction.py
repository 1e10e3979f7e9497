"""Secrets do not belong into a configuration: it is frozen into the run folder, shown by dry runs and sent to W&B.

A name is taken for a secret's when it is written like an environment variable and one of its words says so:
WANDB_API_KEY, HF_TOKEN. TOKENIZERS_PARALLELISM is none, and HF_TOKEN_PATH only says where one lies.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_PLACES = {"PATH", "FILE", "DIR", "FOLDER"}
# NAME=value in a shell line or an option, in quotes up to their end, else up to a blank or comma. What the shell looks
# up ($HF_TOKEN, "$(cat file)") is no secret; in single quotes it looks up nothing.
_ASSIGNED = re.compile(r"""([A-Z][A-Z0-9_]*)=(?:(')[^']+|(")(?!\$)[^"]+|(?!['"$])[^\s'",]+)""")


def is_secret(key: str) -> bool:
    """Whether a key (or the last part of a dotted one) names a secret."""
    name = key.rpartition(".")[2]
    words = name.split("_")
    return name == name.upper() and bool(_WORDS & set(words)) and words[-1] not in _PLACES


def without_secrets(value: Any) -> Any:
    """A copy of nested mappings and lists: secret keys left out, secrets in text masked."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [without_secrets(v) for v in value]
    return masked(value) if isinstance(value, str) else value


def masked(text: str) -> str:
    """`text` with the values of secret assignments masked: "export HF_TOKEN=hf_abc" -> "export HF_TOKEN=***"."""
    return _ASSIGNED.sub(lambda m: f"{m[1]}={m[2] or m[3] or ''}{MASK}" if is_secret(m[1]) else m[0], text)


def secret_problems(env: Mapping[str, Any], lines: Mapping[str, Iterable[str]]) -> list[str]:
    """One message for each secret in `cluster.env` and in the shell lines and options of `lines` (key -> lines)."""
    named = [f"cluster.env.{key}" for key, value in env.items() if is_secret(key) and value]
    named += [
        f"{key} ({match[1]})"
        for key, texts in lines.items()
        for text in texts
        for match in _ASSIGNED.finditer(text)
        if is_secret(match[1])
    ]
    return [
        f"{name}: a secret in a configuration would be written into the run folder for all to read. Leave it out and "
        f"export it in the shell that starts nano3 (jobs inherit it), or log in once (wandb login, hf auth login)."
        for name in named
    ]
