"""Group `data_blend`: which text is mixed, in which proportion. Plain dataclasses; sources are read by `nano3.data`."""

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nano3.utils.errors import UserError, did_you_mean

MISSING: Any = "???"  # omegaconf's own; importing that takes a tenth of a second, which worker processes can do without


# What to do about another key of a blend file.
ELSEWHERE = "A blend file has `datasets` alone; options are given on the command line: {key}=..."


@dataclass
class SourceConfig:
    """One dataset of a blend, as written in a blend file or in `conf/data_blend/*.yaml`."""

    # Unique name; names the source in receipts, accounting and `valid_loss/<name>`.
    name: str = MISSING
    # hf://org/name, a file, a folder (searched recursively), a glob, or any fsspec URL (s3://, gs://, https://).
    path: str = MISSING
    # Relative weight in the blend; any positive number, normalised over the datasets.
    weight: float = 1.0
    # hf:// only: which split of the dataset on the hub.
    split: str = "train"
    # hf:// only: which configuration ("subset") of the dataset on the hub.
    subset: str | None = None
    # hf:// only: branch, tag or commit; the commit it resolves to is pinned in the manifest.
    revision: str | None = None
    # Column (parquet, Arrow) or key (jsonl) that holds the document's text. Plain .txt files are one document each.
    text_field: str = "text"


@dataclass
class BlendConfig:
    """A named blend."""

    # Short name; also the alias under which the prepared data is registered (DataBlendsArtifact-pretrain:<name>).
    name: str = MISSING
    # Each entry has the keys of SourceConfig; a list of plain dicts so that entries can be given on the command line.
    datasets: list[Any] = field(default_factory=list)
    # What data preparation takes for this blend unless its own keys of the same names say otherwise; see PrepOptions.
    tokenizer_model: str = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    # As PrepOptions.num_shards.
    num_shards: int = 128
    # As PrepOptions.valid_fraction.
    valid_fraction: float = 0.005
    # As PrepOptions.test_fraction.
    test_fraction: float = 0.005


def parse_datasets(entries: list[Any], where: str) -> list[SourceConfig]:
    """Turn the `datasets` of a blend into `SourceConfig`s. `where` names the blend in messages.

    Raises `UserError` with every problem of every entry: unknown, missing and mistyped keys, weights that are
    no positive number, names used twice.
    """
    known = {f.name: f for f in fields(SourceConfig)}
    problems, sources = [], []
    if not entries:
        problems.append(f"{where}: no datasets; give at least one: {{name, path, weight}}")
    for number, entry in enumerate(entries, 1):
        at = f"{where}, dataset {number}"
        if not isinstance(entry, dict):
            problems.append(f"{at}: expected keys and values, found {entry!r}")
            continue
        at += f" ({entry['name']})" if isinstance(entry.get("name"), str) else ""
        found = [f"{at}: no key {key!r}.{did_you_mean(str(key), list(known))}" for key in entry if key not in known]
        found += [f"{at}: {key} is missing" for key in ("name", "path") if not entry.get(key)]
        found += [
            f"{at}: {key} must be text, found {value!r}; write it in quotes"
            for key, value in entry.items()
            if key in known and key != "weight" and not isinstance(value, str)
            if value is not None or known[key].default not in (None, MISSING)  # a missing one is told above
        ]
        if isinstance(field := entry.get("text_field"), str) and re.search(r'["\\\x00-\x1f]', field):
            found.append(f"{at}: text_field must not hold quotes, backslashes or control characters, found {field!r}")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            found.append(f"{at}: weight must be a number above 0, found {weight!r}")
        problems += found
        if not found:
            sources.append(SourceConfig(**{**entry, "weight": float(weight)}))
    names = [s.name for s in sources]
    problems += [
        f"{where}: the name {n!r} is used {names.count(n)} times" for n in sorted(set(names)) if names.count(n) > 1
    ]
    if problems:
        raise UserError(problems)
    return sources


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; of a key given twice one would be lost."""
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{', '.join(map(repr, twice))} is given more than once in one object")
    return dict(pairs)


def read_blend_file(path: Path) -> list[SourceConfig]:
    """Read a blend file: `{"datasets": [{"name", "path", "weight", ...}, ...]}`.

    Raises `UserError` with everything that is wrong with it.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=each_once)
    except FileNotFoundError:
        raise UserError(f"blend_path={path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"blend_path={path}: this is a folder; a blend file is JSON with a list `datasets`") from None
    except OSError as error:
        raise UserError(f"blend_path={path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"blend_path={path}: not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f'blend_path={path}: expected {{"datasets": [{{"name", "path", "weight"}}, ...]}}')
    problems = [f"{path}: no key {key!r}. {ELSEWHERE.format(key=key)}" for key in content if key != "datasets"]
    try:
        sources = parse_datasets(content["datasets"], str(path))
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    return sources
