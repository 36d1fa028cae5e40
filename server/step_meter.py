"""The engine's stopwatch: what each step had to do, and how long its turn of the loop took.

Owns the steps that have taken off and not landed. A step's seconds are those of its turn: from the
moment its plan was begun, or the one before it was over if that was later, until its answers were
sent. So planning and publishing count where nothing runs beside them; taking in commands between
two turns, and learning from the step, do not. Steps whose rows may have waited for a load or for
helpers teach nothing: they say little of the device. Tells the fit and the log, where there are
any; reads no clock and decides nothing. Called by engine.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .memory.link_records import Link
from .metered_link import MeteredLink
from .scheduling.commit import Awaited
from .scheduling.cost_fit import CostFit
from .scheduling.cost_model import NO_MODEL, NO_REPORT, CostModel, CostReport
from .scheduling.records import BASE_ID
from .scheduling.state import SchedulerState
from .scheduling.step_work import StepWork, measure_work


class MeteredStep(NamedTuple):
    ended_s: float  # instant of the engine's clock
    seconds: float
    predicted_s: float  # before it was learnt from; nan: nothing was known, or rows began cold
    work: StepWork
    # Of what the model has no terms for, for comparisons: BGMV pads every adapter to the largest.
    lora_tokens: int = 0  # tokens of rows that have an adapter
    max_adapter_bytes: int = 0  # of the largest one among the rows


class _Aloft(NamedTuple):
    began_s: float  # instant
    work: StepWork
    lora_tokens: int
    max_adapter_bytes: int
    is_cold: bool


class StepMeter:
    """Without a fit there is nothing to do, and it does nothing."""

    def __init__(
        self, fit: CostFit | None = None, *, log: Callable[[MeteredStep], None] | None = None
    ) -> None:
        self._fit, self._log = fit, log
        self._aloft: deque[_Aloft] = deque()
        self._ended_s = 0.0  # the last one

    @property
    def learns(self) -> bool:
        """Whether there will ever be a model."""
        return self._fit is not None

    def takes_off(
        self, awaited: Awaited, state: SchedulerState, began_s: float, *, is_cold: bool = False
    ) -> None:
        """Before the table is moved on; a step of no rows is none. `is_cold`: adapters of some rows
        are on their way.
        """
        if self._fit is None or not len(awaited.runs):
            return
        rows, starts, counts, _ = awaited.runs.T
        adapter_ids, adapter_bytes = state.adapter_id[rows], state.adapter_bytes[rows]
        work = measure_work(starts, counts, adapter_ids, adapter_bytes)
        lora_tokens = int(counts[adapter_ids != BASE_ID].sum())
        max_bytes = int(adapter_bytes.max())
        self._aloft.append(_Aloft(began_s, work, lora_tokens, max_bytes, is_cold))

    def landed(self, now_s: float) -> None:
        """The oldest one aloft is over, and what it brought is sent; if there is one."""
        if self._fit is None or not self._aloft:
            return
        step = self._aloft.popleft()
        seconds = now_s - max(step.began_s, self._ended_s)
        self._ended_s = now_s
        if seconds <= 0.0:
            return  # a clock that did not move tells nothing
        # Waits for layers and helpers are no work that the model has terms for.
        predicted_s = math.nan if step.is_cold else self._fit.step(step.work, seconds)
        if self._log is not None:
            amounts = (step.work, step.lora_tokens, step.max_adapter_bytes)
            self._log(MeteredStep(now_s, seconds, predicted_s, *amounts))

    def metered(self, link: Link) -> Link:
        """The link, teaching the same fit; as it is without one."""
        return link if self._fit is None else MeteredLink(link, self._fit)

    def model(self) -> CostModel:
        return NO_MODEL if self._fit is None else self._fit.model()

    def report(self) -> CostReport:
        return NO_REPORT if self._fit is None else self._fit.report()
