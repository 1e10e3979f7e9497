"""The learning-rate schedule against formulas, and its error messages."""

import math
from pathlib import Path

import pytest
from training_processes import Child, tiny_config

from nano3.config import PretrainConfig
from nano3.training.checks.lr_schedule import schedule_problems, schedule_summary, with_default_decay

ITERS, WARMUP, DECAY, LR, MIN = 20, 4, 6, 1e-2, 1e-4


def expected(style: str, wsd_style: str, done: int) -> float:
    """Return the rate after `done` iterations."""
    if done <= WARMUP:
        return LR * done / WARMUP
    share = (done - WARMUP) / (ITERS - WARMUP)
    if style == "constant":
        return LR
    if style == "inverse-square-root":
        return max(MIN, LR * math.sqrt(WARMUP) / math.sqrt(done))
    if style == "linear":
        return MIN + (LR - MIN) * (1 - share)
    if style == "cosine":
        return MIN + (LR - MIN) * (1 + math.cos(math.pi * share)) / 2
    into = max(0, done - (ITERS - DECAY)) / DECAY
    shape = {
        "minus_sqrt": 1 - math.sqrt(into),
        "linear": 1 - into,
        "cosine": (1 + math.cos(math.pi * into)) / 2,
        "exponential": 2 * 0.5**into - 1,
    }
    return MIN + (LR - MIN) * shape[wsd_style]


CASES = [
    *[("WSD", wsd) for wsd in ("minus_sqrt", "linear", "cosine", "exponential")],
    *[(style, "minus_sqrt") for style in ("cosine", "linear", "inverse-square-root", "constant")],
]


def config(style: str, wsd_style: str) -> PretrainConfig:
    return tiny_config(
        **{
            "train.train_iters": ITERS,
            "scheduler.lr_decay_style": style,
            "scheduler.lr_wsd_decay_style": wsd_style,
            "scheduler.lr_warmup_iters": WARMUP,
            "scheduler.lr_wsd_decay_iters": DECAY,
            "optimizer.lr": LR,
            "optimizer.min_lr": MIN,
        }
    )


def rates(configs: list[PretrainConfig]) -> list[list[tuple[float, float, float]]]:
    """Return, per config, (rate, decay of matrices, decay of vectors) before each iteration and after the last."""
    import torch

    from nano3.training.checks.lr_schedule import make_scheduler
    from nano3.training.hf.components import make_optimizer

    tables = []
    for c in configs:
        optimizer = make_optimizer(torch.nn.Linear(2, 2), c)
        scheduler = make_scheduler(optimizer, c)
        table = []
        for _ in range(ITERS + 1):
            matrices, vectors = optimizer.param_groups
            assert matrices["lr"] == vectors["lr"]
            table.append((matrices["lr"], matrices["weight_decay"], vectors["weight_decay"]))
            scheduler.step(c.train.global_batch_size)
        tables.append(table)
    return tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    log = Path(tmp_path_factory.mktemp("schedule")) / "log.txt"
    return dict(zip(CASES, Child(rates, ([config(*case) for case in CASES],), log).result(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_rates_follow_the_formula(case: tuple[str, str], tables: dict) -> None:
    assert [row[0] for row in tables[case]] == pytest.approx([expected(*case, done) for done in range(ITERS + 1)])


def test_only_matrices_decay(tables: dict) -> None:
    assert {row[1:] for table in tables.values() for row in table} == {(0.1, 0.0)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler.lr_decay_style": "wsd"}, ["Allowed: WSD"]),
        ({"scheduler.lr_wsd_decay_style": "square"}, ["lr_wsd_decay_style=square", "minus_sqrt"]),
        ({"scheduler.lr_wsd_decay_iters": None}, ["scheduler.lr_wsd_decay_iters=2"]),
        ({"scheduler.lr_wsd_decay_iters": 11}, ["between 1 and 10"]),
        ({"scheduler.lr_warmup_iters": 12}, ["less than train.train_iters=12"]),
        ({"optimizer.min_lr": 1.0}, ["optimizer.min_lr=1"]),
        ({"scheduler.lr_warmup_iters": -1, "optimizer.lr": 1e-6}, ["lr_warmup_iters=-1", "optimizer.min_lr"]),
    ],
    ids=["style", "decay style", "no decay", "long decay", "long warmup", "rates", "two at once"],
)
def test_problems(changes: dict, words: list[str]) -> None:
    problems = "\n".join(schedule_problems(tiny_config(**changes)))
    assert all(text in problems for text in words), problems


@pytest.mark.parametrize(
    ("changes", "decay"),
    [
        ({"scheduler.lr_wsd_decay_iters": None}, 2),
        ({"scheduler.lr_wsd_decay_iters": None, "train.train_iters": 1700}, 340),
        ({"scheduler.lr_wsd_decay_iters": None, "train.train_iters": 3}, 1),
        ({"scheduler.lr_wsd_decay_iters": 5}, 5),
        ({"scheduler.lr_wsd_decay_iters": None, "scheduler.lr_decay_style": "cosine"}, None),
    ],
    ids=["a fifth", "the default", "at least one", "given", "not for cosine"],
)
def test_null_takes_a_fifth_of_the_run(changes: dict, decay: int | None) -> None:
    assert with_default_decay(tiny_config(**changes)).scheduler.lr_wsd_decay_iters == decay


def test_the_schedule_in_words() -> None:
    config = with_default_decay(PretrainConfig())
    words = "WSD: 32 iterations of warmup, 1,328 stable, 340 of decay (minus_sqrt); 0.001 to 1e-05"
    assert schedule_summary(config) == words


def test_good_schedules_have_no_problems() -> None:
    assert [schedule_problems(config(*case)) for case in CASES] == [[]] * len(CASES)
