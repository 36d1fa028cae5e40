"""Intervals against values of the literature and against their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorry.bench.slo.intervals import Sample, quantile_ranks, wilson


@pytest.mark.parametrize(
    ("good", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson(good: int, total: int, low: float, high: float) -> None:
    """Another z, or a plain normal interval, gives other values and a share above 1."""
    found = wilson(good, total)
    assert found.value == good / total
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert found.low <= found.value <= found.high


def test_wilson_of_nothing_says_nothing() -> None:
    found = wilson(0, 0)
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"num_good is 3.*num_all, which is 2"):
        wilson(3, 2)


@pytest.mark.parametrize("num", [5, 20, 60, 300])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 0.99])
def test_quantile_lies_between_its_ranks(num: int, q: float) -> None:
    """Values below the quantile are binomial, so what the two ranks cover can be summed up."""
    low, high = quantile_ranks(num, q)
    chances = [math.comb(num, k) * q**k * (1 - q) ** (num - k) for k in range(num + 1)]
    assert sum(chances[low:high]) >= 0.95
    assert 0 <= low < high <= num + 1


def test_quantile_interval_names_values_of_the_sample() -> None:
    """Of 100 values the median lies between the 40th and the 61st, as tables have it."""
    shuffled = np.random.default_rng(3).permutation(np.arange(1.0, 101.0))
    found = Sample(shuffled).quantile(0.5)
    assert (found.low, found.value, found.high) == (40, 50.5, 61)
    assert Sample(shuffled).quantile(0.99).high == math.inf  # 100 values do not reach that far


def test_counted_values_are_repeated_values() -> None:
    """Gaps between tokens are too many to be written out."""
    values, counts = [3.0, 1.0, 2.0, 5.0], [4, 1, 10, 2]
    short, long = Sample(values, counts), Sample(np.repeat(values, counts))
    assert (short.count, short.mean) == (17, pytest.approx(long.mean))
    for q in (0.01, 0.3, 0.5, 0.7, 0.9, 0.99):
        assert short.quantile(q) == long.quantile(q)
        assert long.quantile(q).value == pytest.approx(np.quantile(np.repeat(values, counts), q))


def test_quantile_of_nothing() -> None:
    assert math.isnan(Sample([]).quantile(0.5).value)
    with pytest.raises(ValueError, match="q is 1"):
        Sample([1.0]).quantile(1)
