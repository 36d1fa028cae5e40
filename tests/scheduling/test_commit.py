"""Commit: what a step that ran means for the table."""

import pytest

from lorry.server.errors import InternalError
from lorry.server.scheduling.commit import advance, awaits, commit, settle
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import Ending, PlannedRun, StepPlan
from lorry.tests.scheduling_builders import make_limits, make_request, make_state, make_view


def test_a_stop_token_is_part_of_the_answer_and_ends_it():
    """The answer would lack its last token, or go on."""
    state = make_state(make_request(9, num_prompt=3, max_new=5, stop_ids=frozenset({7})))
    plan = plan_step(state, make_view(), make_limits(), 1.0)
    (outcome,) = commit(state, plan, {0: 7}, 2.0)
    assert (outcome.request_id, outcome.token, outcome.ending) == (9, 7, Ending.STOP)
    assert state.known_ids[0] == [0, 1, 2, 7]
    assert state.row_of(9) == 0, "the engine drops it, after publishing"


def test_length_ends_at_max_new_tokens():
    """One token too many or too few."""
    state = make_state(make_request(num_prompt=3, max_new=2))
    endings = []
    for step in range(2):
        plan = plan_step(state, make_view(), make_limits(), float(step))
        endings += [outcome.ending for outcome in commit(state, plan, {0: 50}, step + 0.5)]
    assert endings == [None, Ending.LENGTH]
    assert len(state.known_ids[0]) == 5


def test_a_chunk_in_the_middle_of_the_prompt_says_nothing():
    """A token sampled in the middle of the prompt would be sent as the answer."""
    state = make_state(make_request(num_prompt=6))
    plan = plan_step(state, make_view(), make_limits(max_step_tokens=4), 0.0)
    assert commit(state, plan, {}, 0.5) == ()
    assert state.num_computed[0] == 4
    plan = plan_step(state, make_view(), make_limits(max_step_tokens=4), 1.0)
    assert plan.runs == (PlannedRun(row=0, start=4, num_tokens=2, num_new_pages=1),)
    with pytest.raises(InternalError, match="sampled rows"):
        commit(state, plan, {}, 1.5)
    assert state.num_computed[0] == 4, "a refused commit changes nothing"


def test_stamps_are_set_once():
    """TTFT and queue time would move when a request is preempted or goes on."""
    state = make_state(make_request(num_prompt=3, max_new=9))
    for step in (1.0, 2.0):
        commit(state, plan_step(state, make_view(), make_limits(), step), {0: 50}, step + 0.5)
    commit(state, StepPlan(now_s=3.0, preemptions=(0,)), {}, 3.5)
    assert (state.num_computed[0], state.num_pages[0], state.num_known[0]) == (0, 0, 5)
    commit(state, plan_step(state, make_view(), make_limits(), 4.0), {0: 50}, 4.5)
    assert state.first_scheduled_s[0] == 1.0
    assert (state.first_token_s[0], state.last_token_s[0]) == (1.5, 4.5)
    assert state.num_preemptions[0] == 1


def test_being_passed_is_stamped_once_and_only_for_older_ones():
    """The bypass clock would never start, or start again with every newcomer."""
    state = make_state(*(make_request(i) for i in range(4)))
    run = PlannedRun(row=2, start=0, num_tokens=4, num_new_pages=1)
    commit(state, StepPlan(now_s=1.0, runs=(run,)), {2: 50}, 1.5)
    assert state.overtaken_s[[0, 1]].tolist() == [1.0, 1.0]
    run = PlannedRun(row=3, start=0, num_tokens=4, num_new_pages=1)
    commit(state, StepPlan(now_s=2.0, runs=(run,)), {3: 50}, 2.5)
    assert state.overtaken_s[[0, 1]].tolist() == [1.0, 1.0]
    assert state.overtaken_s[3] > 1e9


def test_an_eviction_starts_the_load_clock():
    """Waiting for an adapter that was thrown out would not count as load time."""
    state = make_state()
    row = state.add(make_request(1, adapter_id=3), 0.0, resident=True)
    commit(state, StepPlan(now_s=2.0, evictions=(3,)), {}, 2.5)
    state.adapter_arrived(3, 6.0)
    assert state.load_wait_s[row] == 4.0


def test_expired_rows_are_reported():
    """A request would vanish without an answer."""
    state = make_state(make_request(4, deadline_s=1.0))
    plan = plan_step(state, make_view(), make_limits(), 1.0)
    (outcome,) = commit(state, plan, {}, 1.5)
    assert (outcome.request_id, outcome.token, outcome.ending) == (4, None, Ending.EXPIRED)


def test_a_launched_step_is_counted_before_its_tokens_are_there():
    """The next plan would compute the same tokens again, or wait for the step."""
    state = make_state(make_request(num_prompt=3, max_new=3))
    plan = plan_step(state, make_view(), make_limits(), 0.0)
    awaited = awaits(state, plan)
    assert advance(state, plan, awaited) == () and awaited.sampled == {0}
    assert (state.num_computed[0], state.num_known[0], len(state.known_ids[0])) == (3, 4, 3)
    ahead = plan_step(state, make_view(), make_limits(), 0.0)
    assert ahead.runs == (PlannedRun(row=0, start=3, num_tokens=1, num_new_pages=0),)
    later = awaits(state, ahead)
    advance(state, ahead, later)
    assert [outcome.token for outcome in settle(state, awaited, {0: 50}, 0.5)] == [50]
    assert [outcome.token for outcome in settle(state, later, {0: 51}, 1.5)] == [51]
    assert (state.num_known[0], state.known_ids[0][3:]) == (5, [50, 51])


def test_tokens_of_one_who_has_left_are_dropped():
    """An answer that goes on after its end, or a row that is given again too early."""
    state = make_state(make_request(1, num_prompt=3), make_request(2, num_prompt=3))
    plan = plan_step(state, make_view(), make_limits(), 0.0)
    awaited = awaits(state, plan)
    advance(state, plan, awaited)
    state.retire(0)
    assert state.row_of(1) is None and state.rows() == [1] and state.num_running == 1
    row = state.add(make_request(3), 0.1, resident=True)
    assert row not in (0, 1)
    (outcome,) = settle(state, awaited, {0: 50, 1: 60}, 0.5)
    assert (outcome.request_id, outcome.token) == (2, 60)
    state.drop(0)
    assert state.add(make_request(4), 0.6, resident=True) == 0


def test_only_who_runs_can_leave_with_a_step():
    """A request in the line whose row nobody would ever give back."""
    state = make_state(make_request(1))
    with pytest.raises(InternalError, match="not running"):
        state.retire(0)
