"""What can be started before the configuration is composed: loading the tokenizer takes longer than that."""

from collections.abc import Sequence
from pathlib import Path

from nano3.data.build.worker_client import WorkerServerClient

# Words that may mean that nothing is prepared here, or not with the fast engine.
REFUSED = ("cluster", "dry_run", "engine", "then")


def preload_tokenizer(words: Sequence[str]) -> None:
    """Start loading the tokenizer that a command line names, if it is likely to be wanted."""
    if file := wanted_tokenizer(words):
        WorkerServerClient.begin(file)


def wanted_tokenizer(words: Sequence[str]) -> str:
    """The tokenizer.json that a run with these words will load; "" when that cannot be told from them.

    It can when each word is KEY=VALUE, `tokenizer_model` is a file or folder here, and `output_dir` holds no finished
    data. A guess that turns out wrong costs a second of one core.
    """
    values = dict(word.lstrip("+").partition("=")[::2] for word in words)
    plain = all("=" in word and word.lstrip("+")[0].isalpha() for word in words)
    if not plain or any(key.partition(".")[0] in REFUSED for key in values):
        return ""
    output, model = values.get("output_dir"), values.get("tokenizer_model")
    if not output or not model:
        return ""
    if values.get("force") != "true" and Path(output, "manifest.json").exists():
        return ""
    path = Path(model).expanduser()
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return str(file.resolve())
    return ""
