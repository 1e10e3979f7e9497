"""The recorded schema, fields from type annotations, and messages for values that do not fit."""

import dataclasses
import enum
import tomllib
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import NANO, QWEN, ROOT

from nano3.training.megatron.record_schema import schemas_to_json
from nano3.training.megatron.schema import (
    IMAGE,
    RECIPES,
    SCHEMA_FILE,
    Field,
    Schema,
    dtype_name,
    extract,
    field_from_annotation,
    is_bundled,
    load_bundled,
    version_difference,
)


class Color(enum.Enum):
    red = 1
    green = 2


@dataclasses.dataclass
class Inner:
    size: int = 3
    maybe: int = None  # type: ignore[assignment]
    color: Color = Color.red
    name: Optional[str] = None  # noqa: UP045
    hook: Any = None
    kind: Literal["a", "b"] = "a"
    _private: int = 0


@dataclasses.dataclass
class Container:
    inner: Inner = dataclasses.field(default_factory=Inner)
    unset: Inner | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: {"A": "1"})
    rate: float = 0.5


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        pytest.param(int, ("int",), id="int"),
        pytest.param(int | None, ("int", "null"), id="union"),
        pytest.param(Optional[float], ("float", "null"), id="optional"),  # noqa: UP045
        pytest.param(list[str], ("list",), id="list"),
        pytest.param(dict[str, int], ("dict",), id="dict"),
        pytest.param(Literal["x", "y"], ("choice",), id="literal"),
        pytest.param(Color, ("choice",), id="enum"),
        pytest.param(Inner, ("section",), id="dataclass"),
        pytest.param(Any, (), id="any"),
        pytest.param(object, (), id="unknown-class"),
        pytest.param(int | object, (), id="union-with-unknown"),
    ],
)
def test_annotations_become_kinds(annotation: Any, kinds: tuple[str, ...]) -> None:
    assert field_from_annotation(annotation).kinds == kinds


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        pytest.param(Field(("int",)), "abc", "'abc' is a str; expected int", id="text-for-int"),
        pytest.param(Field(("int",)), True, "True is a bool; expected int", id="bool-is-no-int"),
        pytest.param(Field(("int",)), 1.5, "1.5 is a float; expected int", id="float-is-no-int"),
        pytest.param(Field(("bool",)), 1, "1 is a int; expected bool", id="int-is-no-bool"),
        pytest.param(Field(("int", "null")), [1], "expected int or null", id="list-for-int"),
        pytest.param(Field(("choice",), ("full", "selective")), "ful", "Did you mean 'full'?", id="near-choice"),
        pytest.param(Field(("choice",), ("a", "b")), "zzz", "Allowed: a, b.", id="far-choice"),
        pytest.param(Field(("dtype",), ("float32", "bfloat16")), "bf17", "is not allowed", id="dtype"),
    ],
)
def test_a_wrong_value_is_explained(field: Field, value: Any, words: str) -> None:
    assert words in (field.problem(value) or "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(Field(("float",)), 3, id="int-for-float"),
        pytest.param(Field(("int", "null")), None, id="null"),
        pytest.param(Field(("dtype",), ("float32", "bfloat16")), "torch.bfloat16", id="dtype-with-prefix"),
        pytest.param(Field(("dtype",), ("float32", "bfloat16")), "bf16", id="dtype-short"),
        pytest.param(Field(("choice",), ("red", "green")), "RED", id="enum-any-case"),
        pytest.param(Field(("list",)), (1, 2), id="tuple-for-list"),
        pytest.param(Field(), object(), id="unknown-takes-anything"),
    ],
)
def test_a_right_value_passes(field: Field, value: Any) -> None:
    assert field.problem(value) is None


@given(
    st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.none(), st.lists(st.integers()))
)
def test_every_value_has_exactly_one_of_the_plain_kinds(value: Any) -> None:
    accepted = [k for k in ("bool", "int", "str", "null", "list") if Field((k,)).problem(value) is None]
    assert accepted == ([] if isinstance(value, float) else accepted[:1])
    assert Field((*accepted, "float")).problem(value) is None


@pytest.mark.parametrize("text", ["bf16", "BFLOAT16", "torch.bfloat16"])
def test_dtype_names(text: str) -> None:
    assert dtype_name(text) == "bfloat16"
    assert dtype_name("int4") is None


def live(monkeypatch: pytest.MonkeyPatch) -> Schema:
    monkeypatch.setattr("nano3.training.megatron.schema.versions", lambda: {"megatron-bridge": "0"})
    return extract(Container(), "some.recipe")


def test_extract_reads_dataclasses_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = live(monkeypatch)
    assert schema.lookup("inner.size") == (Field(("int",)), None)
    assert schema.lookup("inner.maybe")[0] == Field(("int", "null")), "a default of None means that null is allowed"
    assert schema.lookup("unset.size")[0] == Field(("int",)), "a section that is unset has fields too"
    assert schema.value("inner.size") == 3
    assert schema.value("inner.color") == "red"
    assert schema.value("inner.nothing", "other") == "other"
    assert "_private" not in schema.classes["Inner"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        pytest.param("iner.size", "Did you mean 'inner'?", id="section"),
        pytest.param("inner.sise", "no 'sise' in section 'inner'. Did you mean 'size'?", id="field"),
        pytest.param("rate.x", "'rate' has no fields of its own", id="below-a-number"),
    ],
)
def test_an_unknown_path_names_the_nearest(monkeypatch: pytest.MonkeyPatch, path: str, words: str) -> None:
    found, sentence = live(monkeypatch).lookup(path)
    assert found is None
    assert words in (sentence or "")


def test_a_dict_takes_any_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live(monkeypatch).lookup("environment.ANYTHING")[1] is None


def test_the_recording_is_read_back_as_it_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    schema = live(monkeypatch)
    (tmp_path / "recording.json").write_text(schemas_to_json([schema]))
    monkeypatch.setattr("nano3.training.megatron.schema.SCHEMA_FILE", tmp_path / "recording.json")
    again = load_bundled("some.recipe")
    assert dict(again.classes) == dict(schema.classes)
    assert dict(again.container) == dict(schema.container)
    assert again.values == schema.values


def test_the_bundled_recording_is_what_the_script_writes() -> None:
    """One class per line keeps the diff between two releases readable."""
    text = SCHEMA_FILE.read_text()
    assert schemas_to_json([load_bundled(recipe) for recipe in RECIPES]) == text
    assert text.count("\n") < 200


@pytest.mark.parametrize("recipe", [NANO, QWEN])
def test_both_recipes_are_recorded(recipe: str) -> None:
    schema = load_bundled(recipe)
    assert is_bundled(recipe)
    assert schema.versions["megatron-bridge"] == "0.6.2"
    assert schema.value("model.num_attention_heads") == 32
    for path in (
        "train.train_iters",
        "ddp.bucket_size",
        "comm_overlap.tp_comm_overlap",
        "mixed_precision.fp8",
        "model.recompute_modules",
    ):
        assert schema.lookup(path)[1] is None, path


def test_an_unrecorded_recipe_has_no_values_and_an_open_model() -> None:
    schema = load_bundled("megatron.bridge.recipes.llama.llama3.some_config")
    assert schema.value("model.num_layers") is None
    assert schema.lookup("model.anything")[1] is None
    assert schema.lookup("trian.x")[1] is not None


def test_image_recording_and_packages_are_one_set_of_versions() -> None:
    """An upgrade changes the pins, the recording and the image of the experiments together."""
    recorded = dict(load_bundled(NANO).versions)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = [requirement.split(";")[0] for extra in ("train", "megatron") for requirement in project[extra]]
    assert {f"{name}=={version}" for name, version in recorded.items()} <= set(pins)
    assert (IMAGE.rpartition(":")[2], recorded["megatron-bridge"].rpartition(".")[0]) == ("26.08", "0.6")
    experiments = [yaml.safe_load(file.read_text()) for file in (ROOT / "conf" / "experiment").glob("*.yaml")]
    images = {e["run"]["env"]["container"] for e in experiments if "env" in e["run"]}
    assert images == {IMAGE}
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert IMAGE in page
    assert f"| {', '.join(recorded)} | {', '.join(recorded.values())} |" in page


@pytest.mark.parametrize(
    ("bridge", "core", "expected"),
    [
        ("0.6.2", "0.19.2", ""),
        ("0.6.3", "0.19.2", "megatron-bridge 0.6.3, recorded 0.6.2"),
        (None, "0.19.2", "megatron-bridge of an unknown version, recorded 0.6.2"),
        ("0.7.0", "0.20.0", "megatron-bridge 0.7.0, recorded 0.6.2; megatron-core 0.20.0, recorded 0.19.2"),
    ],
    ids=["same", "bridge", "source-folder", "both"],
)
def test_other_versions_are_named(bridge: str | None, core: str, expected: str) -> None:
    installed = {"megatron-core": core} | ({"megatron-bridge": bridge} if bridge else {})
    assert version_difference(installed, {"megatron-bridge": "0.6.2", "megatron-core": "0.19.2"}) == expected
