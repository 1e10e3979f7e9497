"""Settings that the estimates leave out are named."""

import pytest
from megatron_helpers import NANO

from nano3.config import PretrainConfig
from nano3.training.cost import workload
from nano3.training.cost.workload import uncounted_warning
from nano3.training.megatron.schema import SCHEMA_FILE, load_bundled
from nano3.utils.files import read_json

KNOWN = load_bundled(NANO)


def test_the_settings_exist() -> None:
    """Or a setting that Megatron-Bridge renames would no longer be named."""
    missing = [path for path in workload._UNCOUNTED if KNOWN.value(path, "missing") == "missing"]
    assert not missing


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
    found = uncounted_warning(config, KNOWN)
    assert found is None if named is None else found is not None and f"not estimated: {named} " in found


def test_isolated_documents_are_not_estimated() -> None:
    """They took 12 % more memory, and 30 % more time with one sample a micro batch (speed_h200_isolate.txt)."""
    config = PretrainConfig()
    config.train.document_boundaries = "isolate"
    assert (uncounted_warning(config, KNOWN) or "").startswith("not estimated: train.document_boundaries=isolate. ")


def test_recorded_recipes_use_none_but_offloading() -> None:
    recipes = read_json(SCHEMA_FILE)["recipes"]
    warned = {name.rpartition(".")[2]: uncounted_warning(PretrainConfig(), load_bundled(name)) for name in recipes}
    named = {name: text for name, text in warned.items() if text}
    assert set(named) == {"nemotron_3_5_lightning_pretrain_16gpu_h100_bf16_config"}
    assert all("fine_grained_activation_offloading=true" in text for text in named.values())
