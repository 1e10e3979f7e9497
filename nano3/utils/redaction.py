"""Keep secrets out of configurations, which are saved in the run folder, shown by dry runs and sent to W&B.

A name is a secret's if it is written like an environment variable and one of its words says so, as in WANDB_API_KEY and
HF_TOKEN. TOKENIZERS_PARALLELISM is not a secret, and HF_TOKEN_PATH only names a file.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_LOCATION_WORDS = {"PATH", "FILE", "DIR", "FOLDER"}
# NAME=value in a shell line or an option: up to the closing quote, or up to a blank or comma. A value that the shell
# substitutes ($HF_TOKEN, "$(cat file)") is not a secret; in single quotes nothing is substituted.
_ASSIGNMENT = re.compile(r"""([A-Z][A-Z0-9_]*)=(?:(')[^']+|(")(?!\$)[^"]+|(?!['"$])[^\s'",]+)""")


def is_secret(key: str) -> bool:
    """Return whether a key, or the last component of a dotted key, names a secret."""
    name = key.rpartition(".")[2]
    words = name.split("_")
    return name == name.upper() and bool(_WORDS & set(words)) and words[-1] not in _LOCATION_WORDS


def without_secrets(value: Any) -> Any:
    """Return a copy of nested mappings and lists without secret keys and with secrets in text masked."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [without_secrets(v) for v in value]
    return mask_secrets(value) if isinstance(value, str) else value


def mask_secrets(text: str) -> str:
    """Return the text with the values of secrets masked: "export HF_TOKEN=hf_abc" -> "export HF_TOKEN=***"."""
    return _ASSIGNMENT.sub(lambda m: f"{m[1]}={m[2] or m[3] or ''}{MASK}" if is_secret(m[1]) else m[0], text)


def secret_problems(env: Mapping[str, Any], lines: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one message for each secret in a cluster profile.

    Args:
        env: The environment variables of `cluster.env`.
        lines: Shell lines and command-line options by their configuration key.
    """
    named = [f"cluster.env.{key}" for key, value in env.items() if is_secret(key) and value]
    named += [
        f"{key} ({match[1]})"
        for key, texts in lines.items()
        for text in texts
        for match in _ASSIGNMENT.finditer(text)
        if is_secret(match[1])
    ]
    return [
        f"{name}: a secret in a configuration would be saved in the run folder, readable by others. Remove it and "
        f"export it in the shell that starts nano3 (jobs inherit it), or log in once (wandb login, hf auth login)."
        for name in named
    ]
