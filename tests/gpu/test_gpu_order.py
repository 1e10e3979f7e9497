"""nano3's own order of samples with Megatron-Bridge on a real GPU, and the same tokens in both backends."""

import math
import statistics

import pytest
from gpu_runs import BOTH, DENSE, LAYOUTS, MARKS, Runs, gpus

from nano3.training.order.plan import read_plan

pytestmark = MARKS
# 200 short iterations. Stages change after 60 and 140; the run is stopped at 100 and resumed with another mixture.
SETTINGS = [
    "train.seq_length=256",
    "train.global_batch_size=8",
    "train.train_iters=200",
    "train.eval_interval=0",
    "logger.log_interval=1",
    "checkpoint.save_interval=100",
]
PLANNED = ["train.sample_order=nano3"]
FIRST = "train.mixture=[{until: 30%, blend: {docs: 0.5, code: {tokens: 4e4}}}, {blend: {math: 1, docs: 1}}]"
CHANGED = (
    "train.mixture=[{until: 30%, blend: {docs: 0.5, code: {tokens: 4e4}}}, {until: 70%, blend: {docs: {tokens: 6e4}, "
    "code: 1}}, {blend: {math: {weight: 2, max_epochs: 3}, code: 1}}]"
)
MEGATRON, TRANSFORMERS = ["train.micro_batch_size=4"], ["backend=transformers", "train.micro_batch_size=8"]


BACKENDS = {"order_megatron": MEGATRON, "order_transformers": TRANSFORMERS}


def train_both(runs: Runs, *words: str) -> list[str]:
    """Train with both backends at a time, and return what they print."""
    started = [runs.start(name, *SETTINGS, *PLANNED, *own, *words) for name, own in BACKENDS.items()]
    return [runs.finish(process) for process in started]


def hashes(runs: Runs, name: str) -> dict[int, int]:
    """Return the hash of each iteration's token ids, and assert that each line is about one iteration."""
    steps = runs.steps(name)
    assert all(step["data_hash_steps"] == 1 and math.isfinite(step["loss"]) for step in steps.values())
    return {iteration: step["data_hash"] for iteration, step in steps.items()}


def test_both_backends_read_the_same_tokens_over_stages_and_a_changed_mixture(runs: Runs) -> None:
    train_both(runs, FIRST, "train.exit_iteration=100")
    for text in train_both(runs, CHANGED):
        assert "resuming from iteration 100" in text
        assert "the mixture changes after iteration 100" in text and "train.mixture was" in text
        assert "stage 4 of 4, iterations 141 to 200: math 66.7%, code 33.3%" in text
    found = hashes(runs, "order_megatron")
    assert sorted(found) == list(range(1, 201)) and len(set(found.values())) == 200
    assert found == hashes(runs, "order_transformers")
    assert read_plan(runs.dir("order_megatron")) == read_plan(runs.dir("order_transformers"))
    for name in BACKENDS:
        text = runs("-m", "nano3", "trace", name, "--audit", "--all")
        assert "200 hashes of 200 iterations, the last one 200: all as planned" in text
    plan = read_plan(runs.dir("order_megatron"))
    assert plan and [(stage.first, stage.end) for stage in plan.stages] == [(0, 60), (60, 100), (100, 140), (140, 200)]
    for name in BACKENDS:
        last = runs.steps(name)[200]
        assert {key: value for key, value in last.items() if key.startswith("epochs/")} == plan.epoch_metrics(200)


def test_megatrons_own_order_is_audited_and_costs_the_same(runs: Runs) -> None:
    """The hash is also that of Megatron's samples; the speeds of both orders are printed."""
    more = ["train.exit_iteration=100", *MEGATRON]
    runs.train("order_plain", *SETTINGS, *more)
    runs.train("order_planned", *SETTINGS, *PLANNED, *more)
    text = runs("-m", "nano3", "trace", "order_plain", "--audit", "--all")
    assert "100 hashes of 100 iterations, the last one 100: all as planned" in text
    for name in ("order_plain", "order_planned"):
        steps = runs.steps(name)
        speeds = [steps[iteration]["tokens_per_s"] for iteration in range(21, 101)]
        print(f"{name}: {statistics.median(speeds):,.0f} tokens/s")


def test_validation_in_nano3s_order(runs: Runs) -> None:
    """Megatron-Bridge validates with the samples of the same provider, also after a resume."""
    words = [*SETTINGS, *PLANNED, *MEGATRON, "train.train_iters=40", "train.eval_interval=10", "train.eval_iters=3"]
    words += ["checkpoint.save_interval=20"]
    runs.train("order_validated", *words, "train.exit_iteration=20")
    runs.train("order_validated", *words)
    from nano3.training.run.metrics import read_metrics

    lines = [line for line in read_metrics(runs.dir("order_validated")) if "valid_loss" in line]
    assert [line["iteration"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"]
    text = runs("-m", "nano3", "trace", "order_validated", "--audit", "--all")
    assert "40 hashes of 40 iterations, the last one 40: all as planned" in text


@pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")
def test_two_gpus_read_the_same_tokens_as_one(runs: Runs) -> None:
    """As data-parallel ranks, and as one model whose layers or samples are split over both."""
    words = [*DENSE, *SETTINGS, *PLANNED, FIRST, *MEGATRON, "train.exit_iteration=30", "checkpoint.save_interval=30"]
    words += ["train.seq_length=1024"]  # cuDNN has no attention for samples of up to 512 tokens that are split
    started = [runs.start("order_one", *words)]
    dense = {name: changes for name, changes in LAYOUTS.items() if "experts" not in name}
    layouts = {f"order_{name.replace(' ', '_')}": changes for name, changes in dense.items()}
    for name, changes in layouts.items():
        started.append(runs.start(name, *words, *changes, **BOTH))
    for process in started:
        runs.finish(process)
    one = hashes(runs, "order_one")
    assert {name: hashes(runs, name) for name in layouts} == dict.fromkeys(layouts, one)
