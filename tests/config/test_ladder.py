"""The rule of the ladder: sizes are what they are called, fit their GPUs, and lead to Nemotron 3 Nano."""

import dataclasses
import itertools
import math
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nano3.cli.app import register_config, to_typed_config
from nano3.cli.config_groups import conf_dir
from nano3.cli.override_errors import override_problems
from nano3.config import ModelConfig, PretrainConfig
from nano3.config.ladder import (
    EXPERTS,
    NANO_BATCH,
    NANO_INIT,
    NANO_PAIRS,
    NANO_RATE,
    NANO_TOKENS,
    NANO_WIDTH,
    TOP_K,
    LadderConfig,
    LadderRun,
    LadderShape,
    ladder_value,
    layer_pattern,
    read_size,
    shape_of_size,
    shape_of_width,
)
from nano3.training.checks.ladder_check import differences, ladder_problems, ladder_rows, validation_warnings
from nano3.training.checks.model_stats import (
    architecture_from_config,
    count_parameters,
    divisibility_problems,
)
from nano3.training.checks.parallel_layout import layout_problems, parallel_layout
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.cost.memory import estimate_memory
from nano3.training.cost.workload import workload_from_config
from nano3.training.hf.model import model_problems
from nano3.training.megatron.backend import check
from nano3.training.megatron.recipe import ladder_settings, set_variables
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import apply_settings, setting_problems
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import UserError

NAMED = ["1m", "2m", "4m", "10m", "30m", "100m", "200m", "350m", "700m", "1b", "3b", "10b", "31b"]
SIZES = st.floats(math.log(1e6), math.log(31e9)).map(lambda x: f"{math.exp(x) / 1e6:.4f}m")


def composed(*words: str) -> PretrainConfig:
    register_config()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config: PretrainConfig = to_typed_config(compose("pretrain", [*words, "run.data=/tmp"]))
    return config


def on_the_ladder(size: str, *words: str) -> PretrainConfig:
    return composed("model=ladder", "train=ladder", f"ladder.size={size}", *words)


def tolerance(size: str) -> float:
    """Small models are made of few and narrow layers, so their sizes have larger steps."""
    return 0.08 if read_size(size) >= 100e6 else 0.14


def counted(config: PretrainConfig) -> tuple[int, int]:
    """The parameters besides the embeddings, all and active, as the rest of nano3 counts them."""
    found = architecture_from_config(config, None, 131072)
    assert found is not None
    counts, embeddings = count_parameters(found), 2 * found.vocab_size * found.hidden_size
    return counts.total - embeddings, counts.active - embeddings


@pytest.mark.parametrize("size", NAMED)
def test_a_size_is_what_it_is_called_and_both_backends_accept_it(size: str) -> None:
    config = on_the_ladder(size)
    total, active = counted(config)
    shape = shape_of_size(size)
    assert (total, active) == (shape.parameters(), shape.parameters(TOP_K))
    assert total == pytest.approx(read_size(size), rel=tolerance(size))
    assert check(config) == [] and model_problems(config.model) == []
    assert differences(config) == [] and ladder_problems(config) == []


@given(SIZES)
def test_any_size_between_the_smallest_and_the_full_one_has_a_model(size: str) -> None:
    shape = shape_of_size(size)
    assert shape.parameters() == pytest.approx(read_size(size), rel=tolerance(size))
    assert set(shape.hybrid_layer_pattern) == set("M*E")
    assert shape.hidden_size % 4 == shape.moe_ffn_hidden_size % 8 == 0
    if read_size(size) >= 100e6:  # what Transformer Engine's FP8 and Mamba's kernels want
        assert shape.hidden_size % 32 == shape.moe_ffn_hidden_size % 16 == 0
        assert (shape.mamba_head_dim, shape.mamba_state_dim) == (64, 128) and shape.kv_channels in (64, 128)
        share = shape.parameters(TOP_K) / shape.parameters()
        assert 0.09 < share < 0.10, "as in Nano: 9.3 %"
        ratio = shape.hidden_size / len(shape.hybrid_layer_pattern) * 52 / NANO_WIDTH
        assert 0.65 < ratio < 1.55


@given(SIZES, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
def test_the_heads_can_be_divided(size: str, tensor: int, expert: int) -> None:
    config = PretrainConfig(model=model_of(shape_of_size(size)))
    found = architecture_from_config(config, None, 131072)
    assert found is not None
    largest = shape_of_size(size).mamba_num_groups
    assert divisibility_problems(found, 1, expert) == []
    if tensor <= min(largest, 2):
        assert divisibility_problems(found, tensor, expert) == []


def model_of(shape: LadderShape) -> ModelConfig:
    values = dataclasses.asdict(shape)
    shared = shape.moe_shared_expert_intermediate_size
    return ModelConfig(
        **values, num_query_groups=2, num_moe_experts=EXPERTS, moe_router_topk=TOP_K,
        moe_shared_expert_intermediate_size=shared, ffn_hidden_size=shape.moe_ffn_hidden_size,
    )  # fmt: skip


@given(SIZES, st.floats(1.35, 30))
def test_more_of_a_size_is_more_of_everything(size: str, factor: float) -> None:
    larger = f"{read_size(size) * factor / 1e6:.4f}m"
    if read_size(size) * factor > 31e9:
        return
    small, large = (LadderRun(LadderConfig(size=s), 8192) for s in (size, larger))
    assert small.shape.parameters() < large.shape.parameters()
    assert small.active < large.active and small.tokens < large.tokens
    assert small.batch <= large.batch and small.rate >= large.rate


def test_the_last_rung_is_nemotron_3_nano() -> None:
    nano, top = composed("model=nemotron_3_nano").model, on_the_ladder("31b").model
    parallel = {"expert_model_parallel_size"}
    assert {f.name for f in dataclasses.fields(nano) if getattr(nano, f.name) != getattr(top, f.name)} <= parallel
    assert layer_pattern(NANO_PAIRS) == nano.hybrid_layer_pattern
    assert nano.init_method_std == NANO_INIT


def test_batch_and_rate_pass_through_the_recipe() -> None:
    per_parameter = NANO_TOKENS / shape_of_width(NANO_WIDTH, NANO_PAIRS).parameters(TOP_K)
    run = LadderRun(LadderConfig(size="31b", tokens_per_parameter=per_parameter), 8192)
    assert run.rate == NANO_RATE
    assert run.batch * 8192 == pytest.approx(NANO_BATCH, rel=0.42), "the nearest power of two"


def test_batch_and_rate_follow_step_law() -> None:
    """A hundred times the tokens: the batch grows by 100^0.571 = 13.9, the rate by 100^0.307 = 4.1."""
    one, many = (LadderRun(LadderConfig(size="3b", tokens_per_parameter=t), 1) for t in (20, 2000))
    assert abs(math.log2(many.batch / one.batch / 100**0.571)) <= 1, "both are rounded to a power of two"
    assert many.rate / one.rate == pytest.approx(100**0.307, rel=0.03)


def test_the_run_has_the_tokens_that_it_says() -> None:
    for size in NAMED[:-4:3]:
        config = on_the_ladder(size, "train.seq_length=256")
        t = config.train
        tokens = LadderRun(config.ladder, 256).tokens
        assert 0 <= t.train_iters * t.global_batch_size * t.seq_length - tokens < t.global_batch_size * t.seq_length
        assert t.global_batch_size % t.micro_batch_size == 0
        assert config.scheduler.lr_warmup_iters < t.train_iters
        assert t.micro_batch_size * t.seq_length <= 32768


def test_every_size_is_validated_on_the_same_samples() -> None:
    samples = set()
    for size in NAMED[::4]:
        t = on_the_ladder(size, "train.seq_length=4096").train
        for datasets in (1, 3):
            samples.add((datasets, -(-t.eval_iters // datasets) * t.global_batch_size))
    assert samples == {(1, 768), (3, 256)}


PAGE = Path(__file__).parents[2] / "docs" / "which-size.md"
SWEEPS = re.findall(
    r"^python -m nano3\.pretrain -m (\+experiment=scaling cluster=slurm.*)", PAGE.read_text(), re.MULTILINE
)


def test_sweeps_are_documented() -> None:
    assert len(SWEEPS) == 2


@pytest.mark.parametrize("command", SWEEPS)
def test_every_point_of_a_documented_sweep_fits_its_ranks_and_gpus(command: str) -> None:
    words = shlex.split(command)
    params = OmegaConf.load(Path(conf_dir()) / "experiment" / "scaling.yaml").hydra.sweeper.params
    given = dict(word.split("=", 1) for word in words)
    swept = [[f"{key}={value}" for value in str(given.get(key, values)).split(",")] for key, values in params.items()]
    points = list(itertools.product(*swept))
    assert len(points) == 12
    for point in points:
        config = composed(*(word for word in words if word.partition("=")[0] not in params), *point)
        known = load_bundled(config.recipe._target_)
        layout = parallel_layout(config, known)
        assert layout_problems(config, layout) == [], point
        model = architecture_from_config(config, known, 131072)
        assert model is not None
        memory = estimate_memory(workload_from_config(config, known, model, layout))
        assert memory.fits(GPU_KINDS[config.cluster.gpu or "h100"]), point


def test_the_sweep_is_validated_on_the_same_samples() -> None:
    for size, tokens in (("100m", 10), ("700m", 40)):
        config = composed("+experiment=scaling", f"ladder.size={size}", f"ladder.tokens_per_parameter={tokens}")
        datasets = len(config.data_blend.datasets)
        assert -(-config.train.eval_iters // datasets) * config.train.global_batch_size == 64
        assert validation_warnings(config, datasets) == []
        example = -(-768 // (17 * config.train.global_batch_size)) * 17 * config.train.global_batch_size
        assert f"for example {example}." in validation_warnings(replaced(config, 768), datasets)[0]


def replaced(config: PretrainConfig, samples: int) -> PretrainConfig:
    ladder = dataclasses.replace(config.ladder, eval_samples=samples)
    train = dataclasses.replace(config.train, eval_iters=samples // config.train.global_batch_size)
    return dataclasses.replace(config, ladder=ladder, train=train)


def test_a_size_without_its_section_is_answered_with_the_key() -> None:
    line = CommandLine.parse(["model=ladder", "size=100m"])
    assert "Did you mean 'ladder.size'?" in override_problems("pretrain", line, check_members=True)[0]


def test_norms_take_any_width_on_a_gpu() -> None:
    """With the recipe's cuDNN norm the first step of 100m and 350m failed on an H200: no kernel for their widths."""
    config = on_the_ladder("100m")
    known, changes = load_bundled(config.recipe._target_), ladder_settings(config)
    recipe, own = known.value("env_vars"), {"NVTE_NORM_FWD_USE_CUDNN": 0, "NVTE_NORM_BWD_USE_CUDNN": 0}
    assert own.keys() <= recipe.keys(), "the recipe still has these variables"
    assert setting_problems(changes, known) == []
    container = SimpleNamespace(env_vars=dict(recipe))
    apply_settings(container, changes, known)
    assert container.env_vars == {**recipe, **own}, "the others stay"
    assert ladder_settings(composed("model=nemotron_3_nano")) == []


@pytest.mark.parametrize("exported", [None, "0", "1"])
def test_norms_take_any_width_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exported: str | None
) -> None:
    """Megatron-Bridge would keep a variable of the environment, and the first step would fail."""
    names = ("NVTE_NORM_FWD_USE_CUDNN", "NVTE_NORM_BWD_USE_CUDNN")
    for name in names:
        monkeypatch.setenv(name, exported) if exported else monkeypatch.delenv(name, raising=False)
    set_variables(on_the_ladder("100m"), dict.fromkeys(names, 0))
    assert {os.environ.get(name, "0") for name in names} == {"0"}
    assert ("adapted NVTE_NORM_FWD_USE_CUDNN=0, which the environ" in capsys.readouterr().out) == (exported == "1")


@pytest.mark.parametrize(("exported", "reported"), [(None, False), ("INFO", False), ("WARN", True)])
def test_a_variable_that_the_environment_overrides_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exported: str | None, reported: bool
) -> None:
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    if exported:
        monkeypatch.setenv("NCCL_DEBUG", exported)
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")  # only the recipe's: the environment's is meant
    config = composed("model=nemotron_3_nano", "+megatron.env_vars.NCCL_DEBUG=INFO")
    set_variables(config, {"NCCL_DEBUG": "INFO", "NCCL_NVLS_ENABLE": 0})
    shown = "".join(capsys.readouterr())
    assert ("megatron.env_vars.NCCL_DEBUG has no effect: the environment sets NCCL_DEBUG" in shown) == reported
    assert "NVLS" not in shown and os.environ.get("NCCL_DEBUG") == exported


def test_settings_follow_those_that_are_given() -> None:
    config = on_the_ladder("100m", "train.train_iters=150", "train.global_batch_size=16", "train.seq_length=2048")
    assert (config.scheduler.lr_warmup_iters, config.train.eval_iters, config.train.micro_batch_size) == (7, 48, 16)
    assert config.model.hidden_size == shape_of_size("100m").hidden_size
    more = on_the_ladder("100m", "ladder.tokens_per_parameter=40", "train.seq_length=2048")
    less = on_the_ladder("100m", "train.seq_length=2048")
    assert more.train.train_iters * more.train.global_batch_size == pytest.approx(
        2 * less.train.train_iters * less.train.global_batch_size, rel=1e-3
    )
    assert more.optimizer.lr > less.optimizer.lr


def test_the_preflight_names_what_is_not_by_the_rule() -> None:
    rows = ladder_rows(on_the_ladder("100m", "model.hidden_size=512", "optimizer.lr=1"))
    assert rows[0][1].startswith("100m: 97.0 M parameters besides the embeddings, 9.30 M active; 20 tokens for each")
    assert rows[0][1].endswith("20 tokens for each active one = 186 M tokens")
    small = ladder_rows(on_the_ladder("1m", "ladder.tokens_per_parameter=0.05"))
    assert small[0][1].endswith("0.05 tokens for each active one = 5.35 k tokens")
    assert rows[1] == ("  not by its rule", "model.hidden_size=512 (416), optimizer.lr=1.0 (0.0016)")
    assert ladder_rows(composed("model=nemotron_3_nano")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ladder.size=100"], "ladder.size=100: expected a number and k, m or b"),
        (["ladder.size=huge"], "for example 100m"),
        (["ladder.size=70b"], "sizes go from 1m to 31b"),
        (["ladder.size=null"], "need a size: ladder.size=100m"),
        (["ladder.tokens_per_parameter=0"], "ladder.tokens_per_parameter=0 must be above 0"),
        (["ladder.tokens_per_parameter=nan"], "must be above 0"),
        (["ladder.eval_samples=100", "train.global_batch_size=64"], "for example 128"),
        (["ladder.eval_samples=0"], "must be a multiple"),
    ],
)
def test_wrong_settings_are_answered_with_what_to_type(words: list[str], message: str) -> None:
    with pytest.raises(Exception, match="ladder") as raised:
        composed("model=ladder", "train=ladder", *words)
    cause: BaseException | None = raised.value
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    assert cause is not None and message in str(cause)


def test_the_files_name_rules_that_exist() -> None:
    for name in ("interval", *(f.name for f in dataclasses.fields(LadderShape)), "ffn_hidden_size", "lr", "min_lr"):
        assert ladder_value(name, LadderConfig(size="10m"), lambda key: 64) is not None
    with pytest.raises(UserError, match="there is no such rule"):
        ladder_value("widht", LadderConfig(size="10m"), lambda key: 64)
    assert OmegaConf.load(f"{conf_dir()}/model/ladder.yaml").ladder.size == "100m"
