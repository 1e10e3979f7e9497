"""`nano3 scaling`: from run folders to a law, a page, and what speaks against its prediction."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from nano3.cli.app import register_config, to_typed_config
from nano3.cli.config_groups import conf_dir
from nano3.config import PretrainConfig
from nano3.tools import scaling
from nano3.training.reports.scaling_law import Point
from nano3.training.reports.scaling_points import MeasuredRun, counted_parameters, measure_run, training_tokens
from nano3.training.run.record import DataReference, save_run_config
from nano3.utils.errors import Failure, UserError

DATA = DataReference("Data:v1", "/data", "content")
SIZES, TOKENS = ("1m", "2m", "4m"), (5, 10, 20)


@pytest.fixture(scope="module")
def configs() -> dict[tuple[str, float], PretrainConfig]:
    """The points of a sweep as `+experiment=scaling_cpu` composes them."""
    register_config()
    found = {}
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for size in SIZES:
            for tokens in TOKENS:
                words = ["+experiment=scaling_cpu", f"ladder.size={size}", f"ladder.tokens_per_parameter={tokens}"]
                found[size, tokens] = to_typed_config(compose("pretrain", [*words, "run.data=/tmp"]))
    return found


def loss_of(config: PretrainConfig) -> float:
    """A law with an irreducible loss of 2, and a little noise."""
    parameters, tokens = counted_parameters(config)[0], training_tokens(config)
    noise = math.sin(parameters + tokens) / 1000
    return (2 + 60 / parameters**0.3 + 400 / tokens**0.35) * (1 + noise)


def write_run(folder: Path, config: PretrainConfig, data: DataReference = DATA, **changes: Any) -> Path:
    """Write what a finished run leaves, apart from its checkpoints."""
    config = replace(config, run=replace(config.run, output_dir=str(folder), data="/data"))
    iterations = changes.pop("iterations", config.train.train_iters)
    save_run_config(folder, config, data, [])
    lines: list[dict[str, Any]] = [{"iteration": iterations, "loss": 3.0, "consumed_tokens": 1}]
    loss = changes.pop("loss", loss_of(config))
    lines.append({"iteration": iterations, "valid_loss": loss, "valid_loss/a": loss, "valid_loss/b": loss})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "finished.json").write_text(json.dumps({"iteration": iterations, "checkpoint": None}))
    assert not changes
    return folder


def write_sweep(folder: Path, configs: dict[tuple[str, float], PretrainConfig]) -> Path:
    for (size, tokens), config in configs.items():
        write_run(folder / f"{size}-{tokens}", config)
    return folder


def fitted(tmp_path: Path, *words: str, folder: Path | None = None) -> str:
    """Run the tool and return its page."""
    page = tmp_path / "page.html"
    given = argparse.Namespace(runs=[str(folder or tmp_path / "sweep")], output=str(page), predict=list(words))
    assert scaling.run(given) == 0
    return page.read_text()


def test_a_sweep_becomes_a_law_with_a_prediction(
    tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "sweep", configs)
    page = fitted(tmp_path, "model=ladder", "train=ladder", "ladder.size=10m", "train.seq_length=256")
    shown = " ".join(capsys.readouterr().out.split())
    assert "L = E + A / N^a + B / D^b" in shown and "check: without 4m-20 the law predicts" in shown
    assert "model=ladder train=ladder ladder.size=10m train.seq_length=256 (1." in shown
    assert "predicted loss" in shown and "9 points for 5 constants are few" in shown
    assert "<svg" in page and page.count("<tr>") == 1 + 5 + 1 + 9
    for size in SIZES:
        assert f"{size}-20" in page


def test_the_full_model_is_far_away(
    tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "sweep", configs)
    fitted(tmp_path, *scaling.FULL_MODEL)
    shown = " ".join(capsys.readouterr().out.split())
    assert "+experiment=nano3 (2.88 B active parameters, 25 T tokens): predicted loss" in shown
    assert "times the compute of the largest run: a guess, not a prediction" in shown


def test_one_ratio_of_tokens_predicts_only_runs_of_that_ratio(
    tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, config in enumerate(one for (_, tokens), one in configs.items() if tokens == 20):
        write_run(tmp_path / "sweep" / str(number), config)
    with pytest.raises(Failure, match="3 finished runs are too few for a law with 3 constants: it needs 4"):
        fitted(tmp_path, *scaling.FULL_MODEL)
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["epochs", "loss"]  # no empty columns of a law
    bigger = replace(configs["4m", 20], train=replace(configs["4m", 20].train, train_iters=10))
    larger = replace(bigger.model, hidden_size=208, moe_ffn_hidden_size=144)
    iterations = round(20 * counted_parameters(replace(bigger, model=larger))[0] / 256 / 16)
    train = replace(bigger.train, train_iters=iterations, global_batch_size=16, eval_iters=6)
    write_run(tmp_path / "sweep" / "3", replace(bigger, model=larger, train=train))
    fitted(tmp_path, *scaling.FULL_MODEL)
    shown = " ".join(capsys.readouterr().out.split())
    assert "L = E + K / C^k" in shown
    assert "no prediction. It has 8,694 tokens per parameter, and the runs have 20" in shown
    assert "Vary ladder.tokens_per_parameter" in shown
    fitted(tmp_path, "model=ladder", "train=ladder", "ladder.size=10m")
    assert "predicted loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"seq_length": 512}}, "odd: train.seq_length is 512, and 256 in 9 other runs"),
        ({"train": {"seed": 7}}, "odd: train.seed is 7"),
        ({"train": {"document_boundaries": "isolate"}}, "document_boundaries is isolate, and cross"),
        ({"train": {"eval_iters": 1}}, "ladder.eval_samples is a multiple of the largest batch"),
        (
            {"train": {"mixture": [{"until": "50%", "blend": {"a": 1}}, {"blend": {"b": 1}}]}},
            "odd: train.mixture is not that of 9 other runs: their losses cannot be compared",
        ),
        ({}, "odd: data (with its tokenizer) is other, and content in 9 other runs"),
    ],
    ids=["length", "seed", "boundaries", "validation", "mixture", "data"],
)
def test_runs_that_cannot_be_compared_are_named(
    tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig], change: dict[str, dict], message: str
) -> None:
    write_sweep(tmp_path / "sweep", configs)
    config = replace(configs["1m", 5], train=replace(configs["1m", 5].train, **change.get("train", {})))
    write_run(tmp_path / "sweep" / "odd", config, DATA if change else DataReference("Data:v2", "/data", "other"))
    with pytest.raises(UserError) as raised:
        fitted(tmp_path, *scaling.FULL_MODEL)
    assert any(message in problem for problem in raised.value.problems)
    assert all(problem.startswith("odd: ") for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("tokens", "text"), [(0.05e6, "0.05"), (0.1e6, "0.1"), (5e6, "5"), (20e6, "20"), (8_694e6, "8,694")]
)
def test_tokens_for_each_parameter(tokens: float, text: str) -> None:
    assert scaling.ratio_text(Point("a", 1e6, tokens, 3.0)) == text


def test_unfinished_runs_and_lost_losses_are_left_out_by_name(
    tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "sweep", configs)
    write_run(folder / "half", configs["1m", 5], iterations=7)
    write_run(folder / "spiked", configs["1m", 5], loss=math.nan)
    (write_run(folder / "going", configs["1m", 5]) / "finished.json").unlink()
    fitted(tmp_path, *scaling.FULL_MODEL)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "left out: half: at 7 of" in shown and "left out: going: not finished of" in shown
    assert "left out: spiked: its validation loss is nan" in shown


def test_parameters_are_those_of_the_ladder(tmp_path: Path, configs: dict[tuple[str, float], PretrainConfig]) -> None:
    from nano3.config.ladder import TOP_K, shape_of_size

    found = measure_run("x", write_run(tmp_path / "x", configs["2m", 10]))
    assert isinstance(found, MeasuredRun)
    shape = shape_of_size("2m")
    assert (found.point.parameters, found.total) == (shape.parameters(TOP_K), shape.parameters())
    assert found.point.tokens == pytest.approx(10 * shape.parameters(TOP_K), rel=0.05)


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no key 'modle'"):
        scaling.read_target(["modle=ladder"])
    with pytest.raises(UserError, match="--predict nano3: expected KEY=VALUE"):
        scaling.read_target(["nano3"])
