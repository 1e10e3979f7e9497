"""The fields of Megatron-Bridge's ConfigContainer and their types, from the dataclasses or from a recording of them.

Megatron-Bridge can only be imported where its CUDA extensions are installed, so a login node cannot inspect its
dataclasses. `record_schema` runs `extract` once on a machine with Megatron-Bridge, and nano3 ships the result as JSON
(`load_bundled`). The training machine runs `extract` on the live container and repeats the same checks.
"""

import dataclasses
import enum
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nano3.utils.errors import did_you_mean
from nano3.utils.files import read_json
from nano3.utils.provenance import installed_versions

SCHEMA_FILE = Path(__file__).parent / "schemas" / "megatron_bridge.json"
_LIBRARY, _PERFORMANCE = "megatron.bridge.recipes.", "megatron.bridge.perf_recipes."
# GPUs of a performance recipe -> the precisions that there are for them. There are none of Lightning for VR200.
_PERFORMANCE_GPUS = {
    "16gpu_h100": ("bf16", "fp8cs"),
    **{f"8gpu_{kind}": ("bf16", "fp8mx", "nvfp4") for kind in ("b200", "b300", "gb200", "gb300", "vr200")},
}
PERFORMANCE_RECIPES = tuple(
    f"{_PERFORMANCE}nemotronh.{model}_pretrain_{gpus}_{precision}_config"
    for model in ("nemotron_3_nano", "nemotron_3_5_lightning")
    for gpus, precisions in _PERFORMANCE_GPUS.items()
    for precision in precisions
    if (model, gpus) != ("nemotron_3_5_lightning", "8gpu_vr200")
)
RECIPES = (
    f"{_LIBRARY}nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config",
    f"{_LIBRARY}qwen.qwen3.qwen3_8b_pretrain_config",
    f"{_LIBRARY}nemotronh.nemotron_3_nano.nemotron_3_5_lightning_pretrain_config",
    f"{_LIBRARY}nemotronh.nemotron_3_nano_4b.nemotron_3_nano_4b_pretrain_config",
    *PERFORMANCE_RECIPES,
)
# The image of NVIDIA's registry that ships the recorded Megatron-Bridge. The release notes of Megatron-Bridge name it:
# 0.6 belongs to NeMo Framework 26.08.
IMAGE = "nvcr.io/nvidia/nemo:26.08"
_PLAIN = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    type(None): "null",
    list: "list",
    tuple: "list",
    dict: "dict",
}
DTYPES = {
    "float32": "float32", "fp32": "float32", "float": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "half": "float16", "uint8": "uint8", "fp8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """The values that one configuration field accepts.

    `kinds` are names of types, such as "int" or "null"; empty accepts anything, because the annotation does not say.
    `choices` are the names of an enumeration or of dtypes. `section` is the class of a nested dataclass.
    """

    kinds: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    section: str | None = None

    def problem(self, value: Any) -> str | None:
        """Return why `value` does not fit, or None."""
        if not self.kinds:
            return None
        if isinstance(value, str) and self.choices and "str" not in self.kinds:
            known = {c.lower() for c in self.choices}
            if value.lower() in known or ("dtype" in self.kinds and dtype_name(value)):
                return None
            return f"{value!r} is not allowed.{did_you_mean(value, self.choices)}"
        if any(_is_kind(value, kind) for kind in self.kinds) or (value is None and self.choices):
            return None  # null unsets a choice even if the annotation lacks None
        return f"{value!r} is a {_kind_of(value)}; expected {' or '.join(self.kinds)}."


@dataclass(frozen=True)
class Schema:
    """The fields of the container that one recipe returns, and the recipe's values.

    `container` maps sections to fields, `classes` maps dataclass names to their fields, `values` holds the plain data
    of the recipe. `live` means extracted from the installed Megatron-Bridge.
    """

    recipe: str
    versions: Mapping[str, str]
    container: Mapping[str, Field]
    classes: Mapping[str, Mapping[str, Field]]
    values: Mapping[str, Any] = field(default_factory=dict)
    live: bool = False

    def lookup(self, path: str) -> tuple[Field | None, str | None]:
        """Return the field at a dotted path such as `ddp.bucket_size`, or None and what is wrong with the path."""
        fields: Mapping[str, Field] = self.container
        where, found = "", Field()
        for name in path.split("."):
            if name not in fields:
                parent = f"section {where!r}" if where else "Megatron-Bridge's ConfigContainer"
                return None, f"there is no {name!r} in {parent}.{did_you_mean(name, list(fields))}"
            found = fields[name]
            where = f"{where}.{name}" if where else name
            fields = self.classes.get(found.section or "", {})
            if not fields:
                rest = path.removeprefix(where)
                inside = rest and "dict" not in found.kinds and found.kinds
                return (None, f"{where!r} has no fields of its own.") if inside else (found, None)
        return found, None

    def value(self, path: str, default: Any = None) -> Any:
        """Return the recipe's value at a dotted path; `default` if it is unset or not plain data."""
        node: Any = self.values
        for name in path.split("."):
            if not isinstance(node, Mapping) or name not in node:
                return default
            node = node[name]
        return node


def dtype_name(text: str) -> str | None:
    """Return the torch name of a dtype, `bfloat16` for `bf16` or `torch.bfloat16`; None for other text."""
    return DTYPES.get(text.lower().removeprefix("torch."))


def _kind_of(value: Any) -> str:
    return _PLAIN.get(type(value), type(value).__name__)


def _is_kind(value: Any, kind: str) -> bool:
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "null":
            return value is None
        case "list":
            return isinstance(value, list | tuple)
        case "dict" | "section":
            return isinstance(value, Mapping)
        case "dtype":
            return isinstance(value, str) and dtype_name(value) is not None
    return False


def field_from_annotation(annotation: Any) -> Field:
    """Return the field of a type annotation. Callables and classes of the library accept anything."""
    if annotation is Any:
        return Field()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [field_from_annotation(a) for a in typing.get_args(annotation)]
        if any(not p.kinds for p in parts):
            return Field(section=next((p.section for p in parts if p.section), None))
        kinds = dict.fromkeys(k for p in parts for k in p.kinds)
        choices = dict.fromkeys(c for p in parts for c in p.choices)
        return Field(tuple(kinds), tuple(choices), next((p.section for p in parts if p.section), None))
    if origin is typing.Literal:
        options = typing.get_args(annotation)
        literal = tuple(dict.fromkeys("choice" if isinstance(o, str) else _kind_of(o) for o in options))
        return Field(literal, tuple(o for o in options if isinstance(o, str)))
    if origin is not None:
        annotation = origin
    if isinstance(annotation, type):
        if annotation in _PLAIN:
            return Field((_PLAIN[annotation],))
        if issubclass(annotation, enum.Enum):
            return Field(("choice",), tuple(m.name for m in annotation))
        if dataclasses.is_dataclass(annotation):
            return Field(("section",), (), annotation.__name__)
        if annotation.__name__ == "dtype":
            return Field(("dtype",), ("float32", "bfloat16", "float16", "uint8"))
    return Field()


def _fields_of(cls: type) -> dict[str, Field]:
    """Return the public fields of a dataclass. An annotation that cannot be resolved accepts anything."""
    found = {}
    for f in dataclasses.fields(cls):
        if f.name.startswith("_"):
            continue
        owner = next(c for c in cls.__mro__ if f.name in inspect.get_annotations(c))
        try:
            hint = typing.get_type_hints(owner)[f.name]
        except (NameError, TypeError, AttributeError):
            hint = Any if isinstance(f.type, str) else f.type
        described = field_from_annotation(hint)
        if described.kinds and f.default is None and "null" not in described.kinds:
            # Megatron's dataclasses often declare `x: int = None`.
            described = dataclasses.replace(described, kinds=(*described.kinds, "null"))
        found[f.name] = described
    return found


def _plain(value: Any) -> Any:
    """Return a configuration value as JSON data; functions and other objects become their names."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, str):
        return value.removeprefix(f"{Path.cwd()}/")  # default folders are below the current one
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if callable(value):
        return getattr(value, "__name__", str(value))
    return str(value)


def _classes_within(value: Any, classes: dict[str, dict[str, Field]]) -> None:
    """Add the fields of the dataclass of `value` and of the dataclasses nested in it to `classes`."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    classes[type(value).__name__] = _fields_of(type(value))
    for f in dataclasses.fields(value):
        _classes_within(getattr(value, f.name, None), classes)


def _declared_classes(annotation: Any) -> Iterator[type]:
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            yield part


def extract(container: Any, recipe: str) -> Schema:
    """Return the schema of a live ConfigContainer.

    Args:
        container: A megatron.bridge ConfigContainer.
        recipe: Dotted name of the recipe that returned it.
    """
    hints = typing.get_type_hints(type(container))
    classes: dict[str, dict[str, Field]] = {}
    sections: dict[str, Field] = {}
    values: dict[str, Any] = {}
    for f in dataclasses.fields(container):
        if f.name.startswith("_"):
            continue
        value = getattr(container, f.name)
        described = field_from_annotation(hints[f.name])
        if dataclasses.is_dataclass(value):
            _classes_within(value, classes)
            values[f.name] = {
                g.name: _plain(getattr(value, g.name, None)) for g in dataclasses.fields(value) if g.name[0] != "_"
            }
            described = Field(described.kinds, described.choices, type(value).__name__)
        else:
            values[f.name] = _plain(value)
            for cls in _declared_classes(hints[f.name]):
                classes.setdefault(cls.__name__, _fields_of(cls))
        sections[f.name] = described
    return Schema(recipe, versions(), sections, classes, values, live=True)


def versions() -> dict[str, str]:
    """Return the installed versions of Megatron-Bridge and Megatron-Core; a source folder on the path has none."""
    return installed_versions(("megatron-bridge", "megatron-core"))


def version_difference(installed: Mapping[str, str], recorded: Mapping[str, str]) -> str:
    """Return how the installed versions differ from the recorded ones, "" if they are the same.

    Args:
        installed: Versions by package, of `versions()`.
        recorded: Versions by package, of `load_bundled`.
    """
    found = {name: installed.get(name, "of an unknown version") for name in recorded}
    pairs = [
        f"{name} {found[name]}, recorded {version}" for name, version in recorded.items() if found[name] != version
    ]
    return "; ".join(pairs)


def load_bundled(recipe: str) -> Schema:
    """Return the recorded schema of `recipe`; for another recipe the fields alone, with any field in `model`."""
    raw = read_json(SCHEMA_FILE)
    known = raw["recipes"]
    entry = _whole_entry(known, recipe if recipe in known else next(iter(known)))
    classes = {name: {k: _field_from_json(v) for k, v in fields.items()} for name, fields in raw["classes"].items()}
    container = {name: _field_from_json(v) for name, v in entry["container"].items()}
    if recipe not in known:
        container["model"] = Field()
    return Schema(recipe, raw["versions"], container, classes, entry["values"] if recipe in known else {})


def _whole_entry(known: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Return container and values of a recorded recipe, which may be recorded as the difference to another one.

    Args:
        known: The recorded recipes.
        recipe: One of them.
    """
    entry: dict[str, Any] = known[recipe]
    if "like" not in entry:
        return entry
    base = known[entry["like"]]
    changed = {name: {**base["values"][name], **fields} for name, fields in entry["changes"].items()}
    return {
        "container": base["container"] | entry["container"],
        "values": {**base["values"], **entry["values"], **changed},
    }


def is_bundled(recipe: str) -> bool:
    """Return whether the recording has the values of this recipe."""
    return recipe in read_json(SCHEMA_FILE)["recipes"]


def _field_from_json(raw: Mapping[str, Any]) -> Field:
    return Field(tuple(raw.get("kinds", ())), tuple(raw.get("choices", ())), raw.get("section"))
