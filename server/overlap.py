"""The overlapped loop's books: which steps are on their way, and what they hold.

Owns the launched steps in their order, and with it which rows' pages, adapter and place are held
back until the last step that uses them has landed. Says when a plan has to wait for a landing.
Knows no token's value and no endings. Used by the engine; engine_process.py asks it whether to
overlap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .execution.flight import Flight
from .scheduling.commit import Awaited
from .scheduling.records import StepPlan
from .scheduling.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that is on its way."""

    flight: Flight
    awaited: Awaited
    left_out: tuple[int, ...] = ()  # rows of the plan that could not be in the step


class Airspace(deque[Launched]):
    """Steps on their way, oldest first.

    What they use is held although whoever left will not miss it: on a device a step would be in
    order with whatever the next owner computes, but an adapter's load runs beside it and could
    write pages that the step still reads or writes.
    """

    def uses(self, row: int) -> bool:
        """Whether a step on its way reads or writes this row's pages."""
        return any(row in launched.awaited.rows for launched in self)

    def released(self, state: SchedulerState) -> list[int]:
        """Rows that have left and that no step uses any more."""
        return sorted(row for row in state.leaving if not self.uses(row))


def must_land_first(plan: StepPlan, state: SchedulerState, airspace: Airspace) -> bool:
    """Whether the plan is to be made again on what the steps on their way bring.

    A victim may be about to end, and what it holds is in use: nobody is preempted or expired
    while a step computes for him. And penalties count tokens on the host: a row that has them
    waits for its newest one.
    """
    if not airspace:
        return False
    return (
        bool(plan.preemptions)
        or any(airspace.uses(row) for row in plan.expired)
        or any(_lacks_history(state, run.row) for run in plan.runs)
    )


def _lacks_history(state: SchedulerState, row: int) -> bool:
    """Of a prompt all is there, and what is sampled next after a launched step is not."""
    needs = state.request(row).sampling.needs_history
    return needs and len(state.known_ids[row]) < state.num_known[row]


def is_over_at_once(plan: StepPlan, awaited: Awaited, state: SchedulerState) -> bool:
    """Whether there is no flight to plan behind, for the runner looks at the step before it is back
    from launching: at log-probabilities, or at who was lost for its adapter was on its way.
    """
    return (
        bool(plan.ways)
        or bool(awaited.told)
        or any(state.request(row).sampling.logprobs >= 0 for row in awaited.sampled)
    )


def choose_overlap(wanted: bool | None, *, device: str) -> tuple[bool, str]:
    """Whether the loop overlaps, and why."""
    if wanted is not None:
        return wanted, f"--{'' if wanted else 'no-'}overlap"
    if device.startswith("cuda"):
        return True, f"{device} computes while the next step is planned"
    return False, f"{device} computes in the loop's own thread, so nothing would overlap"
