"""What there is to configure: the folder conf/, its groups and their members, and the keys of both applications."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

from nano3.config import DataPrepConfig, PretrainConfig

SCHEMAS: dict[str, type] = {"pretrain": PretrainConfig, "data_prep": DataPrepConfig}
GROUPS = ("model", "data_blend", "train", "cluster", "experiment")
OPEN = ("megatron.", "cluster.env.")  # dictionaries that take any key
# Hydra's flags whose next word is theirs.
TAKES_A_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")
# All of Hydra's own, and nano3's.
FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
)  # fmt: skip
# Keys of a blend that a preparation alone reads; in nano3.pretrain only its name means something.
OF_PREPARATION = ("datasets", "tokenizer_model", "num_shards", "valid_fraction", "test_fraction")


def conf_dir() -> str:
    """The folder that holds pretrain.yaml: beside the package in a checkout, inside it in an installed wheel."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here.parent / "conf", here / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"conf/ is neither beside nor inside {here}: the installation is incomplete")


def user_conf() -> str | None:
    """The user's own folder of members, $NANO3_CONF; None when it is not set."""
    folder = os.environ.get("NANO3_CONF")
    return str(Path(folder).expanduser().absolute()) if folder else None


def given_conf(argv: Sequence[str]) -> list[str]:
    """The folder of members that the command line names: `--config-dir DIR` or `--config-dir=DIR`."""
    given = [following for word, following in pairwise(argv) if word in ("--config-dir", "-cd")]
    given += [word.partition("=")[2] for word in argv if word.startswith("--config-dir=")]
    return [str(Path(folder).absolute()) for folder in given]


def groups(app: str) -> list[str]:
    """The groups that application `app` has."""
    return [g for g in GROUPS if g in {f.name for f in fields(SCHEMAS[app])} or (g, app) == ("experiment", "pretrain")]


def members(group: str, argv: Sequence[str] = ()) -> list[str]:
    """The names that `group=NAME` accepts: conf/, the user's folder $NANO3_CONF, and that of `--config-dir`."""
    roots = [conf_dir(), *filter(None, [user_conf()]), *given_conf(argv)]
    return sorted({path.stem for root in roots for path in (Path(root) / group).glob("*.yaml")})


def schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, groups and leaves."""
    for f in fields(schema):
        yield prefix + f.name
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from schema_keys(f.type, f"{prefix}{f.name}.")
