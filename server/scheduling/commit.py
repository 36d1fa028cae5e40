"""Moves the table on by one step that has run.

`commit` changes the columns in place (copying them would cost more than planning); it frees no
page and drops no row: the engine publishes each outcome, then lets go of pages, adapter and
row together. Called once per plan, after the runner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ..errors import InternalError
from .records import NO_PLACES, Ending, Outcome, PlannedRun, StepPlan
from .state import SchedulerState, Status


def commit(
    state: SchedulerState,
    plan: StepPlan,
    tokens: Mapping[int, int],
    now_s: float,
    *,
    broken: Collection[int] = (),
) -> tuple[Outcome, ...]:
    """`tokens`: row -> token, for the runs that reached their last known token.

    `broken` are the rows whose logits were not finite, so that there is none; a row in the middle
    of a prompt that is told may be among them. `now_s` is when the tokens were there; the plan
    knows when it was made.
    """
    expected = {run.row for run in plan.runs if samples(state, run)}
    answered = tokens.keys() | set(broken)
    told = {run.row for run in plan.runs if tells(state, run)} if broken else set[int]()
    if not tokens.keys() <= expected <= answered <= expected | told:
        raise InternalError(
            f"sampled rows are {sorted(tokens)}, broken {sorted(broken)}, "
            f"planned {sorted(expected)}"
        )
    for row in plan.preemptions:
        state.give_back(row)
    for adapter_id in plan.evictions:
        state.adapter_left(adapter_id, plan.now_s)
    _enter_newcomers(state, plan)
    outcomes = [
        Outcome(row, state.request(row).request_id, None, Ending.EXPIRED) for row in plan.expired
    ]
    outcomes += [Outcome(row, state.request(row).request_id, None, Ending.BROKEN) for row in broken]
    for run in plan.runs:
        state.num_computed[run.row] += run.num_tokens
        state.num_pages[run.row] += run.num_new_pages
        if told_now := tells(state, run):
            state.num_told[run.row] = told_now.stop
        if run.row in tokens:
            outcomes.append(_append(state, run.row, tokens[run.row], now_s))
    return tuple(outcomes)


def samples(state: SchedulerState, run: PlannedRun) -> bool:
    """Whether this run ends at the last known token, so that the next one is wanted."""
    return run.start + run.num_tokens == int(state.num_known[run.row])


def tells(state: SchedulerState, run: PlannedRun) -> range:
    """Places of the prompt whose next token this run can judge, and nobody has yet."""
    num_to_tell = int(state.num_to_tell[run.row])
    if run.start >= num_to_tell:
        return NO_PLACES
    first = max(run.start, int(state.num_told[run.row]))
    return range(first, max(first, min(run.start + run.num_tokens, num_to_tell)))


def _enter_newcomers(state: SchedulerState, plan: StepPlan) -> None:
    newcomers = [run.row for run in plan.runs if state.status[run.row] == Status.WAITING]
    if not newcomers:
        return
    for row in newcomers:
        state.enter(row, plan.now_s)
    newest = max(state.age(row) for row in newcomers)
    passed = state.line.rows()[: state.line.position(*newest)]
    if plan.first_without_logits is not None:
        first = state.line.position(*state.age(plan.first_without_logits))
        late = passed[first:]
        passed = np.concatenate([passed[:first], late[~state.is_untold(late)]])
    state.overtaken_s[passed] = np.minimum(state.overtaken_s[passed], plan.now_s)


def _append(state: SchedulerState, row: int, token: int, now_s: float) -> Outcome:
    request = state.request(row)
    state.known_ids[row].append(token)
    state.num_known[row] += 1
    if np.isnan(state.first_token_s[row]):
        state.first_token_s[row] = now_s
    state.last_token_s[row] = now_s
    ending = None
    if token in request.stop_ids:
        ending = Ending.STOP
    elif len(state.known_ids[row]) - len(request.prompt_ids) >= request.max_new_tokens:
        ending = Ending.LENGTH
    return Outcome(row, request.request_id, token, ending)
