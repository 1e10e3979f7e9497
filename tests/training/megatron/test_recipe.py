"""Which recipes are allowed, how they are adapted to machine and data, and the hub file without network access."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import NANO, QWEN

from nano3.config import PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.megatron import recipe
from nano3.training.megatron.recipe import adaptations, field_getter
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import (
    Setting,
    setting_problems,
)
from nano3.utils.errors import UserError

FULL = {
    "model.moe_token_dispatcher_type": "flex",
    "model.expert_model_parallel_size": 8,
    "model.gradient_accumulation_fusion": True,
    "comm_overlap": object(),
    "dataset.create_attention_mask": True,
    "dataset.reset_attention_mask": False,
}


def adapted(world: int, installed: set[str], **changes: Any) -> dict[str, Any]:
    values = FULL | {k.replace("__", "."): v for k, v in changes.items()}
    return {s.path: s.value for s in recipe.adaptations(values.get, world, installed.__contains__)}


def test_nothing_but_the_mask_changes_in_nvidias_container() -> None:
    assert adapted(8, {"deep_ep", "fused_weight_gradient_mlp_cuda"}) == {"dataset.create_attention_mask": False}


def test_one_gpu_without_the_extras() -> None:
    assert adapted(1, set(), model__expert_model_parallel_size=1) == {
        "model.moe_token_dispatcher_type": "allgather",
        "model.moe_flex_dispatcher_backend": None,
        "model.gradient_accumulation_fusion": False,
        "comm_overlap": None,
        "dataset.create_attention_mask": False,
    }


@pytest.mark.parametrize(
    ("installed", "expert", "tensor", "kind"),
    [
        pytest.param({"deep_ep"}, 8, 1, None, id="hybridep-possible"),
        pytest.param({"deep_ep"}, 1, 1, "allgather", id="one-expert-rank"),
        pytest.param(set(), 1, None, "allgather", id="one-expert-rank, nothing said of tensors"),
        pytest.param({"deep_ep"}, 1, 2, "alltoall", id="experts cut over tensor ranks"),
        pytest.param(set(), 8, 1, "alltoall", id="not-installed"),
    ],
)
def test_the_dispatcher(installed: set[str], expert: int, tensor: int | None, kind: str | None) -> None:
    sizes = {"model__expert_model_parallel_size": expert, "model__tensor_model_parallel_size": tensor}
    found = adapted(8, installed, **sizes)
    assert found.get("model.moe_token_dispatcher_type") == kind
    assert ("model.moe_flex_dispatcher_backend" in found) is (kind is not None)


@pytest.mark.parametrize(
    ("save", "kind", "chosen", "expected"),
    [
        pytest.param("/run/checkpoints", "torch_dist", False, True, id="by-default"),
        pytest.param("/run/checkpoints", "torch_dist", True, None, id="already"),
        pytest.param("/run/checkpoints", "zarr", False, None, id="another-format"),
        pytest.param(None, "torch_dist", False, None, id="nothing-is-saved"),
    ],
)
def test_saving_goes_on_in_the_background(save: str | None, kind: str, chosen: bool, expected: bool | None) -> None:
    section = {"checkpoint__save": save, "checkpoint__ckpt_format": kind, "checkpoint__async_save": chosen}
    assert adapted(8, {"deep_ep"}, **section).get("checkpoint.async_save") is expected


def test_a_needed_mask_is_kept() -> None:
    assert "dataset.create_attention_mask" not in adapted(8, {"deep_ep"}, dataset__reset_attention_mask=True)


def test_every_adaptation_has_a_reason_and_fits_the_schema() -> None:
    found = recipe.adaptations(FULL.get, 1, lambda module: False)
    assert all(len(s.origin) > 10 for s in found)
    assert setting_problems(found, load_bundled(NANO)) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param("os.system", "recipes come from megatron.bridge.recipes", id="elsewhere"),
        pytest.param("megatron.bridge.training.pretrain.pretrain", "recipes come from", id="not-a-recipe-package"),
        pytest.param("megatron.bridge.recipes; import os", "not a dotted path", id="code"),
        pytest.param("", "not a dotted path", id="empty"),
    ],
)
def test_only_recipes_may_be_called(target: str, words: str) -> None:
    assert words in recipe.target_problems(target)[0]
    with pytest.raises(UserError, match=r"recipe\._target_"):
        recipe.call_recipe(target)


@pytest.mark.parametrize("target", [NANO, QWEN])
def test_both_recipes_are_allowed(target: str) -> None:
    assert recipe.target_problems(target) == []


def recipe_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Create a recipe module and allow it instead of megatron.bridge.recipes."""
    (tmp_path / "own_recipes.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(recipe, "ALLOWED", ("own_recipes",))
    sys.modules.pop("own_recipes", None)


def test_a_recipe_is_called_with_or_without_the_data_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe_module(
        monkeypatch,
        tmp_path,
        "def old_config(per_split_data_args_path=None):\n    return per_split_data_args_path\n"
        "def new_config():\n    return 'new'\n",
    )
    assert recipe.call_recipe("own_recipes.old_config", "/blend.json") == "/blend.json"
    assert recipe.call_recipe("own_recipes.new_config", "/blend.json") == "new"


def test_a_misspelt_recipe_names_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe_module(monkeypatch, tmp_path, "def new_config(): return 1\n")
    with pytest.raises(UserError, match="Did you mean 'new_config'"):
        recipe.call_recipe("own_recipes.new_confg")


def test_a_recipe_module_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "ALLOWED", ("missing_package",))
    with pytest.raises(UserError, match="there is no module missing_package"):
        recipe.call_recipe("missing_package.x.some_config")


def settings(config: PretrainConfig, data_dir: Path) -> dict[str, Any]:
    found: list[Setting] = recipe.data_settings(config, open_data(data_dir), Path(config.run.output_dir))
    assert setting_problems(found, load_bundled(NANO)) == []
    return {s.path: s.value for s in found}


def test_data_and_tokenizer_come_from_the_data(config: PretrainConfig, data_dir: Path) -> None:
    found = settings(config, data_dir)
    train, valid, test = found["dataset.blend_per_split"]
    assert train == ([str(data_dir / "train/data_00000"), str(data_dir / "train/data_00001")], [0.75, 0.25])
    assert valid[0] == [str(data_dir / "valid/data_00000"), str(data_dir / "valid/data_00001")]
    assert test is None
    assert found["dataset.split"] is None and found["dataset.blend"] is None
    assert found["tokenizer.tokenizer_model"] == str(data_dir / "tokenizer")


def test_without_validation_its_data_is_not_opened(config: PretrainConfig, data_dir: Path) -> None:
    config.train.eval_interval = 0
    found = settings(config, data_dir)
    assert found["dataset.blend_per_split"][1:] == [None, None]
    assert "validation.eval_iters" not in found, "typed_settings has 0 then"


def test_megatron_bridge_itself_validates_one_batch(config: PretrainConfig, data_dir: Path) -> None:
    """nano3 measures the batches of train.eval_iters per dataset afterwards."""
    config.train.eval_iters = 32
    assert settings(config, data_dir)["validation.eval_iters"] == 1


@pytest.mark.parametrize("loaded", [False, True], ids=["before-the-hub-library", "after-it"])
def test_the_qwen3_recipe_finds_its_file_without_network(tmp_path: Path, loaded: bool) -> None:
    """In a child process, because the library reads its environment once."""
    model, revision = recipe.HUB_FILES[QWEN]
    script = f"""
import sys
from pathlib import Path
{"import huggingface_hub.constants" if loaded else ""}
from nano3.training.megatron.recipe import offline_hub
offline_hub({QWEN!r}, Path({str(tmp_path / "scratch")!r}))
from huggingface_hub import hf_hub_download
print(Path(hf_hub_download({model!r}, "config.json", revision={revision!r})).read_text())
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert '"hidden_size": 4096' in done.stdout
    assert (tmp_path / "scratch").exists() is not loaded


def test_other_recipes_leave_the_hub_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    recipe.offline_hub(NANO, tmp_path / "scratch")
    assert os.environ == before and not (tmp_path / "scratch").exists()


MODULES = ("deep_ep", "fused_weight_gradient_mlp_cuda")


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model.moe_token_dispatcher_type": st.sampled_from(["flex", "alltoall", "allgather", None]),
    "model.moe_flex_dispatcher_backend": st.sampled_from(["deepep", "hybridep", None]),
    "model.expert_model_parallel_size": st.sampled_from([1, 2, 8]),
    "model.gradient_accumulation_fusion": st.booleans(),
    "comm_overlap": st.sampled_from([None, "something"]),
    "dataset.create_attention_mask": st.booleans(),
    "dataset.reset_attention_mask": st.booleans(),
    "checkpoint.save": st.sampled_from([None, "/run/checkpoints"]),
    "checkpoint.ckpt_format": st.sampled_from(["torch_dist", "fsdp_dtensor"]),
    "checkpoint.async_save": st.booleans(),
}


recipes = st.fixed_dictionaries({}, optional=FIELDS)


worlds, installed = st.sampled_from([1, 2, 8]), st.sets(st.sampled_from(MODULES))


@given(recipes, worlds, installed)
def test_an_adapted_recipe_needs_no_adaptation(recipe: dict[str, Any], world: int, has: set[str]) -> None:
    """For any fields of a recipe, each adaptation changes something and fits the schema."""
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


def test_field_getter_returns_a_field_or_none() -> None:
    get = field_getter(SimpleNamespace(model=SimpleNamespace(width=3, none=None), flag=False))
    assert (get("model.width"), get("flag"), get("model.none.deeper"), get("nothing.at.all")) == (3, False, None, None)
