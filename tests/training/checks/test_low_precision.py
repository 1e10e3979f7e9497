"""FP8, MXFP8 and NVFP4: which sizes of a model and its batch are refused, and what the messages tell to type."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from megatron_helpers import ROOT, architecture_of

from nano3.config import PretrainConfig
from nano3.config.ladder import shape_of_size
from nano3.tools.plan import check_precision, compose_run, read_request
from nano3.training.checks.ladder_check import precision_hints
from nano3.training.checks.low_precision import BF16, MULTIPLES, token_problems, width_problems, widths
from nano3.training.checks.lr_schedule import with_default_decay
from nano3.training.checks.model_stats import Architecture, architecture_from_config
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.cost.gpus import GPU_KINDS, precision_problem
from nano3.training.cost.workload import workload_from_config
from nano3.training.megatron.schema import load_bundled
from nano3.training.preflight import preflight
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import UserError

MEGATRON_MODELS = [path.stem for path in (ROOT / "conf" / "model").glob("nemotron*.yaml")]
LADDER = ("model=ladder", "train=ladder", "data_blend=sample")
FP8 = "+megatron.mixed_precision.fp8=hybrid"


@pytest.mark.parametrize("name", MEGATRON_MODELS)
@pytest.mark.parametrize("precision", [BF16, *MULTIPLES])
def test_every_model_of_nemotron_fits(name: str, precision: str) -> None:
    """But for the micro models in blocks of 32: their in_proj has 4,112 = 257 x 16 columns."""
    refused = precision in ("mxfp8", "nvfp4") and name.endswith("_micro")
    assert bool(width_problems(architecture_of(name, 131072), 1, precision)) == refused


def every_kind() -> Architecture:
    return Architecture(
        {"M": 2, "E": 2, "*": 2, "-": 2}, 256, 4096, 8, 2, 32, 512, mamba_num_heads=32, mamba_head_dim=16,
        mamba_state_dim=32, mamba_num_groups=2, num_moe_experts=8, moe_router_topk=2, moe_ffn_hidden_size=128,
        moe_shared_expert_intermediate_size=256,
    )  # fmt: skip


# Key, a value that does not fit, the tensor-parallel size, what the message names.
UNFIT = {
    "mamba heads": ("mamba_num_heads", 10, 1, "Mamba's in_proj has 2 x mamba_num_heads x mamba_head_dim"),
    "hidden size": ("hidden_size", 264, 1, "every layer has hidden_size = 264"),
    "attention": ("kv_channels", 9, 1, "attention's linear_qkv has (num_attention_heads + 2 x num_query_groups) x kv_"),
    "dense": ("ffn_hidden_size", 520, 1, "the dense MLP has ffn_hidden_size = 520. Set model.ffn_hidden_size=512 or"),
    "experts": ("moe_ffn_hidden_size", 100, 1, "every expert has moe_ffn_hidden_size = 100"),
    "shared": ("moe_shared_expert_intermediate_size", 40, 1, "the shared expert has moe_shared_expert_intermediate"),
    "tensor": ("ffn_hidden_size", 32, 8, "(ffn_hidden_size) / model.tensor_model_parallel_size=8 = 4."),
}


@pytest.mark.parametrize("precision", MULTIPLES)
@pytest.mark.parametrize(("key", "value", "tensor", "words"), UNFIT.values(), ids=UNFIT)
def test_a_width_is_named_with_values_that_fit(precision: str, key: str, value: int, tensor: int, words: str) -> None:
    unfit = replace(every_kind(), **{key: value})
    problems = [problem for problem in width_problems(unfit, tensor, precision) if words in problem]
    assert problems and f"multiples of {MULTIPLES[precision]} on every rank" in problems[0]
    assert "++megatron.mixed_precision=bf16_mixed" in problems[0]
    choices = re.findall(r"model\.(\w+)=(\d+) or|model\.(\w+)=(\d+), or", problems[0])
    assert choices or key == "kv_channels", problems[0]
    for name, number in ([part for part in choice if part] for choice in choices):
        changed = replace(unfit, **{name: int(number)})
        assert not any(w.value % MULTIPLES[precision] for w in widths(changed, tensor) if w.key == name), problems[0]
    assert width_problems(unfit, tensor, BF16) == []


def test_tensor_parallelism_divides_widths() -> None:
    """Nano's in_proj has 10,304 = 322 x 32 columns; a quarter of it is 161 x 16, an eighth 161 x 8."""
    nano = architecture_of("nemotron_3_nano", 131072)
    refused = {(p, t) for p in MULTIPLES for t in (1, 2, 4, 8) if width_problems(nano, t, p)}
    assert refused == {("mxfp8", 4), ("nvfp4", 4), *((precision, 8) for precision in MULTIPLES)}
    assert "or a smaller model.tensor_model_parallel_size, or train in bf16" in width_problems(nano, 8, "fp8")[0]


def test_multi_token_prediction_projects_to_a_share_of_the_hidden_size() -> None:
    a = replace(every_kind(), layers={"E": 2}, mtp_layers={"E": 1}, mtp_depths=1, hidden_size=288)
    assert width_problems(a, 2, "fp8") == [] != width_problems(a, 4, "fp8")
    assert width_problems(replace(a, mtp_depths=0), 4, "fp8") == []


@pytest.mark.parametrize(
    ("tokens", "split", "refused"),
    [(8192, 1024, set()), (48, 48, {"mxfp8", "nvfp4"}), (100, 100, set(MULTIPLES)), (32, 4, set(MULTIPLES))],
)
def test_tokens_of_a_micro_batch(tokens: int, split: int, refused: set[str]) -> None:
    assert {p for p in [BF16, *MULTIPLES] if token_problems(tokens, split, p)} == refused


def config_of(*words: str) -> PretrainConfig:
    return with_default_decay(compose_run(CommandLine.parse(words)))


SETTINGS = {
    "nothing": ([], BF16),
    "field": ([FP8], "fp8"),
    "mx": ([FP8, "+megatron.mixed_precision.fp8_recipe=mxfp8"], "mxfp8"),
    "block": ([FP8, "+megatron.mixed_precision.fp8_recipe=blockwise"], "fp8"),
    "delayed": ([FP8, "+megatron.mixed_precision.fp8_recipe=delayed"], "fp8_delayed"),
    "name of delayed": (["+megatron.mixed_precision=bf16_with_fp8_delayed_scaling_mixed"], "fp8_delayed"),
    "four": (["+megatron.mixed_precision.fp4=e2m1"], "nvfp4"),
    "name": (["+megatron.mixed_precision=bf16_with_fp8_current_scaling_mixed"], "fp8"),
    "name of mx": (["+megatron.mixed_precision=bf16-with-mxfp8-mixed"], "mxfp8"),
    "name of four": (["+megatron.mixed_precision=bf16_with_nvfp4_mixed"], "nvfp4"),
    "back to bf16": ([FP8, "++megatron.mixed_precision=bf16_mixed"], BF16),
}


@pytest.mark.parametrize(("words", "precision"), SETTINGS.values(), ids=SETTINGS)
def test_the_precision_of_a_run(words: list[str], precision: str) -> None:
    config = config_of("+experiment=nano3", *words)
    known = load_bundled(config.recipe._target_)
    model = architecture_from_config(config, known, 131072)
    assert model is not None
    w = workload_from_config(config, known, model, parallel_layout(config, known))
    assert (w.precision, w.fp8) == (precision, "fp8" in precision)


def test_the_precision_of_recorded_recipes() -> None:
    for ending, precision in (("fp8cs", "fp8"), ("fp8mx", "mxfp8"), ("nvfp4", "nvfp4"), ("bf16", BF16)):
        gpus = "16gpu_h100" if ending == "fp8cs" else "8gpu_b200"
        target = f"megatron.bridge.perf_recipes.nemotronh.nemotron_3_nano_pretrain_{gpus}_{ending}_config"
        config = config_of("+experiment=nano3", f"recipe._target_={target}")
        w = workload_from_config(config, load_bundled(target), every_kind(), parallel_layout(config, None))
        assert w.precision == precision


def test_a_size_of_the_ladder_names_the_sizes_next_to_it_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(*LADDER, "ladder.size=410m", FP8)
    problems = preflight(config).problems
    assert any("Mamba's in_proj has 2 x mamba_num_heads" in p and "Set model.mamba_num_heads=" in p for p in problems)
    hint = next(p for p in problems if p.startswith("ladder.size=410m: "))
    near = re.findall(r"ladder\.size=(\d+m)(?!:)", hint)
    assert near == ["390m", "420m"]
    for size in near:
        heads = shape_of_size(size).mamba_num_heads
        assert heads % 16 == 0
        assert preflight(config_of(*LADDER, f"ladder.size={size}", FP8)).problems == []
    assert preflight(config_of(*LADDER, "ladder.size=410m")).problems == []


def test_a_size_with_no_fitting_neighbor_below() -> None:
    config = config_of(*LADDER, "ladder.size=100m")
    model = architecture_from_config(config, load_bundled(config.recipe._target_), 131072)
    assert model is not None
    (hint,) = precision_hints(config, model, 1, "fp8")
    assert hint == "ladder.size=100m: the sizes next to it that fit FP8: ladder.size=360m."
    assert precision_hints(config, model, 1, BF16) == []


def test_gpus_have_their_precisions() -> None:
    able = {p: {g.name for g in GPU_KINDS.values() if not precision_problem(p, g)} for p in [BF16, *MULTIPLES]}
    blackwell = {"b200", "b300", "gb200", "gb300"}
    hopper = {"h100", "h200"} | blackwell
    assert able == {
        BF16: set(GPU_KINDS), "fp8": hopper, "fp8_delayed": hopper, "mxfp8": blackwell, "nvfp4": blackwell
    }  # fmt: skip


@pytest.mark.parametrize(("gpu", "refused"), [("h100", True), ("b200", False), (None, False)])
def test_a_run_knows_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: str | None, refused: bool) -> None:
    """A GPU that is only assumed for the estimates refuses nothing."""
    monkeypatch.chdir(tmp_path)
    config = config_of(
        "model=nemotron_3_nano_1b", "data_blend=sample", "+megatron.mixed_precision=bf16_with_mxfp8_mixed"
    )
    config.cluster.gpu = gpu
    problems = preflight(config).problems
    assert any("the H100 has no matrix products in MXFP8. These have: b200" in p for p in problems) == refused
    assert refused or not problems


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([*LADDER, "ladder.size=350m", FP8, "gpus=8"], "ladder.size=350m: the sizes next to it", id="size"),
        pytest.param([*LADDER, "ladder.size=350m", FP8, "gpus=8"], "Mamba's in_proj", id="width"),
        pytest.param(["+experiment=nano3", FP8, "gpus=8", "gpu=a100"], "gpu=a100: the A100 has no", id="gpu"),
    ],
)
def test_nothing_is_planned_that_no_layout_can_multiply(words: list[str], message: str) -> None:
    from nano3.tools.plan import base_workload

    request = read_request(words)
    base = base_workload(request.config, load_bundled(request.config.recipe._target_))
    with pytest.raises(UserError) as raised:
        check_precision(request, base)
    assert any(message in problem for problem in raised.value.problems)
