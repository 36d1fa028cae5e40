"""The table: rows, its limit, stamps."""

import numpy as np
import pytest

from lorry.server.errors import InternalError, Overloaded
from lorry.server.scheduling.state import SchedulerState, Status
from lorry.server.scheduling.timings import timings
from lorry.tests.scheduling_builders import make_request, make_state


def test_a_full_line_names_count_and_limit_and_when_to_come_back():
    """A client would not know why it was refused, nor when to try again."""
    state = make_state(*(make_request(i) for i in range(3)), max_waiting=3)
    assert not state.can_add()
    with pytest.raises(Overloaded, match=r"3 requests are waiting, the limit is 3") as refused:
        state.add(make_request(3), 6.0, resident=True)
    assert refused.value.retry_after_s == pytest.approx(2.0)  # the head waited 6 s in a line of 3
    assert state.row_of(3) is None


def test_rows_are_reused_clean():
    """A new request would inherit stamps or tokens of the one before it in its row."""
    state = SchedulerState(1, 1)
    row = state.add(make_request(1, num_prompt=5, deadline_s=9.0), 0.0, resident=False)
    state.enter(row, 1.0)
    state.first_token_s[row] = state.last_token_s[row] = 2.0
    state.num_computed[row] = state.num_pages[row] = 5
    state.overtaken_s[row] = 0.5
    state.give_back(row)
    state.drop(row)
    used, fresh = state.add(make_request(2), 3.0, resident=True), SchedulerState(1, 1)
    new = fresh.add(make_request(2), 3.0, resident=True)
    columns = [name for name, value in vars(fresh).items() if isinstance(value, np.ndarray)]
    for name in set(columns) - {"seq"}:
        old_value, new_value = getattr(state, name)[used], getattr(fresh, name)[new]
        np.testing.assert_array_equal(old_value, new_value, err_msg=name)
    assert state.known_ids[used] == fresh.known_ids[new]


def test_preempted_rows_wait_beyond_the_limit():
    """Preempting with a full line would overflow it, or lose the request."""
    state = make_state(make_request(0), make_request(1), max_running=2, max_waiting=2)
    for row in (0, 1):
        state.enter(row, 0.0)
    state.add(make_request(2), 0.0, resident=True)
    state.add(make_request(3), 0.0, resident=True)
    state.give_back(1)
    state.give_back(0)
    assert state.line.rows().tolist() == [0, 1, 2, 3]
    assert not state.can_add()
    assert (state.num_running, state.num_waiting) == (0, 4)


def test_a_dropped_request_is_unknown():
    """A cancel that crosses the last token would end somebody else's request."""
    state = make_state(make_request(5))
    row = state.row_of(5)
    assert row is not None
    state.drop(row)
    assert state.row_of(5) is None
    assert state.status[row] == Status.FREE
    with pytest.raises(InternalError):
        state.drop(row)


def test_the_same_request_twice_is_our_bug():
    """Two rows of one id: an answer would go astray."""
    state = make_state(make_request(5))
    with pytest.raises(InternalError, match="request 5"):
        state.add(make_request(5), 0.0, resident=True)


def test_nobody_comes_in_while_more_than_may_run_hold_rows():
    """A table without a row for somebody who was let into the line."""
    state = make_state(make_request(0), make_request(1), max_running=1, max_waiting=2)
    state.enter(0, 0.0)
    state.enter(1, 0.0)
    state.retire(0)
    with pytest.raises(InternalError, match="between a launch and the landing"):
        state.add(make_request(2), 0.0, resident=True)
    state.drop(0)
    state.add(make_request(2), 0.0, resident=True)
    state.add(make_request(3), 0.0, resident=True)


def test_load_time_counts_while_the_adapter_is_away_and_nobody_ran_yet():
    """`load_s` would blame the link for time spent in the queue, or miss a second load."""
    state = SchedulerState(4, 4)
    row = state.add(make_request(1, adapter_id=3, arrival_s=1.0), 1.0, resident=False)
    there = state.add(make_request(2, adapter_id=4, arrival_s=1.0), 1.0, resident=True)
    state.adapter_arrived(3, 3.0)  # 2 s away
    state.adapter_left(3, 5.0)
    state.adapter_arrived(3, 6.0)  # and 1 s
    state.adapter_arrived(3, 9.0)  # hearing it twice changes nothing
    state.enter(row, 10.0)
    state.first_token_s[row], state.last_token_s[row] = 12.0, 15.0
    state.give_back(row)
    state.adapter_left(3, 16.0)
    state.adapter_arrived(3, 20.0)  # after the first run it is no longer queue time
    state.enter(row, 21.0)
    times = timings(state, row)
    assert (times.queue_s, times.load_s, times.prefill_s, times.decode_s) == (9.0, 3.0, 2.0, 3.0)
    assert times.num_preemptions == 1
    assert timings(state, there).load_s == 0.0
    assert timings(state, there).queue_s == 0.0  # has not been scheduled


def test_rows_of_an_adapter_are_all_of_them():
    """A failed load would leave somebody without an answer."""
    state = make_state(*(make_request(i, adapter_id=i % 2) for i in range(5)))
    state.enter(2, 0.0)
    assert state.rows_of_adapter(0) == [0, 2, 4]
    state.drop(0)
    assert state.rows_of_adapter(0) == [2, 4]
