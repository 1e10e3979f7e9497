"""Every file in conf/ composes, every key is documented, and the documented overrides work."""

import ast
import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import nano3.config
from nano3.cli.app import register_config
from nano3.cli.config_groups import SCHEMAS, conf_dir, schema_keys
from nano3.config import PrepOptions
from nano3.config.blend import SourceConfig, parse_datasets, read_blend_file
from nano3.utils.errors import UserError

CONF = Path(conf_dir())


@pytest.fixture(autouse=True)
def schemas() -> None:
    register_config()
    OmegaConf.register_new_resolver("sample", lambda f: f"/sample/{f}", replace=True)


def composed(app: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(app, list(overrides))


def members(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


PRETRAIN_CHOICES = [f"{g}={m}" for g in ("model", "data_blend", "train", "cluster") for m in members(g)]
PRETRAIN_CHOICES += [f"+experiment={m}" for m in members("experiment")]
PREP_CHOICES = [f"{g}={m}" for g in ("data_blend", "cluster") for m in members(g)]


@pytest.mark.parametrize(
    ("app", "choice"), [("pretrain", c) for c in PRETRAIN_CHOICES] + [("data_prep", c) for c in PREP_CHOICES]
)
def test_every_choice_composes(app: str, choice: str) -> None:
    cfg = composed(app, choice, *(["run.data=/"] if app == "pretrain" else []))
    assert not OmegaConf.missing_keys(cfg)
    assert isinstance(OmegaConf.to_object(cfg), SCHEMAS[app])


@pytest.mark.parametrize("kind", [m for m in members("train") if m.startswith("perf_")])
def test_a_performance_profile_is_added_to_a_schedule(kind: str) -> None:
    both, alone = composed("pretrain", f"train=[phase1,{kind}]"), composed("pretrain", "train=phase1")
    assert (both.train.train_iters, both.train.global_batch_size) == (993411, 3072)
    assert (both.optimizer, both.scheduler) == (alone.optimizer, alone.scheduler)
    assert both.megatron.model.cross_entropy_fusion_impl == "te" and not alone.megatron


def test_long_samples_leave_attention_out_of_the_cuda_graphs() -> None:
    """Its graphs take masks of length squared: `mask_warning`."""
    cfg = composed("pretrain", "+experiment=nano3", "train=long_context")
    assert cfg.megatron.model.cuda_graph_modules == ["mamba"]


@pytest.mark.parametrize("experiment", members("experiment"))
@pytest.mark.parametrize("cluster", members("cluster"))
def test_every_experiment_runs_on_every_cluster_profile(experiment: str, cluster: str) -> None:
    cfg = composed("pretrain", f"+experiment={experiment}", f"cluster={cluster}")
    assert cfg.run.name == experiment


def test_experiment_tiny_matches_the_documentation() -> None:
    cfg = composed("pretrain", "+experiment=tiny")
    assert (cfg.train.train_iters, cfg.train.global_batch_size, cfg.scheduler.lr_warmup_iters) == (1700, 32, 32)
    assert (cfg.logger.log_interval, cfg.checkpoint.save_interval) == (10, 20)
    assert cfg.recipe._target_ == "megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config"
    assert cfg.run.data == "DataBlendsArtifact-pretrain:math"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.train_iters=5000", "train.train_iters", 5000),
        ("train.global_batch_size=64", "train.global_batch_size", 64),
        ("checkpoint.save=/path", "checkpoint.save", "/path"),
        ("+megatron.model.moe_grouped_gemm=true", "megatron.model.moe_grouped_gemm", True),
        ("+cluster.env.NCCL_DEBUG=INFO", "cluster.env.NCCL_DEBUG", "INFO"),
    ],
)
def test_public_override_keys(override: str, key: str, value: object) -> None:
    assert OmegaConf.select(composed("pretrain", "+experiment=tiny", override), key) == value


def test_phases_share_one_schedule() -> None:
    one, two = (composed("pretrain", "+experiment=nano3", f"train={p}") for p in ("phase1", "phase2"))
    assert one.scheduler == two.scheduler
    assert one.train.train_iters == two.train.train_iters
    assert two.train.exit_iteration is None
    tokens = one.train.global_batch_size * one.train.seq_length
    assert one.train.exit_iteration * tokens == pytest.approx(23.5e12, rel=1e-4)
    assert one.train.train_iters * tokens == pytest.approx(25e12, rel=1e-4)


def test_a_blends_defaults_can_be_overridden() -> None:
    cfg = composed("data_prep", "data_blend=sample")
    assert cfg.tokenizer_model == "/sample/tokenizer"
    assert cfg.num_shards == 12
    assert composed("data_prep", "data_blend=sample", "num_shards=3").num_shards == 3
    plain = PrepOptions()
    default = composed("data_prep")
    assert {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)} == {
        f.name: default[f.name] for f in dataclasses.fields(plain)
    }


def config_modules() -> list[Path]:
    return sorted(Path(nano3.config.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("module", config_modules(), ids=lambda p: p.stem)
def test_every_key_is_documented_where_it_is_declared(module: Path) -> None:
    lines = module.read_text().splitlines()
    bare = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            bare += [f"{node.name}.{ast.unparse(f.target)}" for f in fields if not is_comment(lines[f.lineno - 2])]
    assert not bare


def is_comment(line: str) -> bool:
    return line.strip().startswith("#") and len(line.strip()) > 8


def test_keys_are_unique_and_nested() -> None:
    keys = list(schema_keys(SCHEMAS["pretrain"]))
    assert len(keys) == len(set(keys))
    assert {"run.wandb.mode", "cluster.partition", "train.train_iters"} <= set(keys)


GOOD = {"name": "a", "path": "a.jsonl"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], ["no datasets"], id="empty"),
        pytest.param(["a.jsonl"], ["expected keys and values"], id="not-a-mapping"),
        pytest.param([{"name": "a"}], ["path is missing"], id="no-path"),
        pytest.param([{**GOOD, "wieght": 1}], ["no key 'wieght'. Did you mean 'weight'?"], id="typo"),
        pytest.param([{**GOOD, "weight": 0}], ["weight must be a number above 0, found 0"], id="zero-weight"),
        pytest.param([{**GOOD, "weight": "1"}], ["found '1'"], id="text-weight"),
        pytest.param([{**GOOD, "weight": True}], ["found True"], id="bool-weight"),
        pytest.param([{**GOOD, "weight": float("nan")}], ["found nan"], id="nan-weight"),
        pytest.param([{**GOOD, "subset": 3}], ["subset must be text, found 3"], id="number-subset"),
        pytest.param([GOOD, GOOD], ["'a' is used 2 times"], id="twice"),
        pytest.param([{"name": "a"}, {**GOOD, "weight": -1}], ["path is missing", "found -1"], id="all-at-once"),
    ],
)
def test_all_problems_of_a_blend_are_reported(entries: list, expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_datasets(entries, "blend b")
    for text in expected:
        assert text in str(error.value)
    assert "blend b" in str(error.value)


def test_a_valid_blend() -> None:
    assert parse_datasets([{**GOOD, "weight": 2}], "b") == [SourceConfig(name="a", path="a.jsonl", weight=2.0)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("[]", 'not a blend file. A blend file is JSON such as {"datasets"'),
        ('{"datasets": {}}', "not a blend file"),
    ],
    ids=["absent", "broken", "list", "no-list"],
)
def test_blend_file_errors(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "blend.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=expected.replace("{", r"\{").replace("[", r"\[")) as error:
        read_blend_file(path)
    assert str(path) in str(error.value)
