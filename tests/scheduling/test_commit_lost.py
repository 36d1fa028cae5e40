"""Rows whose part of a step is void: the table is as if they had been preempted before it."""

from __future__ import annotations

import pytest

from lorry.server.errors import InternalError
from lorry.server.scheduling.commit import advance, awaits, commit, settle
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.state import Status
from lorry.tests.scheduling_builders import make_limits, make_request, make_state, make_view


def test_a_lost_prompt_is_computed_again_from_its_beginning():
    """A token of the base under an adapter's name, or KV of a step that never was."""
    state = make_state(make_request(1, num_prompt=3), make_request(2, num_prompt=3))
    plan = plan_step(state, make_view(), make_limits(), 0.0)
    (outcome,) = commit(state, plan, {1: 60}, 0.5, lost=(0,))
    assert (outcome.request_id, outcome.token) == (2, 60)
    assert state.status[0] == Status.WAITING and state.num_waiting == 1
    assert (state.num_computed[0], state.num_pages[0], state.num_known[0]) == (0, 0, 3)
    again = plan_step(state, make_view(), make_limits(), 1.0)
    assert [(run.row, run.start, run.num_tokens) for run in again.runs] == [(1, 3, 1), (0, 0, 3)]
    outcomes = commit(state, again, {0: 50, 1: 61}, 1.5)
    assert [(outcome.request_id, outcome.token) for outcome in outcomes] == [(2, 61), (1, 50)]
    assert state.first_token_s[0] == 1.5, "a lost token is none"


def test_a_lost_decode_forgets_the_token_that_was_on_its_way():
    """An answer with a hole: one token would be counted that nobody ever heard."""
    state = make_state(make_request(1, num_prompt=3, max_new=5))
    for step in range(2):
        plan = plan_step(state, make_view(), make_limits(), float(step))
        commit(state, plan, {0: 50 + step}, step + 0.5)
    plan = plan_step(state, make_view(), make_limits(), 2.0)
    assert commit(state, plan, {}, 2.5, lost=(0,)) == ()
    assert (state.num_known[0], len(state.known_ids[0]), state.num_computed[0]) == (5, 5, 0)
    assert state.last_token_s[0] == 1.5
    plan = plan_step(state, make_view(), make_limits(), 3.0)
    assert [(run.start, run.num_tokens) for run in plan.runs] == [(0, 5)]
    (outcome,) = commit(state, plan, {0: 52}, 3.5)
    assert outcome.token == 52 and state.known_ids[0][3:] == [50, 51, 52]


def test_places_of_a_lost_prompt_are_told_again():
    """Log-probabilities of the base's, or a prompt with places that nobody was told of."""
    state = make_state(make_request(1, num_prompt=8, prompt_logprobs=0))
    limits = make_limits(max_step_tokens=4)
    plan = plan_step(state, make_view(), limits, 0.0)
    commit(state, plan, {}, 0.5)
    plan = plan_step(state, make_view(), limits, 1.0)
    assert awaits(state, plan).told == {0: range(4, 7)}
    commit(state, plan, {}, 1.5, lost=(0,))
    assert state.num_told[0] == 4, "those before were told, and stay so"
    plan = plan_step(state, make_view(), limits, 2.0)
    commit(state, plan, {}, 2.5)
    plan = plan_step(state, make_view(), limits, 3.0)
    assert awaits(state, plan).told == {0: range(4, 7)}


def test_who_was_lost_and_has_left_is_not_put_back_into_the_line():
    """A request that ended, and runs again in a row that may be somebody else's."""
    state = make_state(make_request(1, num_prompt=3))
    plan = plan_step(state, make_view(), make_limits(), 0.0)
    awaited = awaits(state, plan)
    advance(state, plan, awaited)
    state.retire(0)
    assert settle(state, awaited, {}, 0.5, lost=(0,)) == ()
    assert state.num_waiting == 0 and state.status[0] == Status.LEAVING


def test_lost_rows_are_rows_of_the_step_and_have_no_token():
    """A runner that contradicts itself would be believed."""
    state = make_state(make_request(1, num_prompt=3), make_request(2, num_prompt=3))
    plan = plan_step(state, make_view(), make_limits(max_running=1), 0.0)
    for tokens, lost in (({0: 50}, (0,)), ({0: 50}, (1,)), ({}, ())):
        with pytest.raises(InternalError):
            commit(state, plan, tokens, 0.5, lost=lost)
    assert state.status[0] == Status.WAITING, "a refused commit changes nothing"
