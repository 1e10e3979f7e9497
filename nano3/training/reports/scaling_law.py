"""Fit a scaling law to losses of small runs: L = E + A / N^a + B / D^b, with its uncertainty.

N is the number of active parameters without embedding and output matrix, D that of training tokens, L the validation
loss in nats per token. The law and its estimator are those of Hoffmann et al. (2022, arXiv:2203.15556, appendix D.3):
the sum of Huber losses (delta 1e-3) of log L, minimized from a grid of starts. Besiroglu et al. (2024,
arXiv:2404.10102) show how that goes wrong: a minimizer that stops early, and intervals that are much too narrow. Here
damped Gauss-Newton steps (Levenberg-Marquardt) go on until nothing changes, and intervals come from a bootstrap.

The bootstrap is parametric: it draws new losses around the law, not points. Sizes and tokens of a sweep are chosen,
not drawn, and with few points most draws of points could not be fitted. The errors are normal. Their variance is that
of the residuals, with n minus the number of constants as degrees of freedom, and is drawn itself (scaled inverse chi-
squared), so intervals of few points are wide as in Student's t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DELTA = 1e-3
STEPS = 400
DRAWS = 500
# Quantiles of an interval of 90 %.
LOW, HIGH = 0.05, 0.95
# log N and log D of a sweep that are more correlated than this do not say which of the two lowers the loss.
MAX_CORRELATION = 0.98
EXPONENTS = (0.01, 3.0)


@dataclass(frozen=True)
class Point:
    """One run: active parameters without the embeddings, training tokens, and validation loss in nats per token."""

    name: str
    parameters: float
    tokens: float
    loss: float

    @property
    def compute(self) -> float:
        """Floating-point operations of the training, as 6 N D."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """A fitted law. `terms` names the variables: ("N", "D"), or ("C",) for L = E + K / C^k.

    `draws` holds the values of the bootstrap, one row each, in the order of `values`: log E, then for each term the log
    of its size at the points' mean and the log of its exponent. `centers` are those means of the logarithms.
    """

    terms: tuple[str, ...]
    centers: Array
    values: Array
    draws: Array
    residuals: Array

    def predict(self, point: Point) -> tuple[float, float, float]:
        """Return the loss by the law, and the bounds of its interval of 90 %."""
        x = variables([point], self.terms) - self.centers
        draws = np.exp(_log_loss(self.draws, x)[:, 0])
        low, high = np.quantile(draws, (LOW, HIGH))
        return float(np.exp(_log_loss(self.values[None], x)[0, 0])), float(low), float(high)

    def constants(self) -> list[tuple[str, float, float, float]]:
        """Return (name, value, lower bound, upper bound) of each constant: E, and a factor and an exponent per term."""
        rows = [("E", *self._interval(np.exp(self._rows()[:, 0])))]
        for number, term in enumerate(self.terms):
            exponent = np.exp(self._rows()[:, 2 + 2 * number])
            factor = np.exp(self._rows()[:, 1 + 2 * number] + exponent * self.centers[number])
            names = {"N": ("A", "a"), "D": ("B", "b"), "C": ("K", "k")}[term]
            rows += [(names[0], *self._interval(factor)), (names[1], *self._interval(exponent))]
        return rows

    def _rows(self) -> Array:
        return np.vstack([self.values[None], self.draws])

    @staticmethod
    def _interval(all_values: Array) -> tuple[float, float, float]:
        low, high = np.quantile(all_values[1:], (LOW, HIGH))
        return float(all_values[0]), float(low), float(high)


def variables(points: Sequence[Point], terms: Sequence[str]) -> Array:
    """Return the logarithms of the variables of each point, shaped [points, terms]."""
    of = {"N": lambda p: p.parameters, "D": lambda p: p.tokens, "C": lambda p: p.compute}
    return np.log([[of[term](point) for term in terms] for point in points])


def usable_terms(points: Sequence[Point]) -> tuple[str, ...]:
    """Return the terms that these points can tell apart: N and D if they vary independently, else compute."""
    x = variables(points, ("N", "D"))
    varied = min((len(np.unique(np.round(column, 3))) for column in x.T), default=0)
    if varied < 3 or abs(np.corrcoef(x.T)[0, 1]) > MAX_CORRELATION:
        return ("C",)
    return ("N", "D")


def least_points(terms: Sequence[str]) -> int:
    """Return the number of points that a fit needs: one more than it has constants."""
    return 2 + 2 * len(terms)


def fit(points: Sequence[Point], terms: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Law:
    """Return the law that fits the points best, with bootstrap draws.

    Args:
        points: At least `least_points` runs.
        terms: ("N", "D") or ("C",).
        draws: Number of bootstrap draws.
        seed: Seed of the draws.

    Raises:
        ValueError: There are too few points.
    """
    if len(points) < least_points(terms):
        raise ValueError(f"{len(points)} points, {least_points(terms)} needed")
    logs = variables(points, terms)
    centers = logs.mean(axis=0)
    x, y = logs - centers, np.log([point.loss for point in points])
    starts = _starts(x, y)
    found, costs = _minimize(starts, x, np.repeat(y[None], len(starts), axis=0))
    values = found[int(np.argmin(costs))]
    residuals = y - _log_loss(values[None], x)[0]
    freedom = len(points) - len(values)
    rng = np.random.default_rng(seed)
    deviation = np.sqrt((residuals**2).sum() / rng.chisquare(freedom, size=(draws, 1)))
    drawn = _log_loss(values[None], x) + deviation * rng.normal(size=(draws, len(points)))
    # From the best fit, and from one with half of its irreducible loss, which is a different valley with few points.
    lower = values.copy()
    lower[0] -= np.log(2)
    tries = [_minimize(np.repeat(start[None], draws, axis=0), x, drawn) for start in (values, lower)]
    better = tries[0][1] <= tries[1][1]
    return Law(tuple(terms), centers, values, np.where(better[:, None], tries[0][0], tries[1][0]), residuals)


def _log_loss(values: Array, x: Array) -> Array:
    """Return the log of the loss of each row of values at each point, shaped [rows, points].

    Args:
        values: Shaped [rows, 1 + 2 terms].
        x: Centered logarithms of the variables, shaped [points, terms].
    """
    return _parts(values, x)[0]


def _parts(values: Array, x: Array) -> tuple[Array, Array]:
    """Return the log of the loss [rows, points], and the share of each part of it [rows, points, 1 + terms]."""
    exponents = np.exp(values[:, None, 2::2])
    terms = values[:, None, 1::2] - exponents * x[None]
    parts = np.concatenate([np.broadcast_to(values[:, None, :1], (*terms.shape[:2], 1)), terms], axis=2)
    top = parts.max(axis=2, keepdims=True)
    sums = np.exp(parts - top).sum(axis=2, keepdims=True)
    log_loss = top + np.log(sums)
    return log_loss[:, :, 0], np.exp(parts - log_loss)


def _starts(x: Array, y: Array) -> Array:
    """Return a grid of starts: shares of the irreducible loss, and exponents."""
    lowest, terms = float(y.min()), x.shape[1]
    rows = []
    for share in (0.3, 0.6, 0.9):
        rest = np.log(np.exp(float(y.mean())) - share * np.exp(lowest)) - np.log(terms)
        for exponents in np.ndindex(*(3,) * terms):
            row = [np.log(share) + lowest]
            for number in exponents:
                row += [rest, np.log((0.15, 0.35, 0.7)[number])]
            rows.append(row)
    return np.array(rows)


def _costs(residuals: Array) -> Array:
    size = np.abs(residuals)
    costs: Array = np.where(size <= DELTA, 0.5 * residuals**2, DELTA * (size - 0.5 * DELTA)).sum(axis=1)
    return costs


def _minimize(values: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return the minimum that each row of values leads to, and its cost.

    Args:
        values: Starts, shaped [rows, values].
        x: Centered logarithms of the variables, shaped [points, terms].
        y: Logarithms of the losses, shaped [rows, points].
    """
    values = values.copy()
    costs = _costs(_log_loss(values, x) - y)
    lowest = y.min(axis=1) - 12  # an irreducible loss of nearly 0 is as good as any below
    damping = np.full(len(values), 1e-3)
    rows = np.arange(len(values))  # those that still change
    for _ in range(STEPS):
        tried = _step(values[rows], x, y[rows], damping[rows])
        tried[:, 0] = np.maximum(tried[:, 0], lowest[rows])
        tried[:, 2::2] = np.clip(tried[:, 2::2], *np.log(EXPONENTS))
        new, old = _costs(_log_loss(tried, x) - y[rows]), costs[rows]
        better = new < old
        done = np.where(better, old - new < 1e-9 * old, damping[rows] > 1e8) | (old < 1e-20)
        values[rows[better]], costs[rows[better]] = tried[better], new[better]
        damping[rows] = np.clip(np.where(better, damping[rows] / 3, damping[rows] * 4), 1e-12, 1e9)
        rows = rows[~done]
        if not len(rows):
            break
    return values, costs


def _step(values: Array, x: Array, y: Array, damping: Array) -> Array:
    """Return the values after a damped Gauss-Newton step of each row."""
    residuals = _log_loss(values, x) - y
    jacobian = _jacobian(values, x)
    weights = 1 / np.maximum(np.abs(residuals) / DELTA, 1)  # Huber's loss as weights of least squares
    weighted = jacobian * weights[:, :, None]
    normal = weighted.swapaxes(1, 2) @ jacobian
    slope = (weighted * residuals[:, :, None]).sum(axis=1)
    number = range(values.shape[1])
    normal[:, number, number] += damping[:, None] * (normal[:, number, number] + 1e-9) + 1e-15
    step = np.linalg.solve(normal, slope[:, :, None])[:, :, 0]
    tried: Array = values - np.clip(step, -1, 1)
    return tried


def _jacobian(values: Array, x: Array) -> Array:
    """Return the derivatives of the log of the loss, shaped [rows, points, values]."""
    _, shares = _parts(values, x)
    result = np.empty((*shares.shape[:2], values.shape[1]))
    result[:, :, 0] = shares[:, :, 0]
    result[:, :, 1::2] = shares[:, :, 1:]
    result[:, :, 2::2] = -shares[:, :, 1:] * x[None] * np.exp(values[:, None, 2::2])
    return result
