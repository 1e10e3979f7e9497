"""Settings of Megatron-Bridge's container from the typed sections and the `megatron:` dict."""

import dataclasses
import enum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_helpers import LIGHTNING, NANO, NANO_4B, QWEN, ROOT, config_without_data, model
from omegaconf import OmegaConf

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.checks.model_stats import count_layers
from nano3.training.megatron.backend import check
from nano3.training.megatron.recipe import field_getter
from nano3.training.megatron.schema import RECIPES, Field, Schema, load_bundled
from nano3.training.megatron.settings import (
    CONTAINER_FIELDS,
    Setting,
    apply_settings,
    hybrid_stage_problems,
    mtp_problems,
    override_settings,
    pattern_problems,
    recompute_key_problems,
    setting_problems,
    typed_settings,
)
from nano3.training.preflight import (
    preflight,
)
from nano3.utils.errors import Failure


def as_dict(settings: list[Setting]) -> dict[str, object]:
    return {s.path: s.value for s in settings}


@pytest.mark.parametrize("name", ["nemotron_3_nano", "nemotron_3_nano_micro"])
def test_every_typed_key_exists_in_the_recipe(config: PretrainConfig, name: str) -> None:
    config.model = model(name)
    assert setting_problems(typed_settings(config), load_bundled(NANO)) == []


def test_the_tiny_experiments_recipe_takes_the_typed_keys(config: PretrainConfig) -> None:
    config.model = ModelConfig(hidden_size=512)
    assert setting_problems(typed_settings(config), load_bundled(QWEN)) == []


def test_a_hybrid_key_is_rejected_for_a_dense_recipe(config: PretrainConfig) -> None:
    problems = setting_problems(typed_settings(config), load_bundled(QWEN))
    assert any(
        p.startswith("model.hybrid_layer_pattern=MEM*EMEM: there is no") and "leave it null" in p for p in problems
    )


def test_one_key_sets_all_fields_that_must_agree(config: PretrainConfig) -> None:
    config.optimizer.weight_decay = 0.07
    config.train.seq_length = 512
    found = as_dict(typed_settings(config))
    assert (
        found["scheduler.start_weight_decay"]
        == found["scheduler.end_weight_decay"]
        == found["optimizer.weight_decay"]
        == 0.07
    )
    assert found["model.seq_length"] == found["dataset.seq_length"] == 512
    assert found["scheduler.lr_decay_iters"] == found["train.train_iters"] == 20
    assert found["rng.seed"] == found["dataset.random_seed"] == 1234
    assert found["model.num_layers"] == 8


def test_zero_disables_a_feature(config: PretrainConfig) -> None:
    config.checkpoint.keep_last = 0
    config.train.eval_interval = 0
    found = as_dict(typed_settings(config))
    assert found["checkpoint.most_recent_k"] == -1
    assert found["validation.eval_interval"] is None
    assert found["validation.eval_iters"] == 0


def test_a_null_leaves_the_recipes_model(config: PretrainConfig) -> None:
    config.model = ModelConfig()
    assert not [s for s in typed_settings(config) if s.path.startswith("model.") and s.path != "model.seq_length"]


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("MEM*EMEM", 8), ("MEM*|EMEM", 8), ("M-M-*E/*E", 6), ("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", 52)],
)
def test_layers_of_a_pattern(pattern: str, layers: int) -> None:
    assert count_layers(pattern) == layers


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        pytest.param({"model": {"recompute_granularityy": "full"}}, "Did you mean 'recompute_granularity'?", id="typo"),
        pytest.param({"trian": {"x": 1}}, "Did you mean 'train'?", id="section"),
        pytest.param({"ddp": {"bucket_size": "abc"}}, "'abc' is a str; expected int or null", id="type"),
        pytest.param({"train": {"train_iters": 5}}, "set by train.train_iters", id="owned-by-a-typed-key"),
        pytest.param({"model": {"hidden_size": 5}}, "set by model.hidden_size", id="owned-by-the-model-group"),
        pytest.param({"dataset": {"blend": None}}, "set by run.data", id="owned-by-the-data"),
        pytest.param({"dataset": {"mock": True}}, "set by run.data", id="no-mock-data"),
        pytest.param({"checkpoint": {"save": "/x"}}, "set by checkpoint.save", id="owned-by-the-run"),
        pytest.param({"validation": {"skip_train": True}}, "a run always trains", id="no-training"),
        pytest.param({"train": {"manual_gc": "yes"}}, "'yes' is a str; expected bool", id="bool"),
    ],
)
def test_an_invalid_override_is_rejected(tree: dict, words: str) -> None:
    problems = setting_problems(override_settings(tree, load_bundled(NANO)), load_bundled(NANO))
    assert len(problems) == 1
    assert words in problems[0]
    assert problems[0].startswith("megatron.")


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(
            {"model": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}},
            id="recompute",
        ),
        pytest.param({"model": {"recompute_modules": None, "cuda_graph_modules": ["attn", "mamba"]}}, id="lists"),
        pytest.param({"model": {"num_layers": 4}}, id="layers-of-a-dense-model"),
        pytest.param({"mixed_precision": "bf16_mixed"}, id="precision-by-name"),
        pytest.param({"mixed_precision": {"fp8": "hybrid"}}, id="precision-field"),
        pytest.param({"optimizer": {"exp_avg_dtype": "bf16"}}, id="dtype"),
        pytest.param({"comm_overlap": None}, id="unset-a-section"),
        pytest.param({"env_vars": {"NCCL_DEBUG": "INFO"}}, id="environment"),
        pytest.param({"checkpoint": {"async_save": True, "pretrained_checkpoint": "/x"}}, id="checkpoint"),
    ],
)
def test_a_valid_override_passes(tree: dict) -> None:
    assert setting_problems(override_settings(tree, load_bundled(NANO)), load_bundled(NANO)) == []


def test_all_problems_come_at_once() -> None:
    tree = {"model": {"a": 1, "b": 2}, "ddp": {"bucket_size": "x"}}
    assert len(setting_problems(override_settings(tree, load_bundled(NANO)), load_bundled(NANO))) == 3


class Mode(enum.Enum):
    none = 0
    full = 1


@dataclasses.dataclass
class Section:
    size: int = 1
    mode: Mode = Mode.none


@dataclasses.dataclass
class Container:
    part: Section = dataclasses.field(default_factory=Section)
    unset: Section | None = None
    named: Section | str = "by name"


SCHEMA = Schema(
    "r",
    {},
    {k: Field(("section",), (), "Section") for k in ("part", "unset", "named")},
    {"Section": {"size": Field(("int",)), "mode": Field(("choice",), ("none", "full"))}},
)


def test_apply_sets_fields_and_creates_unset_sections() -> None:
    whole = Container()
    apply_settings(
        whole, [Setting("part.size", 7, ""), Setting("part.mode", "FULL", ""), Setting("unset.size", 9, "")], SCHEMA
    )
    assert (whole.part.size, whole.part.mode, whole.unset) == (7, Mode.full, Section(9))
    apply_settings(whole, [Setting("unset", None, "")], SCHEMA)
    assert whole.unset is None


def test_a_dict_is_merged_into_the_recipes() -> None:
    holder = SimpleNamespace(env_vars={"A": "1", "B": "2"})
    apply_settings(holder, override_settings({"env_vars": {"B": "3"}}, load_bundled(NANO)), load_bundled(NANO))
    assert holder.env_vars == {"A": "1", "B": "3"}


def test_a_section_held_by_name_cannot_be_set() -> None:
    with pytest.raises(Failure, match="holds named by its name"):
        apply_settings(Container(), [Setting("named.size", 1, "")], SCHEMA)


def test_dtypes_become_torch_dtypes() -> None:
    torch = pytest.importorskip("torch")
    holder = SimpleNamespace(optimizer=SimpleNamespace(exp_avg_dtype=torch.float32))
    apply_settings(holder, [Setting("optimizer.exp_avg_dtype", "bf16", "")], load_bundled(NANO))
    assert holder.optimizer.exp_avg_dtype is torch.bfloat16


def test_every_field_is_in_the_recorded_schema() -> None:
    for paths in CONTAINER_FIELDS.values():
        for path in paths:
            assert load_bundled(NANO).lookup(path)[1] is None, path


PATTERNS = {
    "hybrid": ("MEM*E-", None),
    "stages": ("ME|*E", None),
    "more-after-the-stack": ("ME/*E", None),
    "null": (None, None),
    "empty": ("", "model.hybrid_layer_pattern= has no layer; allowed: M Mamba-2"),
    "only-a-cut": ("|/M", "has no layer"),
    "a-cut-after-the-stack": ("ME/*|E", "model.hybrid_layer_pattern=ME/*|E has | after /, where no stage ends"),
    "cuts-in-both": ("E|E/*|E", "has | after /"),
    "small-letters": ("me*", "model.hybrid_layer_pattern=me* has e m; allowed: M Mamba-2, E experts"),
    "commas": ("M,E,M", "has ,; allowed"),
}


@pytest.mark.parametrize(("pattern", "words"), PATTERNS.values(), ids=PATTERNS)
def test_an_invalid_pattern_is_reported_before_the_job(pattern: str | None, words: str | None) -> None:
    problems = pattern_problems(pattern)
    assert len(problems) == (words is not None)
    assert words is None or words in problems[0]
    config = config_without_data("megatron", NANO)
    config.model.hybrid_layer_pattern = pattern
    config.model.pipeline_model_parallel_size = (pattern or "").partition("/")[0].count("|") + 1
    assert [p for p in preflight(config).problems if "hybrid_layer_pattern" in p] == problems


@given(st.fixed_dictionaries({}, optional={"seed": st.integers(0, 9), "train_iters": st.integers(1, 99)}))
def test_a_key_arrives_in_every_field(changes: dict[str, int]) -> None:
    """Applied to a container, each field of a key has the key's value."""
    config = PretrainConfig()
    for name, value in changes.items():
        setattr(config.train, name, value)
    parts = ("train", "model", "dataset", "rng", "validation", "optimizer", "scheduler", "logger", "checkpoint")
    container = SimpleNamespace(**{part: SimpleNamespace() for part in parts})
    apply_settings(container, typed_settings(config), load_bundled(NANO))
    get = field_getter(container)
    for name in changes:
        assert [get(path) for path in CONTAINER_FIELDS[f"train.{name}"]] == [changes[name]] * len(
            CONTAINER_FIELDS[f"train.{name}"]
        )


@given(st.dictionaries(st.sampled_from(["NCCL_DEBUG", "A"]), st.text(max_size=3)), st.integers(0, 4))
def test_an_override_is_flattened_to_fields(env: dict[str, str], size: int) -> None:
    """The value of a dict field stays a dict."""
    found = override_settings({"ddp": {"bucket_size": size}, "env_vars": env}, load_bundled(NANO))
    assert found == [
        Setting("ddp.bucket_size", size, "megatron.ddp.bucket_size"), Setting("env_vars", env, "megatron.env_vars"),
    ]  # fmt: skip


def test_turned_off_multi_token_prediction_leaves_no_layers(config: PretrainConfig) -> None:
    """Megatron-Bridge would build the layers of a pattern and then fail in the first step."""
    config.model = model("nemotron_3_5_lightning_micro")
    assert as_dict(typed_settings(config))["model.mtp_hybrid_override_pattern"] == "*E"
    config.model.mtp_num_layers = 0
    found = as_dict(typed_settings(config))
    assert (found["model.mtp_num_layers"], found["model.mtp_hybrid_override_pattern"]) == (0, None)
    assert setting_problems(typed_settings(config), load_bundled(LIGHTNING)) == []


def test_a_pattern_sets_the_number_of_its_further_tokens(config: PretrainConfig) -> None:
    """The recipe's own number, 0, would make Megatron fail in the first step."""
    config.model.hybrid_layer_pattern = "ME*/ME/ME"
    found = as_dict(typed_settings(config))
    assert (found["model.mtp_num_layers"], found["model.mtp_hybrid_override_pattern"]) == (2, "ME")
    assert mtp_problems(config, load_bundled(NANO)) == []


@pytest.mark.parametrize(
    ("keys", "megatron", "words"),
    [
        (
            {"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*E"},
            {"mtp_num_layers": 1},
            "this is set by model.mtp_num_layers; set it there",
        ),
        ({"hybrid_layer_pattern": "ME/*E/ME"}, {}, "the parts after / must be equal"),
        ({"hybrid_layer_pattern": "ME/"}, {}, "the parts after / must be equal"),
        ({"hybrid_layer_pattern": "ME/*E", "mtp_num_layers": 0}, {}, "model.mtp_num_layers=0: model.hybrid_layer_patt"),
        ({"hybrid_layer_pattern": "ME/*E", "mtp_hybrid_override_pattern": "ME"}, {}, "says *E. Leave out one of them"),
        ({"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*|E"}, {}, "override_pattern=*|E has |; allowed: M"),
        ({}, {"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*E/*E"}, "override_pattern=*E/*E has /; allowed"),
        ({"mtp_num_layers": 2}, {}, "model.mtp_num_layers=2: there are no layers for it."),
        ({}, {"mtp_num_layers": 1}, "model.mtp_num_layers=1: there are no layers for it."),
        ({"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*E"}, {}, ""),
        ({}, {"mtp_num_layers": 2, "mtp_hybrid_override_pattern": "*E"}, ""),
    ],
)
def test_multi_token_prediction_is_described_once(
    config: PretrainConfig, keys: dict, megatron: dict, words: str
) -> None:
    config.model, config.megatron = dataclasses.replace(config.model, **keys), {"model": megatron}
    problems = [p for p in preflight(config).problems if "mtp_" in p or "hybrid_layer_pattern" in p]
    assert problems == [p for p in problems if words and words in p], problems
    assert bool(problems) == bool(words)


# Members of conf/ -> the recipe whose values they repeat.
FROM_RECIPES = {
    "model/nemotron_3_nano": NANO,
    "model/nemotron_3_5_lightning": LIGHTNING,
    "model/nemotron_3_nano_4b": NANO_4B,
    "train/nemotron_3_5_lightning": LIGHTNING,
    "train/nemotron_3_nano_4b": NANO_4B,
    "train/perf_h100_lightning": "nemotron_3_5_lightning_pretrain_16gpu_h100_bf16_config",
    "train/perf_h100": "nemotron_3_nano_pretrain_16gpu_h100_bf16_config",
    **{
        f"train/perf_{kind}": f"nemotron_3_nano_pretrain_8gpu_{kind}_bf16_config"
        for kind in ("b200", "b300", "gb200", "gb300", "vr200")
    },
}
# Where conf/ differs: the scheduler of these recipes overrides the optimizer's weight decay.
DIFFERS = [("optimizer.weight_decay", 0.033)]


@pytest.mark.parametrize("member", FROM_RECIPES)
def test_members_of_conf_repeat_their_recipe(config: PretrainConfig, member: str) -> None:
    known = load_bundled(next(r for r in RECIPES if r.endswith(FROM_RECIPES[member])))
    assert_values(member, known)
    if member.startswith("train/perf_") and "h100" not in member and "vr200" not in member:
        name = FROM_RECIPES[member].replace("nemotron_3_nano", "nemotron_3_5_lightning")
        assert_values(member, load_bundled(next(r for r in RECIPES if r.endswith(name))))


def assert_values(member: str, known: Schema) -> None:
    """Assert that every key of a member has the value of a recorded recipe."""
    raw = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / f"{member}.yaml"))
    assert isinstance(raw, dict)
    tree = {"model": raw} if member.startswith("model/") else raw
    free = override_settings(tree.pop("megatron", {}), known)
    assert setting_problems(free, known) == []
    settings = [(s.path, s.value) for s in free]
    for section, keys in tree.items():
        for key, value in keys.items():
            paths = CONTAINER_FIELDS.get(f"{section}.{key}", (f"{section}.{key}",))
            settings += [(path, value) for path in paths if path != "scheduler.lr_decay_iters"]
    for path, value in settings:
        recorded = known.value(path)
        recorded = recorded.removeprefix("torch.") if isinstance(recorded, str) else recorded
        recorded = {k: recorded.get(k) for k in value} if path == "env_vars" else recorded
        if (path, value) not in DIFFERS and path != "validation.eval_iters":
            assert recorded == value, (member, path, recorded, value)
    assert len(settings) > 5


FULL = {"recompute_granularity": "full"}
LAYERS = {"recompute_method": "uniform", "recompute_num_layers": 1}


@pytest.mark.parametrize(
    ("of_model", "words"),
    [
        pytest.param({}, None, id="recipe"),
        pytest.param(FULL | LAYERS, None, id="full"),
        pytest.param(
            FULL, "++megatron.model.recompute_method=uniform ++megatron.model.recompute_num_layers=1", id="bare"
        ),
        pytest.param(FULL | {"recompute_method": "block"}, "needs to know which layers", id="no number"),
        pytest.param(LAYERS, "++megatron.model.recompute_num_layers=null", id="selective"),
        pytest.param({"recompute_granularity": None} | LAYERS, None, id="nothing"),
    ],
)
def test_recomputation_of_whole_layers_says_which(config: PretrainConfig, of_model: dict, words: str | None) -> None:
    config.megatron = {"model": of_model}
    problems = recompute_key_problems(config, load_bundled(NANO))
    assert problems == [] if words is None else words in problems[0]


@pytest.mark.parametrize(
    ("pipeline", "megatron", "problem"),
    [
        pytest.param(
            1, {"model": {"virtual_pipeline_model_parallel_size": 1}}, "has no virtual stages of hybrid", id="virtual"
        ),
        pytest.param(
            2, {"model": {"num_layers_in_first_pipeline_stage": 3}}, "marks uneven pipeline stages with |", id="uneven"
        ),
        pytest.param(
            2,
            {"comm_overlap": {"overlap_moe_expert_parallel_comm": True}},
            "needs virtual stages with model.pipeline_model_parallel_size=2",
            id="overlap",
        ),
        pytest.param(1, {"comm_overlap": {"overlap_moe_expert_parallel_comm": True}}, None, id="overlap-one-stage"),
        pytest.param(1, {"model": {"num_layers_in_first_pipeline_stage": 3}}, None, id="uneven-one-stage"),
    ],
)
def test_stages_of_hybrid_models_are_marked_in_the_pattern(
    pipeline: int, megatron: dict[str, Any], problem: str | None
) -> None:
    config = config_without_data("megatron", NANO)
    config.model.pipeline_model_parallel_size, config.megatron = pipeline, megatron
    found = hybrid_stage_problems(config, load_bundled(NANO))
    assert len(found) == (problem is not None) and all(problem in text for text in found if problem)
    assert hybrid_stage_problems(config, load_bundled(QWEN)) == []
    assert set(found) <= set(check(config))


def test_a_field_without_a_key_says_why_it_has_none() -> None:
    config = config_without_data("megatron", NANO)
    config.megatron = {"dist": {"use_decentralized_pg": True}}
    reason = "nano3 reads Megatron's global process groups"
    assert f"megatron.dist.use_decentralized_pg: leave it out: {reason}." in check(config)
