"""`slora`, rule by rule: whom it gives up, when it turns the line round, what that wrongs."""

import math

import numpy as np
import pytest

from lorry.server.scheduling.commit import commit
from lorry.server.scheduling.flow import LineFlow
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.policies import FCFS, POLICIES, SLORA
from lorry.server.scheduling.records import Ending, Outcome
from lorry.tests.scheduling_builders import make_limits, make_request, make_state, make_view

FULL = make_view(num_free=0)


def give_token(state, row):
    """As if it had run: it has its first token, and waits again."""
    state.enter(row, 0.0)
    state.num_known[row] += 1
    state.known_ids[row].append(7)
    state.give_back(row)


def test_a_row_is_given_up_when_half_a_second_of_six_is_left():
    """A request that must miss its bound would be computed, and others with it be late."""
    state = make_state(make_request(0, ttft_s=6.0), make_request(1, ttft_s=12.0), policy=SLORA)
    limits = make_limits()
    assert plan_step(state, FULL, limits, 5.499).aborted == ()
    assert plan_step(state, FULL, limits, 5.5).aborted == (0,)
    assert plan_step(state, FULL, limits, 11.0).aborted == (0, 1)
    state.policy = FCFS
    assert plan_step(state, FULL, limits, 11.0).aborted == ()


def test_who_is_given_up_does_not_run_although_there_is_room():
    """Tokens computed for somebody who was told that there will be none."""
    state = make_state(make_request(0), make_request(1, arrival_s=3.0), policy=SLORA)
    plan = plan_step(state, make_view(), make_limits(), 4.0)
    assert plan.aborted == (0,) and [run.row for run in plan.runs] == [1]


def test_who_had_a_token_is_never_given_up():
    """An answer under way would break off because its first token was long ago."""
    state = make_state(make_request(0), make_request(1), policy=SLORA)
    give_token(state, 0)
    assert plan_step(state, FULL, make_limits(), 1e9).aborted == (1,)


def test_a_passed_deadline_comes_before_giving_up():
    """A request would end twice."""
    state = make_state(make_request(0, deadline_s=3.0), policy=SLORA)
    plan = plan_step(state, FULL, make_limits(), 3.0)
    assert (plan.expired, plan.aborted) == ((0,), ())


def test_giving_up_is_an_outcome_of_the_step():
    """The engine would not hear of it, and the client neither."""
    state = make_state(make_request(5), policy=SLORA)
    plan = plan_step(state, FULL, make_limits(), 2.0)
    assert commit(state, plan, {}, 2.0) == (Outcome(0, 5, None, Ending.ABORTED),)


def test_the_flow_weighs_new_and_old_as_published():
    """Another smoothing would turn the line round at other times than S-LoRA does."""
    flow = LineFlow()
    flow.let(4)
    assert (flow.joined, flow.let_in) == pytest.approx((0.3, 3.1))
    for _ in range(4):
        flow.join()
    assert flow.joined_now == pytest.approx(2.89) and not flow.grows
    flow.join()
    assert flow.joined_now == pytest.approx(3.59) and flow.grows


def test_only_newcomers_move_the_flow():
    """Requests that come back after a preemption would pass for a burst, or for capacity."""
    state = make_state(make_request(0), make_request(1), policy=SLORA)
    give_token(state, 0)
    assert state.flow.num_joined == 2
    plan = plan_step(state, make_view(), make_limits(), 0.0)
    commit(state, plan, {0: 1, 1: 1}, 0.0)
    assert (state.flow.num_joined, state.flow.let_in) == (0, pytest.approx(0.7 * 1 + 0.3 * 1))


def order(state, now_s):
    """Rows in the order of their first run, when steps have room for one prompt at a time."""
    rows = []
    while state.num_waiting:
        plan = plan_step(state, make_view(), make_limits(max_step_tokens=5), now_s)
        rows.append(plan.runs[0].row if len(plan.runs) == 1 else min(plan.runs, key=len).row)
        state.drop(rows[-1])
    return rows


def make_line(*, num_joined: int):
    """Four who came a tenth apart, of whom the second has had its first token."""
    requests = [make_request(i, arrival_s=i / 10, ttft_s=2.0) for i in range(4)]
    state = make_state(*requests, policy=SLORA)
    give_token(state, 1)
    state.flow.num_joined = num_joined
    return state


def test_a_line_that_grows_and_presses_is_turned_round():
    """Under overload everyone would be served just too late."""
    assert order(make_grown(), 1.0) == [1, 3, 2, 0]
    assert order(make_line(num_joined=0), 1.0) == [0, 1, 2, 3]


def make_grown():
    """The same, and it grows for good."""
    state = make_line(num_joined=9)
    state.flow.joined = 1e9
    return state


@pytest.mark.parametrize(
    ("num_joined", "now_s", "turned"),
    [(9, 1.0, True), (9, 0.999, False), (0, 1.0, False)],
    ids=["overload", "nobody has waited half its bound", "more are let in than come"],
)
def test_both_are_needed_to_turn_it(num_joined, now_s, turned):
    """Without overload the order would be another than that of `fcfs`."""
    state = make_line(num_joined=num_joined)
    assert plan_step(state, FULL, make_limits(), now_s).newest_first == turned


@pytest.mark.parametrize("newcomer", [0, 3])
def test_in_a_line_turned_round_only_who_had_a_token_is_wronged(newcomer):
    """Everybody who is passed by newer ones would bar the door a while later."""
    state, two_pages = make_grown(), make_view(num_free=2)
    for row in {0, 2, 3} - {newcomer}:
        state.num_prompt[row] = state.num_known[row] = 40  # these never fit
    plan = plan_step(state, two_pages, make_limits(), 1.0)
    assert [run.row for run in plan.runs] == [1], "who had a token goes first"
    state.num_known[1] = 40  # now it does not fit either, and is passed
    plan = plan_step(state, two_pages, make_limits(), 1.0)
    assert [run.row for run in plan.runs] == [newcomer]
    commit(state, plan, {newcomer: 1}, 1.0)
    assert state.overtaken_s[1] == 1.0
    assert np.isinf(np.delete(state.overtaken_s, 1)).all()


def test_nobody_is_wronged_by_whoever_stands_before_him():
    """An answer that has its turn after an older one would bar the door to all others."""
    state = make_grown()
    state.num_known[2] = 40  # has had tokens too, and does not fit
    plan = plan_step(state, make_view(num_free=2), make_limits(), 1.0)
    assert plan.newest_first and [run.row for run in plan.runs] == [1]
    commit(state, plan, {1: 1}, 1.0)
    assert math.isinf(state.overtaken_s[2])


def test_passed_rows_without_a_token_bar_no_door_when_the_line_is_turned():
    """One who is to be given up anyway would keep everyone else out until then."""
    state = make_grown()
    state.num_known[2] = state.num_prompt[2] = 4000  # stands before 0 or before 3
    state.overtaken_s[2] = -100.0
    plan = plan_step(state, make_view(), make_limits(), 1.0)
    assert plan.newest_first and {run.row for run in plan.runs} == {0, 1, 3}
    state.flow.joined, state.flow.num_joined = 0.0, 0
    plan = plan_step(state, make_view(), make_limits(), 1.0)
    assert not plan.newest_first and {run.row for run in plan.runs} == {0, 1}, "as under fcfs"


def test_time_alone_changes_what_is_said_only_at_the_told_instant():
    """A simulator that leaps over steps would leap over a request given up, or an order turned."""
    state = make_line(num_joined=9)
    words = [(0.0, 1.0), (1.0, 2.0 * (1 - 0.5 / 6))]
    for now_s, change_s in words:
        assert SLORA.next_change_s(state, now_s) == pytest.approx(change_s)
    state.flow.joined, state.flow.num_joined = 0.0, 0
    assert SLORA.next_change_s(state, 0.0) == pytest.approx(2.0 * (1 - 0.5 / 6))
    for row in (0, 2, 3):
        state.drop(row)
    assert SLORA.next_change_s(state, 0.0) == math.inf, "who had a token waits for no instant"
    assert FCFS.next_change_s(state, 0.0) == math.inf


def test_a_long_line_is_looked_at_as_columns():
    """A policy that walks the line would cost more than the plan."""
    state = make_state(max_waiting=2000, policy=SLORA)
    for number in range(2000):
        state.add(make_request(number, arrival_s=number / 100), 0.0, resident=True)
    gone = SLORA.gives_up(state, 7.0)
    assert isinstance(gone, np.ndarray)
    assert gone.tolist() == [row for row in range(2000) if row / 100 + 2.0 * 11 / 12 <= 7.0]


def test_a_policy_is_found_by_the_name_of_its_flag():
    """`--policy` would accept what the scheduler has not, or the other way round."""
    from lorry.server.config import POLICIES as FLAGS

    assert tuple(POLICIES) == FLAGS
    assert all(policy.name == name for name, policy in POLICIES.items())
