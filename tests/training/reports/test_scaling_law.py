"""The fit of a scaling law: it finds known constants, its intervals hold, and it knows what it cannot tell."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.training.reports.scaling_law import Law, Point, fit, least_points, usable_terms

SIZES, RATIOS = (1e7, 2e7, 4e7, 8e7), (10, 20, 40)


def true_loss(n: float, d: float, e: float = 1.69, a: float = 0.34, b: float = 0.28) -> float:
    """The law of Hoffmann et al. as published."""
    return e + 406.4 / n**a + 410.7 / d**b


def measured(noise: float, seed: int = 0, ratios: tuple[float, ...] = RATIOS, **constants: float) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(f"{n:g} {r}", n, n * r, true_loss(n, n * r, **constants) * math.exp(noise * rng.normal()))
        for n in SIZES
        for r in ratios
    ]


def constants(law: Law) -> dict[str, tuple[float, float, float]]:
    return {name: values for name, *values in law.constants()}  # type: ignore[misc]


@given(st.floats(0.3, 2.2), st.floats(0.25, 0.5), st.floats(0.2, 0.45))
@settings(max_examples=15)
def test_exact_losses_give_back_their_constants(e: float, a: float, b: float) -> None:
    law = fit(measured(0, e=e, a=a, b=b), ("N", "D"), draws=2)
    found = constants(law)
    for name, value in {"E": e, "A": 406.4, "a": a, "B": 410.7, "b": b}.items():
        assert found[name][0] == pytest.approx(value, rel=1e-4)
    far = Point("", 3e9, 2e13, 0)
    assert law.predict(far)[0] == pytest.approx(true_loss(3e9, 2e13, e=e, a=a, b=b), rel=1e-6)


def coverage(repeats: int, draws: int) -> tuple[float, float]:
    """The shares of repeats whose intervals hold the true E and the true loss at ten times the largest size."""
    target, hits = Point("", 8e8, 1.6e10, 0), [0, 0]
    for seed in range(repeats):
        law = fit(measured(0.005, seed), ("N", "D"), draws=draws)
        _, low, high = law.predict(target)
        hits[0] += constants(law)["E"][1] <= 1.69 <= constants(law)["E"][2]
        hits[1] += low <= true_loss(8e8, 1.6e10) <= high
    return hits[0] / repeats, hits[1] / repeats


def test_intervals_hold_the_truth() -> None:
    """Intervals of 90 % that often miss would be the narrow ones that Besiroglu et al. describe."""
    assert min(coverage(5, 60)) >= 0.6


@pytest.mark.slow
def test_intervals_hold_the_truth_about_nine_times_of_ten() -> None:
    assert min(coverage(40, 150)) >= 0.8


def test_more_noise_makes_wider_intervals_and_one_bad_run_little_harm() -> None:
    target = Point("", 8e8, 1.6e10, 0)
    narrow, wide = (fit(measured(noise, 1), ("N", "D"), draws=100).predict(target) for noise in (0.001, 0.01))
    assert wide[2] - wide[1] > 3 * (narrow[2] - narrow[1])
    points = measured(0.0005, 2)
    spoiled = [
        *points[:5],
        Point("spoiled", points[5].parameters, points[5].tokens, points[5].loss * 1.05),
        *points[6:],
    ]
    law = fit(spoiled, ("N", "D"), draws=20)
    assert law.predict(target)[0] == pytest.approx(true_loss(8e8, 1.6e10), rel=0.02), "Huber's loss bounds its pull"


def test_the_same_points_give_the_same_law() -> None:
    one, two = (fit(measured(0.01), ("N", "D"), draws=20) for _ in range(2))
    assert np.array_equal(one.draws, two.draws)


def test_one_ratio_of_tokens_to_parameters_gives_a_law_over_compute() -> None:
    points = measured(0, ratios=(20,))
    assert usable_terms(points) == ("C",) and usable_terms(measured(0)) == ("N", "D")
    law = fit(points, ("C",), draws=20)
    inside = Point("", 3e7, 6e8, 0)
    assert law.predict(inside)[0] == pytest.approx(true_loss(3e7, 6e8), rel=2e-3)


def test_an_exact_law_over_compute_is_found() -> None:
    points = [Point(str(c), c / 6, 1.0, 2 + 90 / c**0.1) for c in (1e15, 1e16, 1e17, 1e18, 1e19)]
    found = constants(fit(points, ("C",), draws=2))
    assert (found["E"][0], found["K"][0], found["k"][0]) == pytest.approx((2, 90, 0.1), rel=1e-3)


def test_too_few_points_are_refused() -> None:
    assert (least_points(("C",)), least_points(("N", "D"))) == (4, 6)
    with pytest.raises(ValueError, match="5 points, 6 needed"):
        fit(measured(0)[:5], ("N", "D"))
    assert usable_terms([]) == usable_terms(measured(0)[:2]) == ("C",)
