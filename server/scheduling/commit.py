"""Moves the table on: by a step that is launched (`advance`), then by its tokens (`settle`).

Both change the columns in place (copying them would cost more than planning); they free no page
and drop no row: the engine publishes each outcome, then lets go of pages, adapter and row
together. `commit` is the two at once, for a step that is launched and waited for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from .records import Ending, Outcome, StepPlan
from .state import SchedulerState, Status


@dataclass(frozen=True, slots=True, eq=False)
class Awaited:
    """What a step will bring. Numpy's numbers cost too much one by one: a step is read as a whole,
    and once.
    """

    runs: NDArray[np.int64]  # [B, 4]: the plan's, field by field
    sampled: frozenset[int]  # rows that get a token
    decoded: frozenset[int]  # of those, the rows that are fed just the one sampled last
    told: Mapping[int, range]  # row -> places of its prompt whose next token is judged

    @property
    def rows(self) -> NDArray[np.int64]:
        return self.runs[:, 0]


def commit(
    state: SchedulerState,
    plan: StepPlan,
    tokens: Mapping[int, int],
    now_s: float,
    *,
    broken: Collection[int] = (),
    lost: Collection[int] = (),
    awaited: Awaited | None = None,
) -> tuple[Outcome, ...]:
    """`tokens`: row -> token, for the runs that reached their last known token.

    `broken` are the rows whose logits were not finite, so that there is none; a row in the middle
    of a prompt that is told may be among them. What the step computed for `lost` rows is void: they
    wait again, as after a preemption. `now_s` is when the tokens were there; the plan knows when it
    was made. `awaited`: if the plan was asked already.
    """
    awaited = awaited or awaits(state, plan)
    _check(awaited, tokens, broken, lost)
    ended = advance(state, plan, awaited)
    return (*ended, *settle(state, awaited, tokens, now_s, broken=broken, lost=lost))


def awaits(state: SchedulerState, plan: StepPlan) -> Awaited:
    """What the step will bring; to be asked before `advance`."""
    runs = np.array(plan.runs, np.int64).reshape(-1, 4)
    rows, starts, counts, _ = runs.T
    ends, known = starts + counts, state.num_known[rows]
    samples = ends == known
    decodes = samples & (counts == 1) & (known > state.num_prompt[rows])
    # Places that this step computes and nobody was told yet.
    first = np.maximum(starts, state.num_told[rows])
    stop = np.minimum(ends, state.num_to_tell[rows])
    telling = np.flatnonzero(first < stop)
    return Awaited(
        runs,
        sampled=frozenset(rows[samples].tolist()),
        decoded=frozenset(rows[decodes].tolist()),
        told={int(rows[i]): range(int(first[i]), int(stop[i])) for i in telling},
    )


def advance(state: SchedulerState, plan: StepPlan, awaited: Awaited) -> tuple[Outcome, ...]:
    """The step is on its way: what it computes counts as computed, what it samples as known.

    Returns those whom the plan ends; nothing of them is in the step.
    """
    state.starts.chose(plan)
    for row in plan.preemptions:
        state.give_back(row)
    for adapter_id in plan.evictions:
        state.adapter_left(adapter_id, plan.now_s)
    _enter_newcomers(state, plan, awaited)
    rows, _, counts, new_pages = awaited.runs.T
    state.num_computed[rows] += counts
    state.num_pages[rows] += new_pages
    state.num_known[list(awaited.sampled)] += 1
    for row, places in awaited.told.items():
        state.num_told[row] = places.stop
    endings = ((plan.expired, Ending.EXPIRED), (plan.aborted, Ending.ABORTED))
    return tuple(
        Outcome(row, state.request(row).request_id, None, ending)
        for rows, ending in endings
        for row in rows
    )


def settle(
    state: SchedulerState,
    awaited: Awaited,
    tokens: Mapping[int, int],
    now_s: float,
    *,
    broken: Collection[int] = (),
    lost: Collection[int] = (),
) -> tuple[Outcome, ...]:
    """The step's tokens are there; those of rows that left meanwhile were computed in vain.

    No step that uses a `lost` row may be on its way: it waits again, and holds no pages.
    """
    _check(awaited, tokens, broken, lost)
    for row in lost:
        if row not in state.leaving:
            _take_back(state, awaited, row)
    outcomes = [
        Outcome(row, state.request(row).request_id, None, Ending.BROKEN)
        for row in broken
        if row not in state.leaving
    ]
    heard = [row for row in awaited.rows.tolist() if row in tokens and row not in state.leaving]
    _stamp(state, heard, now_s)
    outcomes += [_append(state, row, tokens[row]) for row in heard]
    return tuple(outcomes)


def _take_back(state: SchedulerState, awaited: Awaited, row: int) -> None:
    """As if the step had not been, and the row preempted: nothing it has computed counts."""
    state.num_known[row] -= row in awaited.sampled
    if row in awaited.told:
        state.num_told[row] = awaited.told[row].start
    state.give_back(row)


def _check(
    awaited: Awaited, tokens: Mapping[int, int], broken: Collection[int], lost: Collection[int]
) -> None:
    void = frozenset(lost)
    expected, answered = awaited.sampled - void, tokens.keys() | set(broken)
    if not tokens.keys() <= expected <= answered <= expected | (awaited.told.keys() - void):
        raise InternalError(
            f"sampled rows are {sorted(tokens)}, broken {sorted(broken)}, lost {sorted(lost)}, "
            f"planned {sorted(expected)}"
        )
    if void and not void <= set(awaited.rows.tolist()):
        raise InternalError(f"lost rows are {sorted(lost)}, not all of them ran")


def _enter_newcomers(state: SchedulerState, plan: StepPlan, awaited: Awaited) -> None:
    rows = awaited.rows
    newcomers = rows[state.status[rows] == Status.WAITING].tolist()
    if not newcomers:
        return
    num_first = int(np.isnan(state.first_scheduled_s[newcomers]).sum())
    if num_first:
        state.flow.let(num_first)
    starts = dict(zip(rows.tolist(), awaited.runs[:, 1].tolist(), strict=True))
    found = {hit.row: hit.num_pages for hit in plan.hits}
    for row in newcomers:
        pages = found.get(row, 0)
        if (pages > 0) != (starts[row] > 0):
            raise InternalError(f"row {row} begins at {starts[row]} behind {pages} cached pages")
        state.enter(row, plan.now_s, cached_tokens=starts[row], cached_pages=pages)
    passed = _passed_by(state, newcomers, newest_first=plan.newest_first)
    if plan.first_without_logits is not None:
        first = state.line.position(*state.age(plan.first_without_logits))
        late = passed[first:]
        passed = np.concatenate([passed[:first], late[~state.is_untold(late)]])
    state.overtaken_s[passed] = np.minimum(state.overtaken_s[passed], plan.now_s)


def _passed_by(
    state: SchedulerState, newcomers: list[int], *, newest_first: bool
) -> NDArray[np.int64]:
    """Waiting rows that stood before one of the newcomers and are wronged by it."""
    rows = state.line.rows()
    if not newest_first:
        newest = max(state.age(row) for row in newcomers)
        return rows[: state.line.position(*newest)]
    # In a line turned round those who had a token stand in front.
    begun = state.has_begun(np.array(newcomers))
    if begun.all():
        newest = max(state.age(row) for row in newcomers)
        rows = rows[: state.line.position(*newest)]
    return rows[state.has_begun(rows)]


def _stamp(state: SchedulerState, rows: list[int], now_s: float) -> None:
    state.last_token_s[rows] = now_s
    first_s = state.first_token_s[rows]
    state.first_token_s[rows] = np.where(np.isnan(first_s), now_s, first_s)


def _append(state: SchedulerState, row: int, token: int) -> Outcome:
    request = state.request(row)
    state.known_ids[row].append(token)
    ending = None
    if token in request.stop_ids:
        ending = Ending.STOP
    elif len(state.known_ids[row]) - len(request.prompt_ids) >= request.max_new_tokens:
        ending = Ending.LENGTH
    return Outcome(row, request.request_id, token, ending)
