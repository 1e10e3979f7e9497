"""Group `data_blend`: the datasets of a blend and their weights."""

import json
import re
import string
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nano3.utils.disk_errors import reason
from nano3.utils.errors import UserError, did_you_mean

# Equal to omegaconf.MISSING. Importing omegaconf takes 0.1 s, which worker processes avoid.
MISSING: Any = "???"
# What a run reads of a dataset, besides its weight. Prepared data carries them; its tokens do not depend on them.
BUDGETS = ("epochs", "tokens", "max_epochs")
BLEND_SHAPE = 'A blend file is JSON such as {"datasets": [{"name": "web", "path": "web.jsonl", "weight": 1}]}.'


@dataclass
class SourceConfig:
    """One dataset of a blend, from a blend file or `conf/data_blend/*.yaml`."""

    # Unique name of the dataset, used in receipts, token counts and the metric valid_loss/<name>.
    name: str = MISSING
    # Where the data is: hf://org/name, optionally followed by @revision and /path, a file, a folder (searched
    # recursively), a glob pattern, or any fsspec URL (s3://, gs://, https://).
    path: str = MISSING
    # Relative weight in the blend; any positive number. Weights are normalized over all datasets.
    weight: float = 1.0
    # Instead of a weight: passes over the train split in a run, as 2.5. Needs train.sample_order=nano3.
    epochs: float | None = None
    # Instead of a weight: tokens of the train split in a run, as 3e11. Needs train.sample_order=nano3.
    tokens: float | None = None
    # Most passes over the train split in a run. Needs train.sample_order=nano3.
    max_epochs: float | None = None
    # Split of a dataset on the Hugging Face hub, or of a DatasetDict that save_to_disk wrote.
    split: str = "train"
    # Configuration ("subset") of the dataset on the Hugging Face hub (hf:// only); null uses the dataset's default.
    subset: str | None = None
    # Branch, tag or commit of the dataset on the Hugging Face hub (hf:// only); null uses the default branch. The
    # resolved commit is recorded in the manifest.
    revision: str | None = None
    # Parquet or Arrow column, or JSON key, that holds the document text; a path such as doc.text into structs or nested
    # objects; or a template of several, such as '{title}: {body}', with literal braces doubled. A .txt file is one
    # document and has no field.
    text_field: str = "text"
    # Joins the strings if the text is a list of strings; null reports lists as bad rows.
    text_separator: str | None = None

    @property
    def budget(self) -> dict[str, float]:
        """The values among epochs, tokens and max_epochs that are set."""
        return {key: float(value) for key in BUDGETS if (value := getattr(self, key)) is not None}


@dataclass
class BlendConfig:
    """A named blend of datasets. The other values are defaults for the options of the same names in PrepOptions."""

    # Short name of the blend, and the alias under which the prepared data is registered
    # (DataBlendsArtifact-pretrain:<name>).
    name: str = MISSING
    # Datasets of the blend, each with the keys of SourceConfig: name, path, weight (or epochs, or tokens), max_epochs,
    # split, subset, revision, text_field, text_separator.
    datasets: list[Any] = field(default_factory=list)
    # max_epochs of the datasets that have none of their own.
    max_epochs: float | None = None
    # Default of tokenizer_model for this blend.
    tokenizer_model: str = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    # Default of num_shards for this blend.
    num_shards: int = 128
    # Default of valid_fraction for this blend.
    valid_fraction: float = 0.005
    # Default of test_fraction for this blend.
    test_fraction: float = 0.005


def parse_datasets(entries: list[Any], where: str, max_epochs: Any = None) -> list[SourceConfig]:
    """Check the `datasets` of a blend and return them as `SourceConfig`s.

    Args:
        entries: The list as read from JSON, YAML or the command line.
        where: Name of the blend in messages.
        max_epochs: `max_epochs` of the entries that have none.

    Raises:
        UserError: With every problem of every entry: unknown, missing and mistyped keys, weights and budgets that are
            not positive numbers, names used more than once.
    """
    problems = [f"{where}: {problem}" for problem in _number_problems({"max_epochs": max_epochs})]
    sources: list[SourceConfig] = []
    if not entries:
        problems.append(f"{where}: no datasets. Give at least one: {{name, path, weight}}")
    for number, entry in enumerate(entries, 1):
        label = f"{where}, dataset {number}"
        if not isinstance(entry, dict):
            problems.append(f"{label}: expected keys and values, found {entry!r}")
            continue
        label += f" ({entry['name']})" if isinstance(entry.get("name"), str) else ""
        if found := _entry_problems(entry):
            problems += [f"{label}: {problem}" for problem in found]
        else:
            numbers = {"max_epochs": max_epochs, **entry}
            numbers = {key: float(numbers[key]) for key in ("weight", *BUDGETS) if numbers.get(key) is not None}
            sources.append(SourceConfig(**{**entry, **numbers}))
    problems += [
        f"{where}: the name {name!r} is used {count} times. Give each dataset its own name."
        for name, count in sorted(Counter(s.name for s in sources).items())
        if count > 1
    ]
    if problems:
        raise UserError(problems)
    return sources


def _entry_problems(entry: dict[Any, Any]) -> list[str]:
    """Return one message for each problem of one entry of `datasets`."""
    known = {f.name: f for f in fields(SourceConfig)}
    found = [f"no key {key!r}.{did_you_mean(str(key), list(known))}" for key in entry if key not in known]
    found += [f"{key} is missing" for key in ("name", "path") if not entry.get(key)]
    found += [
        f"{key} must be text, found {value!r}; write it in quotes"
        for key, value in entry.items()
        if key in known and key not in ("weight", *BUDGETS) and not isinstance(value, str)
        if value is not None or known[key].default not in (None, MISSING)  # a missing name or path is reported above
    ]
    if isinstance(column := entry.get("text_field"), str):
        found += _text_field_problems(column)
    found += _number_problems({"weight": 1.0, **entry})
    if len(given := [key for key in ("weight", "epochs", "tokens") if entry.get(key) is not None]) > 1:
        found.append(f"give one of weight, epochs and tokens, not {' and '.join(given)}")
    return found


def _number_problems(values: dict[Any, Any]) -> list[str]:
    """Return one message for each weight or budget that is not a positive number; null is no budget."""
    return [
        f"{key} must be a number above 0, found {value!r}"
        for key, value in values.items()
        if key == "weight" or (key in BUDGETS and value is not None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf")
    ]


def _text_field_problems(text_field: str) -> list[str]:
    """Return one message for each problem of a column name or template."""
    names = [text_field]
    if "{" in text_field or "}" in text_field:
        try:
            parts = list(string.Formatter().parse(text_field))
        except ValueError as error:
            return [f"text_field={text_field!r} is no template: {error}. Write literal braces twice"]
        names = [name for _, name, _, _ in parts if name is not None]
        if not all(names) or not names or any(spec or conversion for *_, spec, conversion in parts):
            return [f"text_field={text_field!r} is no template: braces hold a field's name, without ! and :"]
    if any(re.search(r'["\\\x00-\x1f]', name) for name in names):
        return [f"text_field must not contain quotes, backslashes or control characters, found {text_field!r}"]
    return []


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raise ValueError if a key is given twice, since one value would be lost."""
    keys = [key for key, _ in pairs]
    if repeated := sorted(key for key, count in Counter(keys).items() if count > 1):
        raise ValueError(f"{', '.join(map(repr, repeated))} is given more than once in one object")
    return dict(pairs)


def read_blend_file(path: Path) -> list[SourceConfig]:
    """Read a blend file: `{"datasets": [{"name", "path", "weight", ...}, ...], "max_epochs": 4}`.

    Raises:
        UserError: With everything that is wrong with the file.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise UserError(f"blend_path={path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"blend_path={path}: this is a folder. {BLEND_SHAPE}") from None
    except OSError as error:
        raise UserError(f"blend_path={path}: cannot be read: {reason(error, path)}") from None
    except ValueError as error:
        raise UserError(f"blend_path={path}: not valid JSON: {error}. {BLEND_SHAPE}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"blend_path={path}: not a blend file. {BLEND_SHAPE}")
    problems = [
        f"{path}: no key {key!r}. A blend file has the keys `datasets` and `max_epochs`; set options on the command "
        f"line: {key}=..."
        for key in content
        if key not in ("datasets", "max_epochs")
    ]
    try:
        sources = parse_datasets(content["datasets"], str(path), content.get("max_epochs"))
    except UserError as error:
        raise UserError([*problems, *error.problems]) from None
    if problems:
        raise UserError(problems)
    return sources
