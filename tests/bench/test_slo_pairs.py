"""Comparisons: nothing is said that repeats of the same thing would say of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorry.bench.slo.pairs import (
    Comparison,
    Verdict,
    compare,
    line_of,
    repeat_spread,
)


def of(a: list[float], b: list[float], *, higher_is_better: bool = True) -> Comparison:
    return compare("goodput, req/s", ("fcfs", "slora"), a=a, b=b, higher_is_better=higher_is_better)


def test_difference_larger_than_the_spread() -> None:
    """Pairs +1.1, +0.9, +1.2: median 1.1; A differs from itself by 0.2, B by 0.2."""
    found = of([2.0, 2.2, 2.1], [3.1, 3.1, 3.3])
    assert found.difference == pytest.approx(1.1)
    assert (found.spread_a, found.spread_b) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found.verdict is Verdict.DIFFERS and found.winner == "slora"
    assert found.ratio == pytest.approx(1.55)


def test_machine_that_slows_down_decides_nothing() -> None:
    """Each pair says +0.5, and A alone moved by 1: the drift is larger than the finding."""
    found = of([2.0, 3.0], [2.5, 3.5])
    assert found.verdict is Verdict.SAME and found.winner == ""
    assert found.spread == 1.0


def test_the_noisier_side_sets_the_spread() -> None:
    assert of([2.0, 2.0], [2.1, 2.9]).verdict is Verdict.SAME
    assert of([2.1, 2.9], [2.0, 2.0]).verdict is Verdict.SAME


def test_one_round_is_no_verdict() -> None:
    """A single pair, however far apart, may be the machine's."""
    found = of([1.0], [9.0])
    assert found.verdict is Verdict.NOT_MEASURED and found.winner == ""
    assert "A/A spread not measured" in line_of(found)
    assert found.ratio == 9.0


def test_lower_may_be_better() -> None:
    assert of([1.0, 1.0], [3.0, 3.1], higher_is_better=False).winner == "fcfs"
    assert of([3.0, 3.1], [1.0, 1.0], higher_is_better=False).winner == "slora"


def test_missing_figure_is_not_measured() -> None:
    """NaN compares false with everything, and would pass as "within the spread"."""
    found = of([1.0, math.nan], [2.0, 2.0])
    assert found.verdict is Verdict.NOT_MEASURED and math.isnan(found.ratio)
    found = of([1.0, 1.1], [math.inf, math.inf], higher_is_better=False)
    assert found.verdict is Verdict.NOT_MEASURED, "half got no token: how late is not known"


def test_equal_policies_seldom_differ() -> None:
    """How often chance alone makes a verdict: what the module says, so that it is no guess."""
    rng, num_trials = np.random.default_rng(5), 2000
    for num_rounds, share in ((2, 0.22), (3, 0.06), (4, 0.012)):
        noise = rng.standard_normal((num_trials, 2, num_rounds))
        wrong = sum(of(a.tolist(), b.tolist()).verdict is Verdict.DIFFERS for a, b in noise)
        assert wrong / num_trials == pytest.approx(share, abs=5 * math.sqrt(share / num_trials))


def test_nothing_divided_by() -> None:
    assert of([0.0, 0.0], [1.0, 1.0]).ratio == math.inf
    assert math.isnan(of([0.0, 0.0], [0.0, 0.0]).ratio)
    assert of([0.0, 0.0], [0.0, 0.0]).verdict is Verdict.SAME


def test_line_has_the_spread_beside_the_difference() -> None:
    assert line_of(of([2.0, 2.1], [3.0, 3.2])) == (
        "goodput, req/s: slora / fcfs = 1.51, difference +1.05; "
        "A/A spread 0.1 (fcfs), 0.2 (slora): slora is better"
    )


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="2 rounds of fcfs, 1 of slora"):
        of([1.0, 2.0], [1.0])


def test_repeat_spread() -> None:
    """Of 9, 10, 12: 3 of 10."""
    assert repeat_spread([9.0, 12.0, 10.0]) == pytest.approx(0.3)
    assert repeat_spread([5.0]) is None
    assert repeat_spread([1.0, math.nan]) is None
    assert repeat_spread([0.0, 0.0]) == 0.0
    assert repeat_spread([0.0, 0.0, 1.0]) == math.inf
