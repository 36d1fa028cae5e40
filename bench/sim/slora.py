"""S-LoRA's published overload in simulation: their requests, our engine, their machine's figures.

Owns which runs are repeated, what is read off them, and the bound within which the two that are
quoted have to agree. The profile was set by runs without overload (slora_profile.py); a run that
set it is marked and says nothing about prediction. Started by command.py.

What is ours and not theirs: a prompt is admitted at any step (theirs: every tenth) and shares its
step with decoding rows (theirs stand still meanwhile); memory is taken as tokens come (theirs is
reserved for the longest answer); an adapter is loaded beside the steps and stays while there is
room (theirs is loaded between two steps and dropped with its last row).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..slo.stamps import Outcome, Run
from ..workload.records import Workload
from .slora_published import (
    BOUND_S,
    BY_CV,
    BY_RATE,
    NOT_OVERLOADED,
    SPAN_S,
    Published,
    draw_workload,
)

MAX_DIFFERENCE = 0.15  # of attainment, simulated and published
QUOTED = BY_CV[:2]  # 6 requests/s, cv 1: 0.10 in the order of arrival, 0.72 with early abort
# What is quoted comes first. BY_RATE's run at 6 requests/s is the first one again.
ALL = (*BY_CV, *(run for run in BY_RATE if run.rate_per_s != QUOTED[0].rate_per_s))

Simulate = Callable[[Workload, str], Run]  # workload, policy


@dataclass(frozen=True, slots=True)
class Reproduced:
    """Simulated, in the units of what was published."""

    published: Published
    attainment: float
    throughput_per_s: float
    mean_first_s: float
    num_aborted: int
    took_s: float  # of ours

    @property
    def difference(self) -> float:
        return self.attainment - self.published.attainment

    @property
    def holds(self) -> bool:
        return abs(self.difference) <= MAX_DIFFERENCE

    @property
    def is_quoted(self) -> bool:
        return self.published in QUOTED

    @property
    def set_the_profile(self) -> bool:
        return self.published in NOT_OVERLOADED


def reproduce(
    simulate: Simulate, runs: Sequence[Published] = ALL, *, span_s: float = SPAN_S
) -> list[Reproduced]:
    done: list[Reproduced] = []
    for published in runs:
        workload = draw_workload(published, span_s=span_s)
        began_s = time.perf_counter()
        run = simulate(workload, published.served.value)
        done.append(read_off(published, run, took_s=time.perf_counter() - began_s))
    return done


def read_off(published: Published, run: Run, *, took_s: float) -> Reproduced:
    """As their own script does: a first token within the bound, as a share of all requests."""
    answered = [one for one in run.requests if one.outcome is Outcome.OK]
    first_s = np.array([one.first_s - one.due_s for one in answered])
    until_s = max((one.end_s for one in answered), default=math.nan)
    return Reproduced(
        published=published,
        attainment=float((first_s < BOUND_S).sum()) / len(run.requests),
        throughput_per_s=len(answered) / until_s,
        mean_first_s=float(first_s.mean()) if answered else math.nan,
        num_aborted=sum(one.outcome is Outcome.REFUSED for one in run.requests),
        took_s=took_s,
    )


def failures(done: Sequence[Reproduced]) -> list[str]:
    """Of the runs that are quoted, those that do not come out; the others are shown, not judged."""
    return [
        f"S-LoRA, {one.published.served.value}: attainment {one.attainment:.3f} simulated, "
        f"{one.published.attainment:.3f} published; the difference may be {MAX_DIFFERENCE:g}"
        for one in done
        if one.is_quoted and not one.holds
    ]
