"""The simulated runner: a step is its work, the seconds the cost model gives it, and a token.

Computes nothing and holds nothing: every row that wants a token gets the same one, which ends no
answer. `run` moves the clock over the step; `launch` lets the step take off behind the one before
it, and `wait` moves the clock to its landing. Keeps the newest step's shape for leap.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...adapters.image import ImageLayout
from ...server.execution.batch import StepResult, StepRow
from ...server.scheduling.cost_model import CostModel
from ...server.scheduling.step_work import measure_work
from .clock import SimClock

TOKEN = 1


@dataclass(slots=True)
class SimFlight:
    """A launched step; leap.py lets it fly further."""

    clock: SimClock
    landing_s: float
    result: StepResult
    is_up: bool = True

    def wait(self) -> StepResult:
        self.clock.reach(self.landing_s)
        self.is_up = False
        return self.result


@dataclass(frozen=True, slots=True)
class LastStep:
    """What the newest step was."""

    rows: NDArray[np.int64]  # [B], in the plan's order
    samples: bool  # every row got a token
    decodes: bool  # and computed just the one before it


NO_STEP = LastStep(np.zeros(0, np.int64), samples=False, decodes=False)


class SimRunner:
    """A `Runner` by the cost model."""

    def __init__(self, clock: SimClock, cost: CostModel, *, max_slots: int) -> None:
        self._clock, self._cost = clock, cost
        self._slot_bytes = np.zeros(max_slots + 1, np.int64)  # the base's -1 is the last: no bytes
        self.last = NO_STEP
        self.flight: SimFlight | None = None  # launched last
        self.num_steps = 0

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        del pages
        self._slot_bytes[slot] = layout.used_elements

    def detach(self, slot: int) -> None:
        self._slot_bytes[slot] = 0

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        self._clock.pass_s(self._measure(rows))
        return _result(rows)

    def launch(self, rows: Sequence[StepRow]) -> SimFlight:
        seconds, now_s = self._measure(rows), self._clock.now_s()
        takes_off_s = max(now_s, self.flight.landing_s) if self.flight else now_s
        self.flight = SimFlight(self._clock, takes_off_s + seconds, _result(rows))
        return self.flight

    def _measure(self, rows: Sequence[StepRow]) -> float:
        """Seconds of the step."""
        facts = np.array(
            [(row.row, row.start, row.num_tokens, row.adapter_slot) for row in rows], np.int64
        )
        numbers, starts, counts, slots = facts.T
        # A slot stands for its adapter; the base's, -1, is its id too.
        work = measure_work(starts, counts, slots, self._slot_bytes[slots])
        samples = all(row.sample for row in rows)
        self.last = LastStep(numbers, samples, decodes=samples and work.prompt_chunks == 0)
        self.num_steps += 1
        return self._cost.step_s(work)


def _result(rows: Sequence[StepRow]) -> StepResult:
    return StepResult({row.row: TOKEN for row in rows if row.sample})
