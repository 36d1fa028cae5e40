"""Prompts that are told: how many of a step's logits are theirs."""

from __future__ import annotations

import pytest

from lorry.server.errors import InternalError
from lorry.server.scheduling.commit import awaits, commit
from lorry.server.scheduling.draft import PlanDraft
from lorry.server.scheduling.line import NOBODY
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import Ending, PlannedRun, StepPlan
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.scheduling_builders import make_limits, make_request, make_state, make_view


def told(request_id: int, num_prompt: int = 20):
    return make_request(request_id, num_prompt=num_prompt, prompt_logprobs=0)


def lens(state: SchedulerState, **limits: int) -> dict[int, int]:
    plan = plan_step(state, make_view(), make_limits(**limits), 0.0)
    return {run.row: run.num_tokens for run in plan.runs}


def enter(state: SchedulerState, row: int, *, computed: int, told: int) -> None:
    """As if the row had run; each four tokens have a page."""
    state.enter(row, 0.0)
    state.num_computed[row], state.num_pages[row] = computed, -(-computed // 4)
    state.num_told[row] = told


def test_a_chunk_is_cut_to_the_logits_of_a_step():
    """Logits of a whole long prompt: the largest tensor of the server, unbounded."""
    assert lens(make_state(told(0)), max_prompt_logits=7) == {0: 7}
    assert lens(make_state(make_request(0, num_prompt=20)), max_prompt_logits=7) == {0: 20}
    # The last place is sampled from, whoever asks: 19 places are told.
    assert lens(make_state(told(0)), max_prompt_logits=19) == {0: 20}
    assert lens(make_state(told(0)), max_prompt_logits=18) == {0: 18}


def test_the_logits_left_are_the_next_ones():
    """Two prompts of one step that are told more than the step has room for."""
    state = make_state(told(0, 5), told(1), make_request(2, num_prompt=6), told(3))
    assert lens(state, max_prompt_logits=9, max_step_tokens=64) == {0: 5, 1: 5, 2: 6}


def test_what_was_told_costs_no_logits():
    """A recomputed prompt creeping along in chunks made for logits it does not need."""
    state = make_state(told(0), told(1))
    enter(state, 0, computed=2, told=12)
    enter(state, 1, computed=0, told=19)
    assert lens(state, max_prompt_logits=3, max_step_tokens=64) == {0: 13, 1: 20}


def test_a_row_without_logits_waits_and_takes_nobodys_pages():
    """A step full of logits mistaken for a full pool: somebody is preempted for nothing."""
    state = make_state(*(told(i) for i in range(3)))
    enter(state, 0, computed=4, told=4)
    enter(state, 1, computed=4, told=4)
    enter(state, 2, computed=4, told=4)
    plan = plan_step(state, make_view(), make_limits(max_prompt_logits=5), 0.0)
    assert [run.row for run in plan.runs] == [0]
    assert not plan.preemptions
    view = make_view(num_pages=4, num_free=1)
    plan = plan_step(state, view, make_limits(max_prompt_logits=4), 0.0)
    assert [(run.row, run.num_tokens) for run in plan.runs] == [(0, 4)]
    assert not plan.preemptions


def test_a_preemption_gives_its_logits_back():
    """Logits planned for a row that is then preempted, lost for the step."""
    state = make_state(told(0), told(1))
    enter(state, 0, computed=4, told=4)
    enter(state, 1, computed=4, told=2)
    draft = PlanDraft(state, make_view(), make_limits(max_prompt_logits=10), 0.0, [])
    draft.run(0, 4, NOBODY)
    draft.run(1, 4, NOBODY)
    assert draft.tells_left == 2
    draft.preempt(1)
    assert draft.tells_left == 6


def test_commit_remembers_what_was_told():
    """A prompt told twice after a preemption, or its rest never."""
    state = make_state(told(0))
    first = StepPlan(runs=(PlannedRun(0, 0, 6, 2),))
    assert awaits(state, first).told == {0: range(0, 6)}
    commit(state, first, {}, 0.5)
    again = PlannedRun(0, 0, 9, 3)
    commit(state, StepPlan(preemptions=(0,)), {}, 1.0)
    assert awaits(state, StepPlan(runs=(again,))).told == {0: range(6, 9)}
    commit(state, StepPlan(runs=(again,)), {}, 1.5)
    last = PlannedRun(0, 9, 11, 2)
    assert awaits(state, StepPlan(runs=(last,))).told == {0: range(9, 19)}
    commit(state, StepPlan(runs=(last,)), {0: 7}, 2.0)
    assert state.num_told[0] == 19
    assert not awaits(state, StepPlan(runs=(PlannedRun(0, 20, 1, 0),))).told


def test_only_a_row_that_is_told_breaks_in_mid_prompt():
    """A runner that answers for rows it was not asked about."""
    state = make_state(told(0), make_request(1, num_prompt=20))
    plan = StepPlan(runs=(PlannedRun(0, 0, 6, 2), PlannedRun(1, 0, 6, 2)))
    with pytest.raises(InternalError, match="planned"):
        commit(state, plan, {}, 0.5, broken=(1,))
    with pytest.raises(InternalError, match="planned"):
        commit(state, plan, {0: 3}, 0.5)
    (outcome,) = commit(state, plan, {}, 0.5, broken=(0,))
    assert (outcome.row, outcome.ending) == (0, Ending.BROKEN)


def test_no_adapter_is_fetched_for_a_row_without_logits():
    """Slots and pages filled for prompts whose turn is far away, before those who could run."""
    first = make_request(0, num_prompt=20, prompt_logprobs=0)
    second = make_request(1, num_prompt=20, adapter_id=1, adapter_pages=4, prompt_logprobs=0)
    plain = make_request(2, adapter_id=2, adapter_pages=4)
    state = make_state(first, second, plain)
    plan = plan_step(state, make_view(), make_limits(max_loads=1, max_prompt_logits=9), 0.0)
    assert [run.row for run in plan.runs] == [0]
    assert [load.adapter_id for load in plan.loads] == [2]


def test_patience_runs_while_room_is_what_a_row_lacks():
    """A row that waits for logits bars the door the moment its turn comes; or, passed by who
    takes the logits it could have had, never does."""
    state = make_state(told(0), told(1), make_request(2))
    plan = plan_step(state, make_view(), make_limits(max_prompt_logits=9), 1.0)
    assert {run.row for run in plan.runs} == {0, 2}
    commit(state, plan, {2: 7}, 1.5)
    assert state.overtaken_s[1] == float("inf")
    state = make_state(told(0, 60), told(1, 2))  # the first has no room
    plan = plan_step(state, make_view(num_free=4), make_limits(max_prompt_logits=64), 1.0)
    assert [run.row for run in plan.runs] == [1]
    commit(state, plan, {1: 7}, 1.5)
    assert state.overtaken_s[0] == 1.0


def test_who_was_passed_bars_no_door_while_others_have_the_logits():
    """A newer prompt that got in while an older one had no room takes the logits for long: the
    older one would close the server until it is done."""
    state = make_state(told(0), told(1), make_request(2))
    enter(state, 1, computed=4, told=4)
    state.overtaken_s[0] = 0.0
    plan = plan_step(state, make_view(), make_limits(max_prompt_logits=9), 100.0)
    assert {run.row for run in plan.runs} == {1, 2}
    # Its turn has come, and there is no room for it.
    view = make_view(num_free=9)
    limits = make_limits(max_prompt_logits=32, max_step_tokens=64)
    assert [run.row for run in plan_step(state, view, limits, 100.0).runs] == [1]
