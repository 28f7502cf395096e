"""Means, proportions and medians of samples, with confidence intervals."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_Z = 1.959964  # of the normal distribution, for intervals of 95 %


class Estimate(NamedTuple):
    """A number and the ends of its 95 % confidence interval.

    NaN where there is none. `is_proportion`: it is a share of the samples,
    which is shown in percent.
    """

    value: float
    low: float
    high: float
    is_proportion: bool = False

    def text(self) -> str:
        """The number for a table."""
        return self._formatted(self.value)

    def interval_text(self) -> str:
        """The interval for a table."""
        return f"{self._formatted(self.low)} to {self._formatted(self.high)}"

    def _formatted(self, number):
        if not math.isfinite(number):
            return "-"
        if self.is_proportion:
            return f"{100 * number:.2f} %"
        return f"{number:#.4g}".removesuffix(".")


def mean(values: ArrayLike) -> Estimate:
    """The mean of (N,) values, with a normal approximation's interval.

    Of a single value there is no interval.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    value = float(np.mean(values)) if n else math.nan
    error = math.nan
    if n > 1:
        error = _Z * float(np.std(values)) / math.sqrt(n - 1)
    return Estimate(value, value - error, value + error)


def ratio_of_means(values: ArrayLike, others: ArrayLike) -> Estimate:
    """The mean of (N,) values over that of others on the same N samples.

    The interval, by the delta method, is a paired one: what both have in
    common on a sample, as an image that any classifier finds hard, does not
    widen it. Of a single sample there is none.
    """
    values, others = (np.asarray(v, np.float64) for v in (values, others))
    n = len(values)
    if not n or not np.mean(others):
        return Estimate(math.nan, math.nan, math.nan)
    ratio = float(np.mean(values) / np.mean(others))
    error = math.nan
    if n > 1:
        residual = (values - ratio * others) / np.mean(others)
        error = _Z * float(np.std(residual)) / math.sqrt(n - 1)
    return Estimate(ratio, ratio - error, ratio + error)


def difference_of_proportions(
    values: np.ndarray, others: np.ndarray
) -> Estimate:
    """The share of (N,) booleans that is true, less that of others.

    A paired interval, as in `ratio_of_means`.
    """
    difference = mean(
        np.asarray(values, np.float64) - np.asarray(others, np.float64)
    )
    return Estimate(*difference[:3], True)


def proportion(values: np.ndarray) -> Estimate:
    """The share of (N,) booleans that is true, with Wilson's interval.

    Unlike the normal approximation it is of use at shares near 0 and 1, which
    accuracies are, and it stays in [0, 1].
    """
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, True)
    share = float(np.mean(values))
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    spread = share * (1 - share) / n + (_Z / (2 * n)) ** 2
    error = _Z * math.sqrt(spread) / (1 + _Z**2 / n)
    return Estimate(
        share, max(0.0, centre - error), min(1.0, centre + error), True
    )


def median(values: ArrayLike) -> Estimate:
    """The smallest value that half of (N,) values do not exceed.

    The ends of its interval are order statistics. Infinite values, as of
    samples that nothing fooled, count; one that is infinite, or further out
    than there are samples, becomes NaN.
    """
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    reach = _Z * math.sqrt(n) / 2

    def ranked(rank):
        rank = math.ceil(rank)
        known = 1 <= rank <= n and math.isfinite(values[rank - 1])
        return float(values[rank - 1]) if known else math.nan

    return Estimate(ranked(n / 2), ranked(n / 2 - reach), ranked(n / 2 + reach))
