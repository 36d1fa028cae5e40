"""Joins what the rooms know into the rows a runner executes.

The plan says who runs and how far, the state which tokens, the pool which pages, residency
which slot. Pure; called by the engine once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .execution.batch import StepRow
from .memory.pool import Pool
from .memory.residency import Residency
from .scheduling.commit import Awaited
from .scheduling.records import BASE_ID, NO_PLACES, PlannedRun, StepPlan
from .scheduling.starts import Way
from .scheduling.state import SchedulerState

BASE_SLOT = -1


def step_rows(
    plan: StepPlan, awaited: Awaited, state: SchedulerState, pool: Pool, residency: Residency
) -> list[StepRow]:
    """In the plan's order: rows of one adapter side by side, the base's first."""
    rows = [_step_row(run, awaited, state, pool, residency) for run in plan.runs]
    if plan.ways:
        ways = {residency.slot_of(adapter_id): way for adapter_id, way in plan.ways.items()}
        rows = [replace(row, way=ways.get(row.adapter_slot, Way.WARM)) for row in rows]
    return rows


def without_shut(
    rows: list[StepRow], is_open: Callable[[int], bool]
) -> tuple[list[StepRow], tuple[int, ...]]:
    """The rows that can run, and the requests of those that cannot: their slot is neither warm nor
    open, for the image has left host memory since the plan was made.
    """
    shut = {row.adapter_slot for row in rows if row.way is not Way.WARM}
    shut = {slot for slot in shut if not is_open(slot)}
    if not shut:
        return rows, ()
    lost = tuple(row.row for row in rows if row.adapter_slot in shut)
    return [row for row in rows if row.adapter_slot not in shut], lost


def _step_row(
    run: PlannedRun, awaited: Awaited, state: SchedulerState, pool: Pool, residency: Residency
) -> StepRow:
    request = state.request(run.row)
    # The values may be behind their number: the newest token is in a step on its way.
    known, fed_last = state.known_ids[run.row], run.row in awaited.decoded
    adapter_id = request.adapter_id
    return StepRow(
        row=run.row,
        # The token sampled last is still on the device, after a preemption too.
        token_ids=() if fed_last else known[run.start : run.start + run.num_tokens],
        num_tokens=run.num_tokens,
        start=run.start,
        pages=pool.kv_pages(run.row),
        adapter_slot=BASE_SLOT if adapter_id == BASE_ID else residency.slot_of(adapter_id),
        sample=run.row in awaited.sampled,
        sampling=request.sampling,
        known_ids=known,
        num_prompt=len(request.prompt_ids),
        tell=awaited.told.get(run.row, NO_PLACES),
    )
