"""The simulator against a live server: fitted on workload A, judged on workload B. Pure.

Owns the order of the argument: a profile from A's steps alone, then B simulated under each policy
with it, then how far B's live rounds and the simulation are apart, and whether both call the same
policy the better one. What was live is handed in (live_run.py), and who simulates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...server.scheduling.accuracy import Accuracy
from ...server.step_meter import MeteredStep
from ..slo.bounds import FixedBounds
from ..slo.lag import LagReport
from ..slo.stamps import Run
from ..workload.records import Workload
from .agreement import Conclusion, PolicyAgreement, agree, conclude
from .fit import FittedSteps, ServerFacts, fit_runs, judge_runs, make_profile
from .front_end import FrontEnd, Solo, fit_front_end
from .profile import Profile

POLICIES = ("fcfs", "slora")
# B's requests carry their own bounds. Those of A have none, and are judged by none.
OWN_BOUNDS = FixedBounds(ttft_s=float("inf"), tpot_s=float("inf"))

Simulate = Callable[[Workload, Profile, str], Run]  # the last: policy


@dataclass(frozen=True, slots=True)
class LiveCell:
    """One workload sent once to one server."""

    policy: str
    round_idx: int
    run: Run
    lag: LagReport
    steps: tuple[MeteredStep, ...]  # that the server made meanwhile


@dataclass(frozen=True, slots=True)
class LiveRuns:
    """All that came of the live servers."""

    fit: Workload  # A
    judged: Workload  # B
    fit_cells: tuple[LiveCell, ...]
    judged_cells: tuple[LiveCell, ...]
    facts: ServerFacts
    solos: tuple[Solo, ...]
    offered: Mapping[str, float]  # requests/s, and of which capacity: for the record


@dataclass(frozen=True, slots=True)
class LiveReport:
    live: LiveRuns
    profile: Profile
    fitted: FittedSteps
    front_end: FrontEnd
    accuracy_fit: Accuracy  # on the very steps it was fitted on
    accuracy: Accuracy  # on B's, which it has not seen
    agreements: tuple[PolicyAgreement, ...]
    conclusion: Conclusion
    simulated: tuple[Run, ...]  # of B, by policy; their stamps are kept
    simulated_fit: tuple[Run, ...]  # of A: how it looks on what it knows


def study(live: LiveRuns, simulate: Simulate, *, result: str) -> LiveReport:
    """`result`: the file that will hold all this; goes into the profile's sources.

    Raises:
        TooFewSteps: A left too few to fit.
    """
    fitted = fit_runs([cell.steps for cell in live.fit_cells])
    front_end = fit_front_end(live.solos)
    device = live.facts.device.partition(":")[0]
    profile = make_profile(live.facts, fitted, front_end, name=f"live-{device}", result=result)
    simulated = {policy: simulate(live.judged, profile, policy) for policy in POLICIES}
    agreements = {
        policy: agree(_rounds(live.judged_cells, policy), run, live.judged, OWN_BOUNDS)
        for policy, run in simulated.items()
    }
    return LiveReport(
        live=live,
        profile=profile,
        fitted=fitted,
        front_end=front_end,
        accuracy_fit=judge_runs(fitted, [cell.steps for cell in live.fit_cells]),
        accuracy=judge_runs(fitted, [cell.steps for cell in live.judged_cells]),
        agreements=tuple(agreements.values()),
        conclusion=conclude(agreements, POLICIES),
        simulated=tuple(simulated.values()),
        simulated_fit=tuple(simulate(live.fit, profile, policy) for policy in POLICIES),
    )


def _rounds(cells: Sequence[LiveCell], policy: str) -> list[Run]:
    held = sorted((cell for cell in cells if cell.policy == policy), key=lambda one: one.round_idx)
    return [cell.run for cell in held]
