"""Quantile tables: a distribution of lengths as a few of its percentiles, straight in between.

Owns the tables measured on public traces (tokens of prompts and answers) and the curve through
three percentiles and a mean, where more is not published. Knows no requests; used by lengths.py
and pools.py, and by the tests and the command line, which hold what was drawn against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .streams import Floats

PERCENTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9, 100)
_FINE = (0, *(0.1 * i for i in range(1, 1000)), 100)
_MAX_Z = 3.09  # the curve ends at P99.9
_MAX_SLOPE = 12.0  # of log tokens over standard deviations, below the median


@dataclass(frozen=True, slots=True)
class QuantileTable:
    percentiles: tuple[float, ...]  # ascending, from 0 to 100
    tokens: tuple[float, ...]  # at each of them

    def at(self, shares: Floats) -> Floats:
        """The inverse of the distribution function: tokens at shares from 0 to 1."""
        return np.interp(shares, np.array(self.percentiles) / 100, np.array(self.tokens))

    @property
    def mean(self) -> float:
        return float(np.trapezoid(self.tokens, np.array(self.percentiles) / 100))


@dataclass(frozen=True, slots=True)
class LengthTables:
    prompt: QuantileTable
    answer: QuantileTable


def curve_through(p50: float, p90: float, p99: float, *, mean: float) -> QuantileTable:
    """Log-normal pieces through three percentiles; what lies below the median is chosen so that
    the mean comes out, as far as it can.
    """
    normal = NormalDist()
    z90, z99 = normal.inv_cdf(0.90), normal.inv_cdf(0.99)
    z = np.array([normal.inv_cdf(min(max(p / 100, 1e-4), 1 - 1e-4)) for p in _FINE])
    z = np.minimum(z, _MAX_Z)

    def table(slope: float) -> QuantileTable:
        zs = (-10.0, 0.0, z90, z99, 10.0)
        last = math.log(p99 / p90) / (z99 - z90)
        logs = (
            math.log(p50) - 10 * slope,
            math.log(p50),
            math.log(p90),
            math.log(p99),
            math.log(p99) + (10 - z99) * last,
        )
        tokens = np.maximum(np.exp(np.interp(z, zs, logs)), 1.0)
        return QuantileTable(tuple(_FINE), tuple(float(value) for value in tokens))

    low, high = 0.0, _MAX_SLOPE
    for _ in range(60):
        slope = (low + high) / 2
        low, high = (slope, high) if table(slope).mean > mean else (low, slope)
    return table((low + high) / 2)


def _measured(*tokens: float) -> QuantileTable:
    return QuantileTable(PERCENTILES, tokens)


# Derived from the Azure LLM inference trace of 2023 (Splitwise, ISCA'24; CC-BY) and from Mooncake's
# conversation trace (FAST'25; Apache-2.0).
TABLES = {
    "azure-code": LengthTables(
        _measured(
            *(3, 17, 75, 147, 385, 770, 1075, 1469, 1909, 2433, 3192, 5187, 7303, 7436, 7437, 7437)
        ),
        _measured(6, 6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 55, 90, 251, 825, 1899),
    ),
    "azure-conv": LengthTables(
        _measured(
            *(2, 29, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2734, 4083, 4142, 6179),
            14050,
        ),
        _measured(7, 16, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 601, 954, 1000),
    ),
    "mooncake-conv": LengthTables(
        _measured(
            *(891, 894, 901, 964, 1662, 3263, 4993, 6909, 9570, 13196, 17869, 27367, 39550),
            *(85400, 121300, 126195),
        ),
        _measured(1, 3, 10, 24, 100, 213, 291, 350, 399, 447, 504, 597, 698, 1118, 2000, 2000),
    ),
}
