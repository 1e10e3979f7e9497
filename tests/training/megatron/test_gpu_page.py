"""Every override in docs/gpu.md is valid, including those in tables and in commands for a cluster.

tests/test_docs.py runs the commands that need no GPU.
"""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from megatron_helpers import NANO, ROOT
from omegaconf import DictConfig, OmegaConf

from nano3.artifacts.resolver import register_resolver
from nano3.cli.app import SCHEMAS
from nano3.config import PretrainConfig
from nano3.training.checks.model_stats import architecture_from_config
from nano3.training.checks.parallel_layout import layout_problems, parallel_layout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.memory import estimate_memory
from nano3.training.cost.workload import workload_from_config
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import override_settings, setting_problems

PAGE = (ROOT / "docs" / "gpu.md").read_text()
TYPED = [
    word
    for text in re.findall(r"`([^`\n]+)`|^(.*(?:\\|python -m nano3\.pretrain).*)$", PAGE, re.MULTILINE)
    for word in shlex.split("".join(text).rstrip("\\"))
]
FREE = sorted({word for word in TYPED if re.match(r"\+?megatron\.[\w.]+=", word)})
COMMANDS = re.findall(r"^python -m nano3\.pretrain ((?:.*\\\n)*.*)", PAGE, re.MULTILINE)


def composed(words: list[str]) -> DictConfig:
    ConfigStore.instance().store(name="pretrain_schema", node=SCHEMAS["pretrain"])
    register_resolver()
    OmegaConf.register_new_resolver("sample", lambda file: file, replace=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("pretrain", words)


def test_there_are_overrides_and_commands_to_check() -> None:
    assert len(FREE) >= 5 and len(COMMANDS) >= 4


@pytest.mark.parametrize("word", FREE)
def test_an_override_is_valid(word: str) -> None:
    assert word.startswith("+"), "a key of the megatron dict needs a plus"
    megatron = OmegaConf.to_container(composed([word]).megatron)
    assert setting_problems(override_settings(megatron, load_bundled(NANO)), load_bundled(NANO)) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_and_its_ranks_hold_the_model(command: str) -> None:
    cfg = composed([*shlex.split(command.replace("\\\n", " ").replace("--cfg job", "")), "run.data=/"])
    assert not OmegaConf.missing_keys(cfg)
    if "--cfg job" in command:
        return
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, PretrainConfig)
    known = load_bundled(config.recipe._target_)
    layout = parallel_layout(config, known)
    assert layout_problems(config, layout) == []
    model = architecture_from_config(config, known, 4096 if "sample" in config.data_blend.name else 131072)
    assert model is not None
    gpu = GPU_KINDS[config.cluster.gpu or "h100"]
    assert estimate_memory(workload_from_config(config, known, model, layout)).fits(gpu)
