"""Properties of every schedule: it rises once, holds, falls once, and ends at the minimum rate."""

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_processes import Child

from nano3.config import PretrainConfig
from nano3.training.checks.lr_schedule import (
    DECAY_STYLES,
    WSD_DECAY_STYLES,
    schedule_problems,
    schedule_summary,
    with_default_decay,
)


@dataclass(frozen=True)
class Shape:
    """A schedule; `stable` is the number of iterations between warmup and decay."""

    style: str
    warmup: int
    stable: int
    decay: int
    lr: float
    min_lr: float
    batch: int

    @property
    def iters(self) -> int:
        return self.warmup + self.stable + self.decay

    @property
    def config(self) -> PretrainConfig:
        config = PretrainConfig(backend="transformers")
        style, _, wsd_style = self.style.partition(" ")
        config.train = replace(config.train, train_iters=self.iters, global_batch_size=self.batch, micro_batch_size=1)
        config.optimizer = replace(config.optimizer, lr=self.lr, min_lr=self.min_lr)
        config.scheduler.lr_decay_style, config.scheduler.lr_warmup_iters = style, self.warmup
        config.scheduler.lr_wsd_decay_iters = self.decay
        if wsd_style:
            config.scheduler.lr_wsd_decay_style = wsd_style
        return config


ALL = [*(f"WSD {style}" for style in WSD_DECAY_STYLES), *(style for style in DECAY_STYLES if style != "WSD")]


def shapes() -> list[Shape]:
    """Return five schedules per style, including no warmup, no stable phase, and the shortest decay."""
    draw = random.Random(7)
    found = []
    for style in ALL:
        for warmup, stable, decay in ((0, 5, 4), (6, 0, 9), (3, 7, 1), (1, 1, 1), (draw.randint(2, 9), 4, 12)):
            lr = 10 ** draw.uniform(-5, 0)
            found.append(Shape(style, warmup, stable, decay, lr, lr * draw.choice([0, 0.01, 1]), draw.randint(1, 9)))
    return found


def rates(of: list[Shape]) -> list[list[float]]:
    """Return, per shape, the rate of each iteration and of three after the last, from the run's scheduler."""
    import torch

    from nano3.training.checks.lr_schedule import make_scheduler

    tables = []
    for shape in of:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make_scheduler(optimizer, shape.config)
        table = []
        for _ in range(shape.iters + 3):
            table.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step(shape.batch)
        tables.append(table)
    return tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, list[float]]:
    """Computed in one child process, so that this process does not import torch."""
    log = Path(tmp_path_factory.mktemp("shapes")) / "log.txt"
    return dict(zip(shapes(), Child(rates, (shapes(),), log).result(), strict=True))


each = pytest.mark.parametrize("shape", shapes(), ids=lambda s: f"{s.style}-{s.warmup}-{s.stable}-{s.decay}")


@each
def test_the_configuration_has_no_problem(shape: Shape) -> None:
    assert schedule_problems(shape.config) == []


@each
def test_no_rate_is_negative_or_above_the_highest(shape: Shape, tables: dict) -> None:
    assert all(0 <= rate <= shape.lr * (1 + 1e-9) for rate in tables[shape])


@each
def test_warmup_is_linear_from_zero(shape: Shape, tables: dict) -> None:
    line = [shape.lr * k / shape.warmup for k in range(shape.warmup)]
    assert tables[shape][: shape.warmup] == pytest.approx(line)


@each
def test_the_highest_rate_is_reached_where_warmup_ends(shape: Shape, tables: dict) -> None:
    assert max(tables[shape]) == pytest.approx(shape.lr)
    assert tables[shape][shape.warmup] == pytest.approx(shape.lr)


@each
def test_after_warmup_it_never_rises(shape: Shape, tables: dict) -> None:
    after = tables[shape][shape.warmup :]
    assert all(a >= b - 1e-12 * shape.lr for a, b in pairwise(after))


@each
def test_the_stable_phase_is_constant(shape: Shape, tables: dict) -> None:
    if shape.style.startswith("WSD"):
        stable = tables[shape][shape.warmup : shape.warmup + shape.stable + 1]
        assert stable == pytest.approx([shape.lr] * (shape.stable + 1))


@each
def test_it_ends_at_the_lowest_rate_and_stays_there(shape: Shape, tables: dict) -> None:
    """The end is after the last iteration; further iterations keep that rate."""
    end = tables[shape][shape.iters :]
    if shape.style == "constant":
        assert end == pytest.approx([shape.lr] * 3)
    elif shape.style == "inverse-square-root":
        assert min(end) >= shape.min_lr
    else:
        assert end == pytest.approx([shape.min_lr] * 3, abs=1e-12 * shape.lr)


@each
def test_no_step_is_larger_than_the_shape_allows(shape: Shape, tables: dict) -> None:
    """Of all decays, the square root falls fastest: at first by 1/sqrt(n) of the total in n iterations."""
    falls = shape.decay if shape.style.startswith("WSD") else shape.iters - shape.warmup
    after = tables[shape][shape.warmup :]
    largest = max(a - b for a, b in pairwise(after))
    if shape.style != "inverse-square-root":  # falls from the first sample on, at once to a third without warmup
        assert largest <= (shape.lr - shape.min_lr) / falls**0.5 + 1e-9 * shape.lr


@given(
    st.integers(1, 5000), st.integers(-3, 5003), st.none() | st.integers(-3, 5003), st.sampled_from(["WSD", "cosine"])
)
def test_lengths_are_rejected_exactly_when_they_do_not_fit(
    iters: int, warmup: int, decay: int | None, style: str
) -> None:
    config = PretrainConfig()
    config.train.train_iters, config.scheduler.lr_decay_style = iters, style
    config.scheduler.lr_warmup_iters, config.scheduler.lr_wsd_decay_iters = warmup, decay
    fits = 0 <= warmup < iters and (style != "WSD" or (decay is not None and 1 <= decay <= iters - warmup))
    assert (schedule_problems(config) == []) is fits
    assert not any(
        "between 1 and 0" in problem or "between 1 and -" in problem for problem in schedule_problems(config)
    )
    problems = " ".join(schedule_problems(config))
    assert ("lr_warmup_iters=" in problems.partition(" must")[0] or "lr_wsd" in problems) is not fits


@given(st.integers(1, 10**6), st.floats(0, 0.7))
def test_the_default_decay_fits_after_any_usual_warmup(iters: int, share: float) -> None:
    config = PretrainConfig()
    config.train.train_iters, config.scheduler.lr_warmup_iters = iters, int(iters * share)
    given_length = with_default_decay(config)
    assert schedule_problems(given_length) == []
    assert with_default_decay(given_length) == given_length
    assert config.scheduler.lr_wsd_decay_iters is None, "the configuration itself is left alone"


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("cosine", "cosine: 32 iterations of warmup; 0.001 to 1e-05"),
        ("constant", "constant: 32 iterations of warmup; 0.001"),
        ("WSD", "WSD: 32 iterations of warmup; 0.001 to 1e-05"),
    ],
    ids=["no decay length", "no lowest rate", "length not known yet"],
)
def test_the_summary_names_what_matters_to_the_style(style: str, words: str) -> None:
    config = PretrainConfig()
    config.scheduler.lr_decay_style = style
    assert schedule_summary(config) == words
