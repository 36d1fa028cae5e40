"""How sure a figure is: intervals at 95 % for shares and quantiles.

Pure numbers. They speak of the draw of the requests and take these as independent. Requests of
one run share a queue, so another run may differ by more: what repeats say is pairs.py's. Called
by figures.py, report.py and the plots.

Sources: Wilson 1927 for shares, Conover 1999 (section 3.2) for quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]

Z_95 = 1.959963984540054  # a normal variable lies within this many deviations with P 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    value: float  # NaN: there is none
    low: float  # -inf: the sample is too small to say
    high: float  # inf: likewise


def mean_of_repeats(intervals: Iterable[Interval]) -> Interval:
    """Of runs of the same requests: together they say no more about the draw than one of them
    does, so the interval stays as wide.
    """
    each = list(intervals)
    return Interval(
        fmean(one.value for one in each),
        fmean(one.low for one in each),
        fmean(one.high for one in each),
    )


def wilson(num_good: int, num_all: int) -> Interval:
    """Of the share good / all; of nothing it is anything from 0 to 1."""
    if not 0 <= num_good <= num_all:
        raise ValueError(f"num_good is {num_good}; it must be 0 to num_all, which is {num_all}")
    if num_all == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, z2 = num_good / num_all, Z_95**2
    centre = (share + z2 / (2 * num_all)) / (1 + z2 / num_all)
    spread = math.sqrt(share * (1 - share) / num_all + z2 / (4 * num_all**2))
    half = Z_95 * spread / (1 + z2 / num_all)
    # At 0 and 1 the two sides meet by algebra; rounding must not push the share outside.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def quantile_ranks(num_values: int, q: float) -> tuple[int, int]:
    """Ranks, from 1, of the two values between which the quantile lies; 0 or n + 1: no such value.

    How many of n values lie below the quantile is binomial; its normal approximation is rounded
    outwards.
    """
    centre = num_values * q
    half = Z_95 * math.sqrt(num_values * q * (1 - q))
    return max(0, math.floor(centre - half)), min(num_values, math.ceil(centre + half)) + 1


class Sample:
    """Values in order, sorted once for all their quantiles; each may count several times."""

    def __init__(self, values: Values, counts: Values | None = None) -> None:
        """`counts`: whole numbers, one a value; None: each counts once."""
        found = np.asarray(values, dtype=np.float64)
        order = np.argsort(found, kind="stable")
        weights = np.ones(len(found)) if counts is None else np.asarray(counts, dtype=np.float64)
        self._values = found[order]
        self._ends = np.cumsum(weights[order])  # rank of the last time that a value counts
        self._total = float((found * weights).sum())

    @property
    def count(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def mean(self) -> float:
        return self._total / self.count if self.count else math.nan

    def at_rank(self, rank: int) -> float:
        """Ranks count from 1; past either end it is infinite."""
        if rank < 1:
            return -math.inf
        if rank > self.count:
            return math.inf
        return float(self._values[np.searchsorted(self._ends, rank)])

    def quantile(self, q: float) -> Interval:
        """Interpolated, and between two values of the sample: no shape is assumed."""
        if not 0 < q < 1:
            raise ValueError(f"q is {q}; it must lie between 0 and 1")
        if not self.count:
            return Interval(math.nan, -math.inf, math.inf)
        whole, part = divmod((self.count - 1) * q, 1)
        below, above = (self.at_rank(min(int(whole) + n, self.count)) for n in (1, 2))
        low, high = quantile_ranks(self.count, q)
        value = below + part * (above - below)
        return Interval(value, self.at_rank(low), self.at_rank(high))
