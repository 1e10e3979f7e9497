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
def test_a_command_composes(command: str) -> None:
    assert not OmegaConf.missing_keys(
        composed([*shlex.split(command.replace("\\\n", " ").replace("--cfg job", "")), "run.data=/"])
    )
