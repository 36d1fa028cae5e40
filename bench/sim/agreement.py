"""How well a simulated run agrees with live ones of the same workload. Pure.

Owns what is compared and how far apart it may be. Goodput is figures.py's. Mean TTFT is over the
requests that got a first token in every run of that policy, the live rounds and the simulated one:
where some are given up early each run answers others, and means over different requests would be
compared otherwise. A ratio may miss 1 by a tenth, or by twice what the live rounds differ by among
themselves, whichever is more. Called by versus.py; document.py and table.py show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..slo.bounds import BoundsRule
from ..slo.figures import figures
from ..slo.pairs import Comparison, compare, repeat_spread
from ..slo.stamps import Run
from ..workload.records import Workload

MIN_ALLOWED = 0.1  # a ratio's distance from 1
SPREADS_ALLOWED = 2.0
GOODPUT = "goodput, req/s"


@dataclass(frozen=True, slots=True)
class Agreement:
    """One figure of one policy."""

    live: tuple[float, ...]  # one a round
    simulated: float

    @property
    def ratio(self) -> float:
        """Simulated over the mean of the live rounds; NaN: nothing live to divide by."""
        mean = float(np.mean(self.live))
        return self.simulated / mean if mean else math.nan

    @property
    def allowed(self) -> float:
        return max(MIN_ALLOWED, SPREADS_ALLOWED * (repeat_spread(self.live) or 0.0))

    @property
    def holds(self) -> bool:
        """Where the rounds differ without bound nothing can be said, and nothing holds."""
        return math.isfinite(self.allowed) and abs(self.ratio - 1) <= self.allowed


@dataclass(frozen=True, slots=True)
class PolicyAgreement:
    policy: str
    num_requests: int
    num_compared: int  # that mean TTFT is over
    goodput_per_s: Agreement
    ttft_s: Agreement  # mean
    attainment: Agreement  # shown, not judged: goodput says the same


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Which of two policies has the better goodput; empty: neither is known to."""

    live: Comparison
    simulated_difference: float  # requests/s, second less first

    @property
    def live_winner(self) -> str:
        return self.live.winner

    @property
    def simulated_winner(self) -> str:
        """By the live rounds' spread: a simulation repeats itself exactly and has none."""
        if abs(self.simulated_difference) <= (self.live.spread or 0.0):
            return ""
        return self.live.b if self.simulated_difference > 0 else self.live.a

    @property
    def same(self) -> bool:
        """A live comparison that knows no winner confirms none."""
        return bool(self.live_winner) and self.live_winner == self.simulated_winner


def agree(
    live: Sequence[Run], simulated: Run, workload: Workload, bounds: BoundsRule
) -> PolicyAgreement:
    """`live`: the rounds of one policy."""
    runs = (*live, simulated)
    judged = [figures(run, workload, bounds) for run in runs]
    first_s = np.array([[one.first_s - one.due_s for one in run.requests] for run in runs])
    compared = ~np.isnan(first_s).any(axis=0)
    means_s = first_s[:, compared].mean(axis=1) if compared.any() else np.full(len(runs), np.nan)
    return PolicyAgreement(
        policy=simulated.policy,
        num_requests=len(workload.requests),
        num_compared=int(compared.sum()),
        goodput_per_s=_agreement([one.goodput_per_s.value for one in judged]),
        ttft_s=_agreement(means_s.tolist()),
        attainment=_agreement([one.attainment.value for one in judged]),
    )


def conclude(agreements: Mapping[str, PolicyAgreement], names: tuple[str, str]) -> Conclusion:
    first, second = (agreements[name].goodput_per_s for name in names)
    return Conclusion(
        live=compare(GOODPUT, names, a=first.live, b=second.live, higher_is_better=True),
        simulated_difference=second.simulated - first.simulated,
    )


def furthest(found: Sequence[Agreement]) -> float:
    """The ratio that is worst: the one figure that stands for all policies."""

    def distance(ratio: float) -> float:
        return math.inf if math.isnan(ratio) else abs(ratio - 1)

    return max((one.ratio for one in found), key=distance)


def failures(agreements: Sequence[PolicyAgreement], conclusion: Conclusion) -> list[str]:
    lines = [
        f"{one.policy}: {name} simulated / live is {figure.ratio:.3f}; "
        f"it may miss 1 by {figure.allowed:.3f}"
        for one in agreements
        for name, figure in (("goodput", one.goodput_per_s), ("mean TTFT", one.ttft_s))
        if not figure.holds
    ]
    if not conclusion.same:
        told = [name or "neither" for name in (conclusion.live_winner, conclusion.simulated_winner)]
        lines.append(f"better policy: {told[0]} live, {told[1]} simulated")
    return lines


def _agreement(values: Sequence[float]) -> Agreement:
    """The simulated one is the last."""
    return Agreement(tuple(values[:-1]), values[-1])
