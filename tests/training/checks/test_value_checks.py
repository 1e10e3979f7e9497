"""Invalid values are reported once each with their key, and valid ones are not."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.artifacts import wandb_mirror
from nano3.artifacts.names import alias_problem
from nano3.config import ModelConfig, PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.checks.value_checks import (
    LARGEST_SEED,
    initial_weights_problems,
    model_value_problems,
    run_name_problems,
    run_section_problems,
    value_problems,
    vocabulary_problems,
)


def changed(**changes: Any) -> PretrainConfig:
    """Return the default configuration with changes by dotted key."""
    config = PretrainConfig()
    for key, value in changes.items():
        node: Any = config
        *parents, leaf = key.split(".")
        for name in parents:
            node = getattr(node, name)
        assert hasattr(node, leaf), key
        setattr(node, leaf, value)
    return config


LEAST = {
    "train.train_iters": 1, "train.seq_length": 2, "train.eval_interval": 0, "train.eval_iters": 1, "train.threads": 1,
    "train.exit_iteration": 1, "train.exit_duration_in_mins": 0, "logger.log_interval": 1, "checkpoint.keep_last": 0,
    "checkpoint.save_interval": 0, "optimizer.lr": 0, "optimizer.min_lr": 0, "optimizer.adam_eps": 0,
    "optimizer.weight_decay": 0, "optimizer.clip_grad": 0,
}  # fmt: skip


@pytest.mark.parametrize(("key", "least"), LEAST.items())
def test_the_minimum_is_allowed_and_less_is_not(key: str, least: int) -> None:
    assert value_problems(changed(**{key: least})) == []
    assert value_problems(changed(**{key: least - 1})) == [f"{key}={least - 1} must be at least {least}."]


@pytest.mark.parametrize("key", [key for key in LEAST if key.startswith("optimizer.")])
def test_non_finite_values_are_reported_once(key: str) -> None:
    assert len(value_problems(changed(**{key: math.nan}))) == 1
    infinite = value_problems(changed(**{key: math.inf}))
    never = key == "optimizer.clip_grad"  # a limit that nothing exceeds
    assert infinite == ([] if never else [f"{key}=inf must be a number, not infinite."])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.eval_interval": 0, "train.eval_iters": 0}, []),
        ({"train.eval_interval": 5, "train.eval_iters": 0}, ["train.eval_iters=0 must be at least 1."]),
        ({"checkpoint.save_interval": 0}, []),
        (
            {"checkpoint.save_interval": 0, "backend": "transformers"},
            ["checkpoint.save_interval=0 must be at least 1."],
        ),
        (
            {"checkpoint.save_interval": 0, "checkpoint.export_every": 2},
            ["checkpoint.export_every needs checkpoints to export, and checkpoint.save_interval is 0."],
        ),
        ({"checkpoint.export_every": -1}, ["checkpoint.export_every=-1 must be at least 0."]),
        ({"train.threads": None, "train.exit_iteration": None, "train.exit_duration_in_mins": None}, []),
        ({"train.seed": LARGEST_SEED}, []),
        ({"train.seed": LARGEST_SEED + 1}, [f"train.seed={LARGEST_SEED + 1} must be between 0 and {LARGEST_SEED}."]),
        ({"optimizer.adam_beta1": 0.0, "optimizer.adam_beta2": 0.999999}, []),
        ({"optimizer.adam_beta1": -0.1}, ["optimizer.adam_beta1=-0.1 must be at least 0 and below 1."]),
        ({"optimizer.adam_beta2": math.nan}, ["optimizer.adam_beta2=nan must be at least 0 and below 1."]),
    ],
    ids=[
        "no validation", "validation of nothing", "megatron never saves", "transformers must",
        "no exports without checkpoints", "negative exports", "nulls", "largest seed", "too large a seed",
        "betas", "negative beta", "beta that is no number",
    ],
)  # fmt: skip
def test_limits_that_depend_on_other_keys(changes: dict[str, Any], words: list[str]) -> None:
    assert value_problems(changed(**changes)) == words


@given(st.dictionaries(st.sampled_from(sorted(LEAST)), st.integers(-3, 3)))
def test_every_invalid_value_is_reported_and_no_other(changes: dict[str, int]) -> None:
    config = changed(**changes)
    interval = config.train.eval_interval
    least = LEAST | {"train.eval_iters": 1 if interval else 0}
    wrong = {key for key, value in changes.items() if value < least[key]}
    assert {problem.partition("=")[0] for problem in value_problems(config)} == wrong


@pytest.mark.parametrize("name", [f.name for f in fields(ModelConfig)])
def test_each_size_of_a_model(name: str) -> None:
    kind = str(ModelConfig.__annotations__[name])
    least = 0 if name == "mtp_num_layers" else 1
    wrong: list[Any] = [least - 1, -3] if "int" in kind else [-0.1, math.nan, math.inf] if "float" in kind else []
    right: list[Any] = (
        [least] if "int" in kind else [0.0, 2.5] if "float" in kind else [True] if "bool" in kind else ["M"]
    )
    for value in wrong:
        (problem,) = model_value_problems(replace(ModelConfig(), **{name: value}))
        assert problem.startswith(f"model.{name}={value} must be at least ")
    for value in (None, *right):
        assert model_value_problems(replace(ModelConfig(), **{name: value})) == []


@pytest.mark.parametrize(("size", "fits"), [(None, True), (4096, True), (5000, True), (4095, False), (0, False)])
def test_a_vocabulary_holds_all_ids(size: int | None, fits: bool) -> None:
    problems = vocabulary_problems(changed(**{"model.vocab_size": size}), 4096)
    assert (problems == []) is fits
    assert fits or "Leave it null, or give at least 4096." in problems[0]


WEIGHTS = {"checkpoint": {"pretrained_checkpoint": "/hf"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"megatron": WEIGHTS}, ""),
        ({"checkpoint.load": "/b", "checkpoint.save": "/a"}, ""),
        ({"checkpoint.load": "/a", "checkpoint.save": "/a", "megatron": WEIGHTS}, ""),
        ({"checkpoint.load": "/b", "checkpoint.save": "/a", "megatron": WEIGHTS}, "both name weights"),
        ({"checkpoint.keep_iteration": True}, "checkpoint.load=OTHER/checkpoints"),
        (
            {"checkpoint.keep_iteration": True, "checkpoint.load": "/a", "checkpoint.save": "/a"},
            "continues another run's",
        ),
        ({"checkpoint.keep_iteration": True, "checkpoint.load": "/b", "checkpoint.save": "/a"}, ""),
    ],
    ids=["fresh", "weights", "load", "resume of it", "two", "nothing kept", "its own kept", "another's kept"],
)
def test_a_run_has_one_source_of_weights(changes: dict[str, Any], words: str) -> None:
    problems = initial_weights_problems(changed(**changes))
    assert len(problems) == bool(words)
    assert all(words in problem for problem in problems)


@given(st.text(max_size=140))
def test_the_suggested_name_is_valid(name: str) -> None:
    """Any name is valid or is reported with a valid one."""
    problems = run_name_problems(name)
    assert bool(problems) == (alias_problem(name) is not None)
    for problem in problems:
        suggested = problem.rpartition("run.name=")[2].removesuffix(".")
        assert run_name_problems(suggested) == [], problem


@pytest.mark.parametrize("mode", [*wandb_mirror.MODES, "on", "Online", ""])
def test_modes_of_wandb(mode: str) -> None:
    """Whether wandb is installed matters only to ranks in this Python."""
    words = [p for p in run_section_problems(changed(**{"run.wandb.mode": mode}), here=False) if "no such mode" in p]
    assert len(words) == (mode not in wandb_mirror.MODES)
    assert all(problem.startswith(f"run.wandb.mode={mode}: ") for problem in words)


@pytest.mark.parametrize("section", ["x", None, 3, [], {}], ids=str)
def test_an_invalid_section_is_empty(section: Any) -> None:
    config = PretrainConfig(megatron={"checkpoint": section})
    assert megatron_section(config, "checkpoint") == megatron_section(config, "model") == {}
    assert initial_weights_problems(config) == []
