"""Two policies compared as interleaved pairs, with what repeats differ by printed beside.

Rounds A1 B1 A2 B2 ... of one workload: a pair shares the machine's mood, and A1 against A2 says
what the mood alone is worth. B differs from A only where the median of the pairs' differences is
larger than that; of one round nothing can be said. Of two equal policies that rule calls 22 in 100
different after two rounds, 6 after three and 1 after four (normal noise): many comparisons of few
rounds hold some that chance has made. Pure. Called by the benches that compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median


class Verdict(Enum):
    DIFFERS = "differs"
    SAME = "within the spread"
    NOT_MEASURED = "not measured"  # one round, or a figure that a run did not give


@dataclass(frozen=True, slots=True)
class Comparison:
    metric: str  # with its unit, as it is printed
    a: str  # what is compared
    b: str
    higher_is_better: bool
    values_a: tuple[float, ...]  # one a round
    values_b: tuple[float, ...]
    ratio: float  # median of B / A over the pairs
    difference: float  # median of B - A
    spread_a: float | None  # largest difference among the repeats of A; None: not measured
    spread_b: float | None
    verdict: Verdict

    @property
    def spread(self) -> float | None:
        """The larger of the two."""
        if self.spread_a is None or self.spread_b is None:
            return None
        return max(self.spread_a, self.spread_b)

    @property
    def winner(self) -> str:
        """A or B by name; empty: neither is known to be better."""
        if self.verdict is not Verdict.DIFFERS:
            return ""
        return self.b if (self.difference > 0) == self.higher_is_better else self.a


def compare(
    metric: str,
    names: tuple[str, str],
    *,
    a: Sequence[float],
    b: Sequence[float],
    higher_is_better: bool,
) -> Comparison:
    """`a` and `b`: the figure of each round, in order."""
    if len(a) != len(b) or not a:
        raise ValueError(f"{metric}: {len(a)} rounds of {names[0]}, {len(b)} of {names[1]}")
    pairs = list(zip(a, b, strict=True))
    # NaN has no order, and infinities no difference.
    known = all(math.isfinite(value) for value in (*a, *b))
    difference = median(right - left for left, right in pairs) if known else math.nan
    spread_a, spread_b = (_spread(a), _spread(b)) if known else (None, None)
    return Comparison(
        metric,
        *names,
        higher_is_better=higher_is_better,
        values_a=tuple(a),
        values_b=tuple(b),
        ratio=median(_ratio(left, right) for left, right in pairs) if known else math.nan,
        difference=difference,
        spread_a=spread_a,
        spread_b=spread_b,
        verdict=_verdict(difference, spread_a, spread_b),
    )


def line_of(comparison: Comparison) -> str:
    """`goodput, req/s: slora / fcfs = 1.25, difference +0.5; spread 0.1 (fcfs), ...: differs`."""
    one = comparison
    if one.spread_a is None or one.spread_b is None:
        spread = "A/A spread not measured"
    else:
        spread = f"A/A spread {one.spread_a:.3g} ({one.a}), {one.spread_b:.3g} ({one.b})"
    verdict = f"{one.winner} is better" if one.winner else one.verdict.value
    return (
        f"{one.metric}: {one.b} / {one.a} = {one.ratio:.3g}, "
        f"difference {one.difference:+.3g}; {spread}: {verdict}"
    )


def repeat_spread(values: Sequence[float]) -> float | None:
    """Largest difference among repeats as a share of their median; None: not measured."""
    spread = None if any(map(math.isnan, values)) else _spread(values)
    if not spread:
        return spread
    centre = abs(median(values))
    return spread / centre if centre else math.inf


def _spread(values: Sequence[float]) -> float | None:
    return max(values) - min(values) if len(values) > 1 else None


def _ratio(left: float, right: float) -> float:
    if left:
        return right / left
    return math.copysign(math.inf, right) if right else math.nan


def _verdict(difference: float, spread_a: float | None, spread_b: float | None) -> Verdict:
    if spread_a is None or spread_b is None:
        return Verdict.NOT_MEASURED
    return Verdict.DIFFERS if abs(difference) > max(spread_a, spread_b) else Verdict.SAME
