"""Passwords and signatures in the URLs of datasets: used to open files, but stored and shown nowhere.

`take_credentials` replaces a URL by its public part, which goes into plan, manifest and messages, and which identifies
the data: it stays the same when the URL is signed again. The rest is kept in an environment variable, as HF_TOKEN is,
because worker processes and the jobs of Slurm inherit it. Opening a file puts both together again.
"""

import json
import os

import msgspec

from nano3.utils.errors import UserError
from nano3.utils.redaction import split_url_secrets

VARIABLE = "NANO3_URL_CREDENTIALS"  # JSON: {public URL: [user and password, signing part of the query]}


def take_credentials(url: str) -> str:
    """Return the public part of a URL, and keep the rest for `with_credentials`."""
    public, user, query = split_url_secrets(url) if "://" in url else (url, "", "")
    if user or query:
        os.environ[VARIABLE] = json.dumps({**_kept(), public: (user, query)})
    return public


def has_credentials() -> bool:
    """Return whether any URL has credentials."""
    return bool(os.environ.get(VARIABLE))


def with_credentials(url: str) -> str:
    """Return a URL with its credentials: of this URL, or else the user of a URL beside or above it."""
    if not has_credentials():
        return url
    kept = _kept()
    if url in kept:
        user, query = kept[url]
        address, mark, rest = url.partition("?")
        return _with_user(f"{address}?{rest}&{query}" if mark and query else f"{url}{'?' * bool(query)}{query}", user)
    for public, (user, _) in kept.items():
        folder = public.partition("?")[0].partition("*")[0].rpartition("/")[0]
        if user and (f"{url}/".startswith((f"{folder}/", f"{public.rstrip('/')}/"))):
            return _with_user(url, user)
    return url


def _with_user(url: str, user: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{user}@{rest}" if user else url


def _kept() -> dict[str, tuple[str, str]]:
    """Return what the variable holds.

    Raises:
        UserError: It does not hold what `take_credentials` writes.
    """
    try:
        return msgspec.json.decode(os.environ.get(VARIABLE) or "{}", type=dict[str, tuple[str, str]])
    except msgspec.MsgspecError as error:
        raise UserError(
            f'{VARIABLE}: {error}. It holds {{"URL": ["user:password", "query"]}}; unset it, or give the credentials '
            "in the path of the dataset."
        ) from error
