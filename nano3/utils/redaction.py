"""Keep secrets out of configurations, which are saved in the run folder, shown by dry runs and sent to W&B.

A name is a secret's if its words say so: HF_TOKEN, hf_token, WANDB_API_KEY, PGPASSWORD, GITHUB_PAT, secretKey. Not
secrets are TOKENIZERS_PARALLELISM, eod_token, which is a token of a vocabulary, sort_key, and HF_TOKEN_PATH, which only
names a file. A URL is secret in part: its password, and the parameters of its query that sign or authorize it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
# The words of a name: HF_TOKEN is hf and token, apiKey is api and key.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = {"apikey", "credential", "credentials", "passphrase", "passwd", "password", "pat", "pwd", "secret"}
_SECRET_ENDINGS = ("password", "passwd", "passphrase", "secret")  # PGPASSWORD is one word
# Secret if written like an environment variable, wherever in the name.
_SECRET_WORDS_OF_ENVIRONMENT = {"cookie", "dsn", "jwt", "key", "token"}
# Words before "key" in any other name, and before "token" if the token is one of a vocabulary or a count.
_SECRET_KEYS = {"access", "account", "api", "auth", "encryption", "private", "secret", "shared", "signing", "ssh"}
_VOCABULARY_TOKENS = {
    "added", "begin", "bos", "cls", "control", "document", "end", "eod", "eos", "eot", "first", "image", "last", "mask",
    "new", "next", "num", "pad", "per", "sep", "special", "start", "unk",
}  # fmt: skip
_LOCATION_WORDS = {"path", "file", "dir", "folder"}
_NOT_SECRET = {"PWD", "OLDPWD", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_AUTH_SOCK"}
_SECRET_NAMES = {"AZURE_STORAGE_CONNECTION_STRING", "DOCKER_AUTH_CONFIG"}
# NAME=value in a shell line or an option: up to the closing quote, or up to a blank or comma. A value that the shell
# substitutes ($HF_TOKEN, "$(cat file)") is not a secret; in single quotes nothing is substituted.
_ASSIGNMENT = re.compile(r"""([A-Za-z][A-Za-z0-9_-]*)=(?:(')[^']+|(")(?!\$)[^"]+|(?!['"$])[^\s'",]+)""")
# The user and the password of a URL, or the user alone of a web address, who may be a token. The password may contain
# "@", but no "/", and is no secret if the shell substitutes it.
_USER = re.compile(r"(?<=://)[^\s/?#'\"@]*:(?!\$)[^\s/?#'\"]*@|(?:(?<=http://)|(?<=https://))(?!\$)[^\s/?#'\":@]+@")
_QUERY = re.compile(r"([?&;])([A-Za-z0-9_.%~-]+)=([^&;#\s'\"$][^&;#\s'\"]*)")
# Parameters of signed URLs of S3, Google Cloud Storage, CloudFront, and (with "sig") Azure.
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|signature|awsaccesskeyid|googleaccessid|key-pair-id|policy|expires|sig|token|auth|key|jwt"
)
_AZURE = re.compile(r"s[vertkipy]|sip|spr|sks|skv|ske|skt|ss|srt|skoid|sktid|saoid|suoid|scid|sdd|si")


def is_secret(key: str) -> bool:
    """Return whether a key, or the last component of a dotted key, names a secret."""
    name = key.rpartition(".")[2]
    words = [word.lower() for word in _WORD.findall(name)]
    if name in _SECRET_NAMES:
        return True
    if not words or name in _NOT_SECRET or words[-1] in _LOCATION_WORDS:
        return False
    before, last = words[-2] if len(words) > 1 else "", words[-1]
    if before in _VOCABULARY_TOKENS and last == "token":
        return False
    if (_SECRET_WORDS - {"pat", "pwd"}) & set(words) or any(word.endswith(_SECRET_ENDINGS) for word in words):
        return True
    if name == name.upper():
        return bool(_SECRET_WORDS_OF_ENVIRONMENT & set(words)) or last in ("pat", "pwd", "auth")
    return (last == "token" and bool(before)) or (last == "key" and before in _SECRET_KEYS) or last in ("pat", "pwd")


def without_secrets(value: Any) -> Any:
    """Return a copy of nested mappings and lists without secret keys and with secrets in text masked."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [without_secrets(v) for v in value]
    return mask_secrets(value) if isinstance(value, str) else value


def mask_secrets(text: str) -> str:
    """Return the text with the values of secrets masked: "export HF_TOKEN=hf_abc" -> "export HF_TOKEN=***"."""
    masked = _ASSIGNMENT.sub(lambda m: f"{m[1]}={m[2] or m[3] or ''}{MASK}" if is_secret(m[1]) else m[0], text)
    return redact_urls(masked)


def redact_urls(text: str) -> str:
    """Return a text with the passwords and signatures of the URLs in it masked.

    `https://me:pw@host/x?sig=abc&part=2` becomes `https://***@host/x?sig=***&part=2`.
    """
    if "://" not in text:
        return text
    text = _USER.sub(f"{MASK}@", text)
    return re.sub(r"://[^\s'\"]+", lambda url: _QUERY.sub(_mask_parameter, url[0]), text) if "=" in text else text


def _mask_parameter(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={MASK}" if signs_url(found[2], azure=False) else found[0]


def signs_url(parameter: str, azure: bool) -> bool:
    """Return whether a parameter of a URL's query is part of its signature or authorizes in another way.

    Args:
        parameter: Name of the parameter, for example "X-Amz-Signature" or "sig".
        azure: Whether the query has the signature of Azure, which consists of more parameters.
    """
    name = unquote(parameter)
    return bool(_SIGNATURE.fullmatch(name.lower()) or is_secret(name) or (azure and _AZURE.fullmatch(name.lower())))


def split_url_secrets(url: str) -> tuple[str, str, str]:
    """Split a URL into its public part, its user and password, and the part of its query that authorizes.

    The public part identifies the content: it stays the same when the URL is signed again.

    Returns:
        The URL without both, "user:password" or "", and "name=value&name=value" or "".
    """
    user = found[0][:-1] if (found := _USER.search(url)) else ""
    public = _USER.sub("", url)
    address, mark, query = public.partition("?")
    query, hash_mark, fragment = query.partition("#")
    parameters = query.split("&") if mark else []
    azure = any(word.startswith("sig=") for word in parameters)
    secret = [word for word in parameters if signs_url(word.partition("=")[0], azure)]
    kept = "&".join(word for word in parameters if word not in secret)
    return f"{address}{'?' * bool(kept)}{kept}{hash_mark}{fragment}", user, "&".join(secret)


def secret_problems(env: Mapping[str, Any], lines: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one message for each secret in a cluster profile.

    Args:
        env: The environment variables of `cluster.env`.
        lines: Shell lines and command-line options by their configuration key.
    """
    named = [
        f"cluster.env.{key}"
        for key, value in env.items()
        if value and (is_secret(key) or redact_urls(str(value)) != str(value))
    ]
    named += [
        f"{key} ({match[1]})"
        for key, texts in lines.items()
        for text in texts
        for match in _ASSIGNMENT.finditer(text)
        if is_secret(match[1])
    ]
    named += [
        f"{key} (a URL with a password)" for key, texts in lines.items() for text in texts if redact_urls(text) != text
    ]
    return [
        f"{name}: a secret in a configuration would be saved in the run folder, readable by others. Remove it and "
        f"export it in the shell that starts nano3 (jobs inherit it), or log in once (wandb login, hf auth login)."
        for name in named
    ]
