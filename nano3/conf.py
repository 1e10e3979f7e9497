"""What there is to configure: the folder conf/, its groups and their members, and the keys of both applications."""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

from nano3.config import DataPrepConfig, PretrainConfig

SCHEMAS: dict[str, type] = {"pretrain": PretrainConfig, "data_prep": DataPrepConfig}
GROUPS = ("model", "data_blend", "train", "cluster", "experiment")
OPEN = ("megatron.", "cluster.env.")  # dictionaries that take any key
# Keys of a blend that a preparation alone reads; in nano3.pretrain only its name means something.
OF_PREPARATION = ("datasets", "tokenizer_model", "num_shards", "valid_fraction", "test_fraction")


def conf_dir() -> str:
    """The folder that holds pretrain.yaml: beside the package in a checkout, inside it in an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "conf", here / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"conf/ is neither beside nor inside {here}: the installation is incomplete")


def user_conf() -> str | None:
    """The user's own folder of members, $NANO3_CONF; None when it is not set."""
    folder = os.environ.get("NANO3_CONF")
    return str(Path(folder).expanduser().absolute()) if folder else None


def groups(app: str) -> list[str]:
    """The groups that application `app` has."""
    return [g for g in GROUPS if g in {f.name for f in fields(SCHEMAS[app])} or (g, app) == ("experiment", "pretrain")]


def members(group: str) -> list[str]:
    """The names that `group=NAME` accepts: conf/ and, when set, the user's folder $NANO3_CONF."""
    roots = [conf_dir(), *filter(None, [user_conf()])]
    return sorted({path.stem for root in roots for path in (Path(root) / group).glob("*.yaml")})


def schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, groups and leaves."""
    for f in fields(schema):
        yield prefix + f.name
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from schema_keys(f.type, f"{prefix}{f.name}.")
