"""One request judged: its TTFT, TPOT and TPT from stamps, and whether it met its bounds.

TTFT counts from the instant a request was due, not from when it left. TPOT = (last - first) /
(n - 1), undefined for an answer of one token, which is judged by its TTFT alone. TPT = end to end
/ n, Toppings' measure. Pure. Called by figures.py, pairs.py and the plots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..workload.records import Workload
from .bounds import Bounds, BoundsRule, all_bounds
from .stamps import Outcome, RequestStamps, Run


@dataclass(frozen=True, slots=True)
class Judged:
    ttft_s: float  # NaN: no token came
    tpot_s: float  # NaN: not whole, or of one token
    tpt_s: float  # NaN: not whole
    is_late: bool  # whole, first token past its bound
    is_slow: bool  # whole, TPOT past its bound
    met: bool  # whole, and neither

    @property
    def has_one_token(self) -> bool:
        """A whole answer that has no time between tokens."""
        return math.isnan(self.tpot_s) and not math.isnan(self.tpt_s)


def judge(stamps: RequestStamps, bounds: Bounds) -> Judged:
    ttft_s = stamps.first_s - stamps.due_s
    if stamps.outcome is not Outcome.OK:
        return Judged(ttft_s, math.nan, math.nan, False, False, False)
    count = stamps.num_tokens
    if not count:
        raise ValueError(f"request {stamps.index} is {stamps.outcome.value} and has no token")
    tpot_s = (stamps.last_s - stamps.first_s) / (count - 1) if count > 1 else math.nan
    tpt_s = (stamps.last_s - stamps.due_s) / count
    late, slow = ttft_s > bounds.ttft_s, tpot_s > bounds.tpot_s  # NaN is above nothing
    return Judged(ttft_s, tpot_s, tpt_s, late, slow, not late and not slow)


def judge_run(run: Run, workload: Workload, rule: BoundsRule) -> tuple[Judged, ...]:
    """In the workload's order.

    Raises:
        ValueError: the run is not one of this workload.
    """
    check_same(run, workload)
    return tuple(map(judge, run.requests, all_bounds(workload, rule)))


def check_same(run: Run, workload: Workload) -> None:
    """A request that is left out would be no miss."""
    if len(run.requests) != len(workload.requests):
        raise ValueError(
            f"the run has {len(run.requests)} requests, "
            f"workload {workload.name!r} {len(workload.requests)}"
        )
    for index, stamps in enumerate(run.requests):
        if stamps.index != index:
            raise ValueError(f"place {index} of the run holds request {stamps.index}")
