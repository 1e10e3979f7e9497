"""What nano3 changes in a recipe is needed, has a reason, and once done needs nothing more."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import NANO

from nano3.config import PretrainConfig
from nano3.training.megatron.recipe import adaptations, field_getter
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import (
    CONTAINER_FIELDS,
    Setting,
    apply_settings,
    override_settings,
    setting_problems,
    typed_settings,
)
from nano3.utils.provenance import is_installed

MODULES = ("deep_ep", "fused_weight_gradient_mlp_cuda")
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model.moe_token_dispatcher_type": st.sampled_from(["flex", "alltoall", "allgather", None]),
    "model.moe_flex_dispatcher_backend": st.sampled_from(["deepep", "hybridep", None]),
    "model.expert_model_parallel_size": st.sampled_from([1, 2, 8]),
    "model.gradient_accumulation_fusion": st.booleans(),
    "comm_overlap": st.sampled_from([None, "something"]),
    "dataset.create_attention_mask": st.booleans(),
    "dataset.reset_attention_mask": st.booleans(),
}
recipes = st.fixed_dictionaries({}, optional=FIELDS)
worlds, installed = st.sampled_from([1, 2, 8]), st.sets(st.sampled_from(MODULES))


@given(recipes, worlds, installed)
def test_an_adapted_recipe_needs_no_adaptation(recipe: dict[str, Any], world: int, has: set[str]) -> None:
    """Whatever fields the recipe of a release has; each change is one, and the schema takes it."""
    found = adaptations(recipe.get, world, has.__contains__)
    assert setting_problems(found, load_bundled(NANO)) == []
    assert len({s.path for s in found}) == len(found)
    changed = recipe | {s.path: s.value for s in found}
    assert adaptations(changed.get, world, has.__contains__) == []


@given(recipes, worlds, installed)
def test_what_is_needed_does_not_grow_with_what_is_installed(recipe: dict[str, Any], world: int, has: set[str]) -> None:
    few = {s.path for s in adaptations(recipe.get, world, set(MODULES).__contains__)}
    many = {s.path for s in adaptations(recipe.get, world, has.__contains__)}
    assert few <= many


def test_a_field_is_read_from_a_live_container_or_is_none() -> None:
    get = field_getter(SimpleNamespace(model=SimpleNamespace(width=3, none=None), flag=False))
    assert (get("model.width"), get("flag"), get("model.none.deeper"), get("nothing.at.all")) == (3, False, None, None)


def test_only_what_is_installed_can_be_imported() -> None:
    assert is_installed("json") and not is_installed("deep_ep_of_nobody")


@given(st.fixed_dictionaries({}, optional={"seed": st.integers(0, 9), "train_iters": st.integers(1, 99)}))
def test_what_is_typed_arrives_in_every_place(changes: dict[str, int]) -> None:
    """Applied to a container, each place of a key reads back as the key's value."""
    config = PretrainConfig()
    for name, value in changes.items():
        setattr(config.train, name, value)
    parts = ("train", "model", "dataset", "rng", "validation", "optimizer", "scheduler", "logger", "checkpoint")
    container = SimpleNamespace(**{part: SimpleNamespace() for part in parts})
    apply_settings(container, typed_settings(config), load_bundled(NANO))
    get = field_getter(container)
    for name in changes:
        assert [get(place) for place in CONTAINER_FIELDS[f"train.{name}"]] == [changes[name]] * len(
            CONTAINER_FIELDS[f"train.{name}"]
        )


@given(st.dictionaries(st.sampled_from(["NCCL_DEBUG", "A"]), st.text(max_size=3)), st.integers(0, 4))
def test_a_free_section_is_flattened_to_its_fields(env: dict[str, str], size: int) -> None:
    """A dictionary that is a value stays one: its keys are no fields."""
    found = override_settings({"ddp": {"bucket_size": size}, "env_vars": env}, load_bundled(NANO))
    assert found == [
        Setting("ddp.bucket_size", size, "megatron.ddp.bucket_size"), Setting("env_vars", env, "megatron.env_vars"),
    ]  # fmt: skip
