"""Record the fields and values of the recipes in `RECIPES` in schemas/megatron_bridge.json.

    python -m nano3.training.megatron.record_schema

Run it on a machine with Megatron-Bridge after an upgrade, and commit the file. Each class and each section of a recipe
is one line, so the diff between two releases is readable.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nano3.training.megatron.recipe import call_recipe, offline_hub
from nano3.training.megatron.schema import RECIPES, SCHEMA_FILE, Field, Schema, extract
from nano3.utils.files import write_text


def main() -> int:
    """Write the recording of the installed Megatron-Bridge and return the exit code 0."""
    with tempfile.TemporaryDirectory() as scratch:
        for target in RECIPES:
            offline_hub(target, Path(scratch))
        write_text(SCHEMA_FILE, schemas_to_json([extract(call_recipe(target), target) for target in RECIPES]))
    return 0


def schemas_to_json(schemas: list[Schema]) -> str:
    """Return the text of the recording that `schema.load_bundled` reads.

    Args:
        schemas: One schema per recipe, all extracted from the same installation.
    """
    classes = {name: fields for s in schemas for name, fields in s.classes.items()}
    whole: dict[str | None, Schema] = {}  # the first recipe with each class of model
    entries = []
    for s in schemas:
        base = whole.setdefault(s.container.get("model", Field()).section, s)
        entries.append((s.recipe, _whole_recipe(s) if s is base else json.dumps(_difference(s, base))))
    recipes = _members(entries, 2)
    classes_text = _one_per_line(
        {name: _fields_to_dict(dict(sorted(fields.items()))) for name, fields in sorted(classes.items())}, 2
    )
    top = (("versions", json.dumps(dict(schemas[0].versions))), ("recipes", recipes), ("classes", classes_text))
    return _members(top, 1) + "\n"


def _whole_recipe(schema: Schema) -> str:
    parts = (
        ("container", _one_per_line(_fields_to_dict(schema.container), 4)),
        ("values", _one_per_line(schema.values, 4)),
    )
    return _members(parts, 3)


def _difference(schema: Schema, base: Schema) -> dict[str, Any]:
    """Return what differs from `base`: sections of the container, whole values, and fields of values.

    Args:
        schema: The schema of a recipe.
        base: The schema of a recipe with the same sections.
    """
    values: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for name, value in schema.values.items():
        other = base.values[name]
        if isinstance(value, dict) and isinstance(other, dict) and value.keys() >= other.keys():
            fields = {key: value[key] for key in sorted(value) if key not in other or value[key] != other[key]}
            changes |= {name: fields} if fields else {}
        elif value != other:
            values[name] = value
    container = {k: v for k, v in _fields_to_dict(schema.container).items() if schema.container[k] != base.container[k]}
    return {"like": base.recipe, "container": container, "values": values, "changes": changes}


def _fields_to_dict(fields: Mapping[str, Field]) -> dict[str, dict[str, Any]]:
    return {name: {k: v for k, v in asdict(field).items() if v} for name, field in fields.items()}


def _one_per_line(values: Mapping[str, Any], indent: int) -> str:
    return _members(((name, json.dumps(value)) for name, value in values.items()), indent)


def _members(members: Iterable[tuple[str, str]], indent: int) -> str:
    """Return a JSON object with one member per line; the values are JSON text already."""
    lines = [f"{' ' * indent}{json.dumps(name)}: {text}" for name, text in members]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * (indent - 1)}}}" if lines else "{}"


if __name__ == "__main__":
    sys.exit(main())
