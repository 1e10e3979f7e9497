"""Settings that the estimates leave out are named."""

import pytest
from megatron_helpers import NANO, architecture_of

from nano3.config import PretrainConfig
from nano3.training.checks.parallel_layout import ParallelLayout
from nano3.training.cost import workload
from nano3.training.cost.workload import uncounted_warning, workload_from_config
from nano3.training.megatron.schema import SCHEMA_FILE, load_bundled
from nano3.utils.files import read_json

KNOWN = load_bundled(NANO)


def test_the_settings_exist() -> None:
    """Or a setting that Megatron-Bridge renames would no longer be named."""
    missing = [path for path in workload._UNCOUNTED if KNOWN.value(path, "missing") == "missing"]
    assert not missing


def warning(config: PretrainConfig, recipe: str = NANO) -> str | None:
    known = load_bundled(recipe)
    model = architecture_of("nemotron_3_nano", 131072)
    return uncounted_warning(config, known, workload_from_config(config, known, model, ParallelLayout(8, 1, 1, 1, 8)))


@pytest.mark.parametrize(
    ("megatron", "named"),
    [
        ({"model": {"moe_latent_size": 512}}, "megatron.model.moe_latent_size=512."),
        ({"model": {"expert_tensor_parallel_size": 2}}, "megatron.model.expert_tensor_parallel_size=2."),
        ({"optimizer": {"optimizer_cpu_offload": True}}, "megatron.optimizer.optimizer_cpu_offload=true."),
        (
            {"model": {"cpu_offloading": True}, "ddp": {"use_megatron_fsdp": True}},
            "megatron.model.cpu_offloading=true, megatron.ddp.use_megatron_fsdp=true.",
        ),
        ({"model": {"expert_tensor_parallel_size": 1, "moe_latent_size": None}}, None),
        ({"optimizer": {"optimizer": "adam"}}, None),
        ({}, None),
    ],
)
def test_settings_of_a_run_are_named(megatron: dict, named: str | None) -> None:
    config = PretrainConfig()
    config.megatron = megatron
    found = warning(config)
    assert found is None if named is None else found is not None and f"not estimated: {named} " in found


def test_isolated_documents_are_not_estimated() -> None:
    """They took 12 % more memory, and 44 % more time with one sample a micro batch (speed_h200_isolate.txt)."""
    config = PretrainConfig()
    config.train.document_boundaries = "isolate"
    assert (warning(config) or "").startswith("not estimated: train.document_boundaries=isolate. ")


def test_recorded_recipes_use_none_but_offloading_and_nvfp4() -> None:
    recipes = read_json(SCHEMA_FILE)["recipes"]
    warned = {name.rpartition(".")[2]: warning(PretrainConfig(), name) for name in recipes}
    named = {name: text for name, text in warned.items() if text}
    offloading = "nemotron_3_5_lightning_pretrain_16gpu_h100_bf16_config"
    assert set(named) == {offloading, *(name for name in warned if "nvfp4" in name)}
    assert "fine_grained_activation_offloading=true. " in named.pop(offloading)
    assert all("not estimated: NVFP4, which counts as bf16. " in text for text in named.values())
