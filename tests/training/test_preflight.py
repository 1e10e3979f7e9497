"""Preflight: the table, every problem at once, and an answer to any configuration."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from megatron_helpers import NANO, QWEN, ROOT, checkpoint, config_without_data, model

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.checks.model_stats import (
    Architecture,
)
from nano3.training.cost.gpus import GPU_KINDS
from nano3.training.dataset import open_data
from nano3.training.megatron.backend import run_identity
from nano3.training.megatron.recipe_check import recipe_problems
from nano3.training.megatron.schema import PERFORMANCE_RECIPES, load_bundled
from nano3.training.megatron.settings import override_settings
from nano3.training.preflight import (
    IterationRange,
    preflight,
)
from nano3.utils.console import short_number, size_text


def test_a_good_configuration_has_no_problem_and_a_full_table(config: PretrainConfig) -> None:
    plan = preflight(config)
    assert plan.problems == []
    names = [row[0] for row in plan.rows]
    for name in (
        "recipe",
        "backend",
        "ranks",
        "parameters",
        "FLOPs per token",
        "memory per GPU",
        "batch",
        "iterations",
        "time",
        "data",
        "checkpoints",
    ):
        assert name in names
    assert dict(plan.rows)["  docs"].startswith("75.0% of the samples, 20 k tokens")


@pytest.mark.parametrize("background", [True, False])
def test_the_host_memory_of_saves_is_one_to_two_checkpoints(config: PretrainConfig, background: bool) -> None:
    """The copy to host memory is in blocks of powers of two. A save in the foreground keeps no copy."""
    config.megatron = {"checkpoint": {"async_save": background}}
    row = dict(preflight(config).rows)["checkpoints"]
    size = row.partition(" each")[0]
    assert size == "326 MB"
    shown = rf"saving in the background takes {size} to 65[123] MB of host memory per node"
    assert bool(re.search(shown, row)) is background


def test_all_problems_come_at_once(config: PretrainConfig) -> None:
    config.train.global_batch_size = 6
    config.scheduler.lr_wsd_decay_iters = None
    config.megatron = {"trian": {"x": 1}}
    config.recipe._target_ = "os.system"
    config.train.seq_length = 100_000
    words = " ".join(preflight(config).problems)
    for part in (
        "train.global_batch_size=6",
        "lr_wsd_decay_iters",
        "Did you mean 'train'?",
        "recipe._target_=os.system",
        "one sample of train.seq_length=100000",
    ):
        assert part in words


@pytest.mark.parametrize("backend", ["megatron", "transformers"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        pytest.param("logger.log_interval", 0, "logger.log_interval=0 must be at least 1", id="log"),
        pytest.param("checkpoint.save_interval", -1, "checkpoint.save_interval=-1 must be at least", id="save"),
        pytest.param("checkpoint.keep_last", -1, "checkpoint.keep_last=-1 must be at least 0", id="keep"),
        pytest.param("train.eval_iters", -3, "train.eval_iters=-3 must be at least 1", id="eval-iters"),
        pytest.param("train.eval_interval", -1, "train.eval_interval=-1 must be at least 0", id="eval-interval"),
        pytest.param("train.train_iters", 0, "train.train_iters=0 must be at least 1", id="length"),
        pytest.param("train.exit_iteration", 0, "train.exit_iteration=0 must be at least 1", id="exit"),
        pytest.param(
            "train.exit_duration_in_mins", -1.0, "exit_duration_in_mins=-1.0 must be at least 0", id="minutes"
        ),
        pytest.param("train.seed", -1, "train.seed=-1 must be between 0 and 4294967295", id="seed"),
        pytest.param("train.seed", 2**32, "train.seed=4294967296 must be between", id="large-seed"),
        pytest.param("model.hidden_size", -96, "model.hidden_size=-96 must be at least 1", id="width"),
        pytest.param("model.kv_channels", 0, "model.kv_channels=0 must be at least 1", id="head"),
        pytest.param("model.moe_router_topk", -2, "model.moe_router_topk=-2 must be at least 1", id="topk"),
        pytest.param("model.init_method_std", -0.02, "init_method_std=-0.02 must be at least 0", id="initial-weights"),
        pytest.param("model.layernorm_epsilon", float("inf"), "epsilon=inf must be at least 0", id="infinite-epsilon"),
        pytest.param("optimizer.lr", float("inf"), "optimizer.lr=inf must be a number, not infinite", id="infinite"),
        pytest.param("optimizer.lr", float("nan"), "optimizer.lr=nan must be at least 0", id="rate-nan"),
        pytest.param("optimizer.lr", -1.0, "optimizer.lr=-1.0 must be at least 0", id="rate"),
        pytest.param("optimizer.min_lr", -1.0, "optimizer.min_lr=-1.0 must be at least 0", id="last-rate"),
        pytest.param("optimizer.min_lr", 5.0, "min_lr=5 must not be greater than optimizer.lr=", id="rates"),
        pytest.param("optimizer.clip_grad", -1.0, "optimizer.clip_grad=-1.0 must be at least 0", id="clip"),
        pytest.param("optimizer.weight_decay", float("nan"), "optimizer.weight_decay=nan must be", id="nan"),
        pytest.param("optimizer.adam_beta2", 1.0, "optimizer.adam_beta2=1 must be at least 0 and below 1", id="beta"),
        pytest.param("model.vocab_size", 100, "less than the data's vocabulary of 4096", id="vocabulary"),
        pytest.param(
            "run.wandb.mode", "ofline", "run.wandb.mode=ofline: no such mode. Did you mean 'offline'?", id="w"
        ),
        pytest.param("run.name", "my run", "for example run.name=my-run", id="name-with-space"),
        pytest.param("run.name", "lr=1e-3", "for example run.name=lr-1e-3", id="name-with-equals"),
        pytest.param("run.name", "a/b", "for example run.name=a-b", id="name-with-slash"),
        pytest.param("run.name", "latest", "is reserved for the newest version", id="name-latest"),
        pytest.param("run.name", "v7", "is reserved for version 7", id="name-version"),
    ],
)
def test_values_that_no_run_can_have(config: PretrainConfig, backend: str, key: str, value: object, words: str) -> None:
    """Otherwise the rank would fail at its first log line, checkpoint or validation."""
    if backend == "transformers":
        config.backend, config.model = backend, model("quickstart")
    parent, _, leaf = key.rpartition(".")
    node = config
    for name in parent.split("."):
        node = getattr(node, name)
    setattr(node, leaf, value)
    problems = preflight(config).problems
    assert sum(words in p for p in problems) == 1, problems


def test_megatron_may_run_without_saving(config: PretrainConfig) -> None:
    config.checkpoint.save_interval = 0
    assert preflight(config).problems == []


def test_a_missing_wandb_is_reported_before_the_job(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.training.checks.value_checks.is_installed", lambda name: False)
    config.run.wandb.mode = "online"
    assert any("needs wandb, not installed" in p for p in preflight(config).problems)
    config.cluster.kind, config.cluster.container_runtime = "slurm", "pyxis"
    assert not any("wandb" in p for p in preflight(config).problems), "the container may have it"


def test_two_sources_of_weights_are_rejected(config: PretrainConfig) -> None:
    config.checkpoint.load = "/other/checkpoints"
    config.megatron = {"checkpoint": {"pretrained_checkpoint": "/hf"}}
    assert any("both name weights" in p for p in preflight(config).problems)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"num_attention_heads": 7}, "num_attention_heads=7 must be a multiple of model.num", id="groups"),
        pytest.param({"mamba_num_heads": 7}, "mamba_num_heads=7 must be a multiple of model.mamba_num", id="mamba"),
        pytest.param({"moe_router_topk": 9999}, "topk=9999 must not be greater than model.num_moe_e", id="experts"),
        pytest.param(
            {"num_attention_heads": 6, "num_query_groups": 2, "tensor_model_parallel_size": 4},
            "num_attention_heads=6 must be a multiple of model.tensor_model_parallel_size=4",
            id="ranks",
        ),
    ],
)
def test_sizes_that_megatron_cannot_divide(config: PretrainConfig, changes: dict, words: str) -> None:
    for name, value in changes.items():
        setattr(config.model, name, value)
    assert sum(words in p for p in preflight(config).problems) == 1, preflight(config).problems


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "moe_router_topk", "num_query_groups"])
def test_a_size_of_zero_is_reported_once(config: PretrainConfig, name: str) -> None:
    config.backend, config.model = "transformers", model("quickstart")
    setattr(config.model, name, 0)
    assert preflight(config).problems == [f"model.{name}=0 must be at least 1."]


def test_a_negative_rate_is_reported_once(config: PretrainConfig) -> None:
    """The maximum rate alone is reported, not its relation to the minimum rate."""
    config.optimizer.lr, config.optimizer.min_lr = -1.0, 5.0
    assert preflight(config).problems == ["optimizer.lr=-1.0 must be at least 0."]


def test_continuing_a_schedule_needs_the_run_that_started_it(config: PretrainConfig, tmp_path: Path) -> None:
    """train=phase2 alone would restart the schedule."""
    data = open_data(Path(config.run.data))
    config.checkpoint.keep_iteration = True
    config.checkpoint.save = config.checkpoint.load = "/own"
    assert any("checkpoint.load=OTHER/checkpoints" in p for p in preflight(config).problems)
    config.checkpoint.load = str(checkpoint(tmp_path / "other", 5, identity=run_identity(config, data)))
    assert preflight(config).problems == []


def test_megatrons_finetune_key_is_rejected(config: PretrainConfig) -> None:
    """It would reset the iteration to 0 at every restart."""
    config.megatron = {"checkpoint": {"finetune": True}}
    assert any("set by checkpoint.load (another folder" in p for p in preflight(config).problems)


def test_another_tokenizer_is_rejected_before_the_job(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    config.megatron = {"tokenizer": {"tokenizer_model": str(tmp_path)}}
    assert any("is not the tokenizer that made the data" in p for p in preflight(config).problems)


def test_another_blend_file_is_rejected(config: PretrainConfig, tmp_path: Path) -> None:
    config.recipe.per_split_data_args_path = str(tmp_path / "other.json")
    assert any("is not the blend of run.data" in p and "run.data=FOLDER" in p for p in preflight(config).problems)


def test_a_link_to_the_blend_is_the_blend(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(config.run.data)
    config.recipe.per_split_data_args_path = str(tmp_path / "link" / "blend.json")
    assert preflight(config).problems == []


PERFORMANCE = PERFORMANCE_RECIPES[0]


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed Megatron-Bridge with only the source of its recipes."""
    folder = tmp_path / "recipes" / "nemotronh"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "nemotron_3_nano.py").write_text(
        "raise SystemExit('imported')\nfrom elsewhere import nemotron_3_nano_pretrain_config, other_config\n"
    )
    performance = tmp_path / "perf_recipes" / "nemotronh"
    performance.mkdir(parents=True)
    (performance / "__init__.py").write_text(f"from elsewhere import {PERFORMANCE.rpartition('.')[2]}\n")
    monkeypatch.setattr("nano3.training.megatron.recipe_check._bridge_folder", lambda: tmp_path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param(
            NANO.replace("pretrain_config", "pretrian_config"), "'nemotron_3_nano_pretrain_config'", id="name"
        ),
        pytest.param(NANO.replace("nemotron_3_nano.", "nemotron_3_nanno."), f"Did you mean '{NANO}'?", id="module"),
        pytest.param(QWEN, "there is no module megatron.bridge.recipes.qwen.qwen3.", id="nothing-near"),
        pytest.param(
            PERFORMANCE.replace("bf16", "bf17"), f"Did you mean '{PERFORMANCE.rpartition('.')[2]}'", id="performance"
        ),
    ],
)
def test_a_recipe_missing_in_the_installed_bridge(
    config: PretrainConfig, bridge: None, target: str, words: str
) -> None:
    assert recipe_problems(NANO) == recipe_problems(PERFORMANCE) == []
    config.recipe._target_ = target
    assert any(words in p for p in preflight(config).problems), preflight(config).problems


def test_a_misspelled_recipe_is_reported_without_a_bridge(config: PretrainConfig) -> None:
    """A login node does not know every recipe, so it warns with the nearest known one."""
    config.recipe._target_ = NANO.replace("pretrain_config", "pretrian_config")
    assert any(f"Did you mean '{NANO}'?" in w for w in preflight(config).warnings)


def test_the_profile_for_one_hopper_gpu(config: PretrainConfig) -> None:
    """The measured setting fits: micro batch 16 of 4,096 tokens, no recomputation, the recipe's CUDA graphs."""
    from omegaconf import OmegaConf

    config.model, config.data_blend.name = model("nemotron_3_nano_1b"), "test"
    data = config.run.data
    profile = OmegaConf.load(ROOT / "conf/train/one_hopper.yaml")
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), profile))
    assert isinstance(merged, PretrainConfig)
    assert merged.train.micro_batch_size == 16 and merged.run.data == data
    assert not {"cuda_graph_impl", "cuda_graph_modules"} & set(merged.megatron["model"])
    settings = {s.path: s.value for s in override_settings(merged.megatron, load_bundled(NANO))}
    off = {name: value for name, value in settings.items() if value in (None, False)}
    assert off.keys() == {
        "model.recompute_granularity",
        "model.recompute_modules",
        "ddp.check_for_nan_in_grad",
        "ddp.check_for_large_grads",
        "rerun_state_machine.check_for_nan_in_loss",
        "train.check_optimizer_step_success",
    }
    assert settings.keys() - off.keys() == {"model.moe_router_fusion", "train.skip_sync_grad_norm_across_mp"}
    plan = preflight(merged)
    assert plan.problems == []
    assert not any("GB per GPU" in w for w in plan.warnings)


def test_estimates_are_for_the_gpu_of_the_run(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.training.cost.gpus.local_gpu", lambda: None)
    assumed = dict(preflight(config).rows)
    assert assumed["GPU"].startswith("H100, assumed") and " H100: " in assumed["time"]
    config.cluster.gpu = "gb200"
    chosen = dict(preflight(config).rows)
    assert "GPU" not in chosen and " GB200: " in chosen["time"]
    assert chosen["time"].partition(": ")[2] != assumed["time"].partition(": ")[2]
    config.cluster.gpu = "gb20"
    assert any("cluster.gpu=gb20: no such kind of GPU. Did you mean" in p for p in preflight(config).problems)


def test_a_run_that_does_not_fit_names_the_command_that_finds_what_fits(config: PretrainConfig) -> None:
    config.cluster.gpu = "h100"
    config.model = model("nemotron_3_nano")
    config.model.expert_model_parallel_size = 1
    words = " ".join(preflight(config).warnings)
    assert "GB per GPU do not fit into the 79 GB of one H100" in words and "nano3 plan" in words


def test_a_layout_that_megatron_refuses_is_refused_before(config: PretrainConfig) -> None:
    config.model = model("nemotron_3_nano")
    config.cluster.nproc_per_node, config.train.global_batch_size = 6, 12
    config.model.expert_model_parallel_size, config.model.pipeline_model_parallel_size = 1, 3
    config.model.tensor_model_parallel_size = 2
    words = " ".join(preflight(config).problems)
    assert "must divide the model's 52 layers" in words and "needs model.sequence_parallel=true" in words


def test_data_may_not_be_prepared_yet(config: PretrainConfig) -> None:
    """A run may be submitted before its preparation; the ranks check the data then."""
    config.run.data = "DataBlendsArtifact-pretrain:math"
    result = preflight(config)
    assert result.problems == []
    assert "data" not in dict(result.rows)


def test_repetition_is_reported(config: PretrainConfig) -> None:
    config.train.train_iters = 1000
    config.scheduler.lr_wsd_decay_iters = 200
    assert any("docs is repeated" in w for w in preflight(config).warnings)


def test_a_long_wait_for_rank_0_is_reported(config: PretrainConfig) -> None:
    """It names the command that builds the order before, and the limit at which NCCL gives up."""
    config.train.train_iters = 10**9
    (warning,) = [w for w in preflight(config).warnings if "Megatron's order" in w]
    assert "they give up after 10 min (megatron.dist.distributed_timeout_minutes). `nano3 index`" in warning
    config.megatron = {"dist": {"distributed_timeout_minutes": 600}}
    (warning,) = [w for w in preflight(config).warnings if "Megatron's order" in w]
    assert "for which all ranks wait. `nano3 index`" in warning
    config.train.train_iters = 1000
    assert not any("Megatron's order" in w for w in preflight(config).warnings)


def test_the_transformers_backend_rejects_keys_it_does_not_use(config: PretrainConfig) -> None:
    config.backend, config.model = "transformers", model("quickstart")
    assert preflight(config).problems == []
    config.megatron = {"model": {}}
    config.recipe._target_ = "nonsense"
    config.recipe.per_split_data_args_path = "other.json"
    first, second, third = preflight(config).problems
    assert first.startswith("megatron: is used by backend=megatron only")
    assert second.startswith("recipe._target_=nonsense is used by backend=megatron only")
    assert third.startswith("recipe.per_split_data_args_path=other.json is not the blend of run.data")


def test_the_schedule_is_shown(config: PretrainConfig) -> None:
    words = dict(preflight(config).rows)["learning rate"]
    assert words == "WSD: 2 iterations of warmup, 13 stable, 5 of decay (minus_sqrt); 0.001 to 1e-05"


def test_an_unknown_recipe_is_reported_not_guessed(config: PretrainConfig) -> None:
    config.recipe._target_, config.model = (
        "megatron.bridge.recipes.llama.llama3.llama3_8b_pretrain_config",
        ModelConfig(),
    )
    plan = preflight(config)
    assert any("is not recorded" in w for w in plan.warnings)
    assert not any("Did you mean" in w for w in plan.warnings), "nothing known is near"
    assert "parameters" not in dict(plan.rows)


def test_preflight_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "megatron", "hydra")
    script = f"import sys, nano3.training.preflight; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


SECTIONS = ("model", "train", "optimizer", "scheduler", "checkpoint", "logger")


NUMBERS = [
    (section, f.name, "float" in str(f.type))
    for section in SECTIONS
    for f in dataclasses.fields(getattr(PretrainConfig(), section))
    if str(f.type).startswith(("int", "float", "<class 'int'>", "<class 'float'>"))
]


WHOLE = st.sampled_from([-(10**12), -2, -1, 0, 1, 2, 3, 7, 10**12])


ANY = st.sampled_from([float("nan"), float("inf"), -0.5, 0.0, 1e-300, 1.0, 1e300])


def test_there_are_numbers_to_try() -> None:
    assert {("train", "seq_length", False), ("optimizer", "lr", True), ("model", "kv_channels", False)} <= set(NUMBERS)


@given(
    st.sampled_from(["megatron", "transformers"]),
    st.sampled_from([NANO, QWEN, "megatron.bridge.recipes.x.y"]),
    st.sampled_from([None, "quickstart", "nemotron_3_nano"]),
    st.lists(st.sampled_from(NUMBERS).flatmap(lambda n: st.tuples(st.just(n), ANY if n[2] else WHOLE)), max_size=3),
    st.integers(1, 9),
)
@example("megatron", NANO, None, [(("train", "micro_batch_size", False), 0)], 1)
def test_a_preflight_answers_for_any_numbers(
    backend: str, target: str, name: str | None, changes: list, ranks: int
) -> None:
    config = config_without_data(backend, target)
    config.model = model(name) if name else ModelConfig()
    config.cluster.nproc_per_node = ranks
    for (section, key, _), value in changes:
        setattr(getattr(config, section), key, value)
    plan = preflight(config)
    assert all(isinstance(text, str) and text for row in plan.rows for text in row)
    assert all(problem.strip().endswith((".", ")", "?")) for problem in plan.problems), plan.problems


ODD = st.sampled_from(["abc", "64", "", None, 2.5, True, [1], {"a": 1}, -1, 0, 8])


FREE = st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Architecture)] + ["num_layers"]), ODD)


@given(st.sampled_from([NANO, QWEN]), st.one_of(ODD, FREE), st.one_of(ODD, st.just({"pretrained_checkpoint": "x"})))
def test_a_preflight_answers_for_any_megatron_section(target: str, of_model: Any, checkpoint: Any) -> None:
    """`+megatron.model=x` and `+megatron.model.num_layers=abc` are reported without a traceback."""
    config = config_without_data("megatron", target)
    config.megatron = {"model": of_model, "checkpoint": checkpoint}
    problems = preflight(config).problems
    for name, value in config.megatron.items():
        if value is not None and not isinstance(value, dict):
            assert any(problem.startswith(f"megatron.{name}={value}: ") for problem in problems), problems


@pytest.mark.parametrize("value", ["abc", 2.5, [1]], ids=str)
def test_a_size_of_the_wrong_type_is_reported_and_not_used(value: Any) -> None:
    config = config_without_data("megatron", QWEN)
    config.megatron = {"model": {"num_layers": value}}
    plan = preflight(config)
    assert any(p.startswith(f"megatron.model.num_layers={value}: ") for p in plan.problems)
    plain = preflight(config_without_data("megatron", QWEN))
    assert dict(plan.rows)["parameters"] == dict(plain.rows)["parameters"], "the recipe's own number of layers"


@given(st.floats(1, 9e20) | st.integers(1, 9 * 10**20))
def test_a_short_number_has_three_digits_and_is_near(number: float) -> None:
    text = short_number(number)
    digits, _, unit = text.partition(" ")
    assert re.fullmatch(r"\d{1,3}(\.\d{1,2})?", digits), text
    size = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}[unit]
    assert float(digits) * size == pytest.approx(number, rel=0.006)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (999_499, "999 k"), (999_999, "1 M"), (-5e6, "-5 M"), (31.6e9, "31.6 B")],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.00 kB"), (1234, "1.23 kB"), (99_950, "100 kB"), (999_600, "1.00 MB"), (17_300_000, "17.3 MB"),
        (123_456_789, "123 MB"),
        (1_500_000_000, "1.50 GB"), (442e9, "442 GB"), (2_210e9, "2,210 GB"),
    ],
)  # fmt: skip
def test_sizes_in_bytes(size: float, text: str) -> None:
    assert size_text(size) == text


def test_a_small_disk_and_small_checkpoints_have_sizes(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.backend, config.model = "transformers", model("quickstart")
    config.checkpoint.save = str(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=31_400_000))
    (warning,) = preflight(config).warnings
    assert re.fullmatch(rf"{tmp_path} has 31\.4 MB free; the checkpoints need \d\d\.\d MB\.", warning)


@pytest.mark.parametrize(
    ("ranks", "threads", "cores", "fix"),
    [
        pytest.param(2, 2, 2, "2 ranks x train.threads=2 are more threads than this machine's 2 cores, ", id="ranks"),
        pytest.param(2, 2, 3, "several times slower; set train.threads=1 (or null).", id="rounded-down"),
        pytest.param(1, 2, 1, "1 rank x train.threads=2 are more threads than this machine's 1 core, ", id="threads"),
        pytest.param(4, 1, 2, "several times slower; start at most 2 ranks.", id="too-many-ranks"),
        pytest.param(1, 2, 2, None, id="one-rank"),
        pytest.param(2, 1, 2, None, id="one-thread"),
        pytest.param(2, None, 2, None, id="null"),
    ],
)
@pytest.mark.parametrize("torchrun", [False, True])
def test_more_threads_than_cores(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, ranks: int, threads: int | None, cores: int,
    fix: str | None, torchrun: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("nano3.training.preflight.local_gpu", lambda: None)
    config.backend, config.model, config.train.threads = "transformers", model("quickstart"), threads
    if torchrun:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
    else:
        config.cluster.nproc_per_node = ranks
    found = [warning for warning in preflight(config).warnings if "threads" in warning]
    assert (fix in found[0] and len(found) == 1) if fix else not found


@pytest.mark.parametrize("where", ["slurm", "gpu", "megatron"])
def test_threads_count_only_on_the_cpus_of_this_machine(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("nano3.training.preflight.local_gpu", lambda: GPU_KINDS["h200"] if where == "gpu" else None)
    config.train.threads = 8
    config.cluster.kind = "slurm" if where == "slurm" else "local"
    if where != "megatron":
        config.backend, config.model = "transformers", model("quickstart")
    assert not any("threads" in warning for warning in preflight(config).warnings)


@pytest.mark.parametrize(
    ("span", "words", "iterations"),
    [
        (IterationRange(0, 1700, 1700, 0), "1,700", 1700),
        (IterationRange(0, 100, 1700, 0), "100 (from 0 to 100 of 1,700)", 100),
        (IterationRange(1000, 1700, 1700, 1000), "700 (from 1,000 to 1,700 of 1,700)", 700),
        (IterationRange(1700, 1700, 1700, 1700), "0 (from 1,700 to 1,700 of 1,700)", 0),
        (IterationRange(200, 100, 1700, 200), "0 (from 200 to 100 of 1,700)", 0),
    ],
    ids=["whole", "a part", "the rest", "nothing", "beyond its exit"],
)
def test_the_iteration_range_of_a_command(span: IterationRange, words: str, iterations: int) -> None:
    assert (str(span), span.iterations) == (words, iterations)


@pytest.mark.parametrize(
    ("target", "megatron", "warned"),
    [
        (PERFORMANCE, {}, True),
        (PERFORMANCE, {"model": {"moe_router_force_load_balancing": False}}, False),
        (NANO, {"model": {"moe_router_force_load_balancing": True}}, True),
        (NANO, {}, False),
    ],
    ids=["performance", "to-learn", "own", "library"],
)
def test_forced_balance_is_for_benchmarks(config: PretrainConfig, target: str, megatron: dict, warned: bool) -> None:
    config.recipe._target_, config.megatron = target, megatron
    assert any("experts get random tokens" in w for w in preflight(config).warnings) == warned


def test_multi_token_prediction_is_shown(config: PretrainConfig) -> None:
    config.model = model("nemotron_3_5_lightning_micro")
    rows = dict(preflight(config).rows)
    assert rows["multi-token"] == "2 tokens after the next one, by 3.81 M of the parameters"
    config.model.mtp_num_layers = 0
    assert "multi-token" not in dict(preflight(config).rows)
