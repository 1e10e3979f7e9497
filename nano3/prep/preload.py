"""Start loading the tokenizer before the configuration is composed, because loading takes longer than composing."""

from pathlib import Path

from nano3.data.build.worker_client import WorkerServerClient
from nano3.utils.command_line import CommandLine
from nano3.utils.files import expand_user

# Keys after which this process may prepare nothing, or may not use the fast engine.
NO_PRELOAD_KEYS = ("cluster", "dry_run", "engine", "then")


def preload_tokenizer(line: CommandLine) -> None:
    """Start loading the tokenizer that a command line names, if the preparation will probably need it."""
    if file := find_tokenizer_file(line):
        WorkerServerClient.preload(file)


def find_tokenizer_file(line: CommandLine) -> str:
    """Return the path of the tokenizer.json that a command line will load, or "" if it is uncertain.

    It is certain enough if each word is KEY=VALUE, `tokenizer_model` is a local file or folder, and `output_dir` holds
    no finished data. A wrong guess costs one core one second.

    Args:
        line: The command line.
    """
    values = line.values
    plain = all(o.value is not None and "~" not in o.prefix and o.key[:1].isalpha() for o in line.overrides)
    if not plain or line.flags or line.other or any(key.partition(".")[0] in NO_PRELOAD_KEYS for key in values):
        return ""
    output, model = values.get("output_dir"), values.get("tokenizer_model")
    if not output or not model:
        return ""
    path = expand_user(model)
    try:
        if values.get("force") != "true" and Path(output, "manifest.json").exists():
            return ""
        for file in (path, path / "tokenizer.json"):
            if file.is_file():
                return str(file.resolve())
    except OSError:  # reported when the file is read
        pass
    return ""
