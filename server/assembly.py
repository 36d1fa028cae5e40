"""Joins what the rooms know into the rows a runner executes.

The plan says who runs and how far, the state which tokens, the pool which pages, residency
which slot. Pure; called by the engine once a step.
"""

from __future__ import annotations

from .execution.batch import StepRow
from .memory.pool import Pool
from .memory.residency import Residency
from .scheduling.commit import tells
from .scheduling.records import BASE_ID, PlannedRun, StepPlan
from .scheduling.state import SchedulerState

BASE_SLOT = -1


def step_rows(
    plan: StepPlan, state: SchedulerState, pool: Pool, residency: Residency
) -> list[StepRow]:
    """In the plan's order: rows of one adapter side by side, the base's first."""
    return [_step_row(run, state, pool, residency) for run in plan.runs]


def _step_row(run: PlannedRun, state: SchedulerState, pool: Pool, residency: Residency) -> StepRow:
    request = state.request(run.row)
    known = state.known_ids[run.row]
    end = run.start + run.num_tokens
    sampled_last = run.num_tokens == 1 and end == len(known) > len(request.prompt_ids)
    adapter_id = request.adapter_id
    return StepRow(
        row=run.row,
        # The token sampled last is still on the device, after a preemption too.
        token_ids=() if sampled_last else known[run.start : end],
        num_tokens=run.num_tokens,
        start=run.start,
        pages=pool.kv_pages(run.row),
        adapter_slot=BASE_SLOT if adapter_id == BASE_ID else residency.slot_of(adapter_id),
        sample=end == len(known),
        sampling=request.sampling,
        known_ids=known,
        num_prompt=len(request.prompt_ids),
        tell=tells(state, run),
    )
