"""Plans with rows that begin beside their loads, one rule at a time."""

from dataclasses import dataclass, replace

import pytest

from lorry.server.scheduling.commit import advance, awaits, commit
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import PlannedLoad, PoolView, Wish
from lorry.server.scheduling.starts import HelpCosts, OnItsWay, StartPrices, Way
from lorry.tests.cold_life_builders import AUTO, make_model
from lorry.tests.scheduling_builders import (
    enter,
    loading,
    make_limits,
    make_request,
    make_state,
    make_view,
    resident,
)

# A prompt of 4 tokens takes 0.4 s; a load, where a test says nothing else, 2 s.
MODEL = make_model(step_s=0.0, token_s=0.1, load_s_per_byte=0.02)
HELP = HelpCosts(call_s=1e-5, token_byte_s=1e-6, num_calls=4)


@dataclass
class Loads:
    """What a test says of loads."""

    landed_s: float = 2.0
    begun_s: float = 0.0
    is_open: bool = True
    can_help: bool = True

    def on_its_way(self, adapter_id: int, num_bytes: int, now_s: float) -> OnItsWay:
        del adapter_id, num_bytes, now_s
        return OnItsWay(
            self.landed_s, self.begun_s, 0.0, is_open=self.is_open, can_help=self.can_help
        )


def cold_view(loads: Loads | None = None, *, ways=AUTO, **kwargs) -> PoolView:
    prices = StartPrices(frozenset(ways), MODEL, HELP, num_layers=4)
    return replace(make_view(**kwargs), cold=loads or Loads(), prices=prices)


def ask(number: int = 0, adapter_id: int = 0, **kwargs):
    return make_request(number, adapter_id=adapter_id, adapter_pages=4, adapter_bytes=100, **kwargs)


def test_an_assisted_row_begins_in_the_step_that_orders_its_load():
    """A step's delay would cost what the way gains."""
    state = make_state(ask())
    plan = plan_step(state, cold_view(), make_limits(), 0.0)
    assert plan.loads == (PlannedLoad(0, 4),)
    assert [run.row for run in plan.runs] == [0]
    assert plan.ways == {0: Way.ASSIST}
    assert plan.starts[0].start.way is Way.ASSIST


def test_where_everyone_waits_nothing_is_chosen():
    """A server that always waits would plan otherwise than before, or pay for choosing."""
    state = make_state(ask())
    view = cold_view(ways={Way.WAIT})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert plan.loads and not plan.runs
    assert (plan.ways, plan.starts) == ({}, ())
    view = cold_view(ways={Way.WAIT}, adapters={0: loading()})
    assert plan_step(state, view, make_limits(), 1.9).runs == ()


def test_nobody_begins_on_a_load_that_is_not_open():
    """Its layout is not known yet: the step could not be built."""
    state = make_state(ask())
    plan = plan_step(state, cold_view(Loads(is_open=False)), make_limits(), 0.0)
    assert plan.loads and not plan.runs
    view = cold_view(Loads(is_open=False), adapters={0: loading()})
    plan = plan_step(state, view, make_limits(), 1.9)
    assert plan.runs == () and plan.loads == ()
    assert plan.wake_s == float("inf"), "the link will tell"


def test_a_stream_begins_when_it_is_time_and_the_engine_wakes_for_it():
    """It would stop a step for layers, or sleep through its beginning."""
    state, loads = make_state(ask()), Loads(can_help=False)
    plan = plan_step(state, cold_view(loads), make_limits(), 0.0)
    assert plan.loads and not plan.runs
    # The last of four layers is reached 0.3 s after the beginning.
    assert plan.wake_s == pytest.approx(1.7, abs=0.03)
    assert plan.starts[0].start.way is Way.STREAM
    view = cold_view(loads, adapters={0: loading()})
    early = plan_step(state, view, make_limits(), plan.wake_s - 0.01)
    assert early.runs == () and early.wake_s == pytest.approx(plan.wake_s)
    due = plan_step(state, view, make_limits(), plan.wake_s)
    assert due.ways == {0: Way.STREAM}
    assert due.loads == () and due.wake_s == float("inf")


def test_a_load_that_the_prompt_hides_wholly_begins_with_it():
    """The first layers would have landed long before anyone begins."""
    state = make_state(ask(num_prompt=32, max_new=2))
    loads = Loads(landed_s=0.3, begun_s=-0.1, can_help=False)
    plan = plan_step(state, cold_view(loads), make_limits(), 0.0)
    assert plan.ways == {0: Way.STREAM}
    assert plan.loads and plan.runs


def test_loads_of_those_who_begin_at_once_are_not_counted():
    """A burst of cold requests would be let in two at a time."""
    requests = [ask(number, adapter_id=number) for number in range(6)]
    view = cold_view(num_pages=200, num_free_slots=8)
    plan = plan_step(make_state(*requests), view, make_limits(max_loads=1, max_running=7), 0.0)
    assert len(plan.runs) == 5
    assert len(plan.loads) == 6, "and one more is brought for whoever is next"
    busy = {i: loading() for i in range(5)}
    state = make_state(*[replace(r, adapter_id=5 + i) for i, r in enumerate(requests)])
    view = cold_view(Loads(can_help=False), num_pages=200, num_free_slots=8, adapters=busy)
    assert plan_step(state, view, make_limits(max_loads=5), 0.0).loads == ()


def test_some_places_are_left_to_those_who_need_no_load():
    """A burst of cold requests would take all of them until the link has carried the last load,
    and whoever comes for the base meanwhile stands at the door."""
    requests = [ask(number, adapter_id=number) for number in range(9)]
    view = cold_view(num_pages=200, num_free_slots=12)
    state, limits = make_state(*requests), make_limits(max_running=8, max_loads=1)
    plan = plan_step(state, view, limits, 0.0)
    assert (len(plan.runs), len(plan.loads)) == (6, 7)
    commit(state, plan, {run.row: 50 for run in plan.runs}, 0.1)
    row = state.add(make_request(20), 0.2, resident=True)
    busy = {load.adapter_id: loading() for load in plan.loads}
    view = cold_view(Loads(landed_s=0.3), num_pages=200, num_free_slots=5, adapters=busy)
    plan = plan_step(state, view, limits, 0.2)
    assert [run.row for run in plan.runs] == [row], "those who pause keep their places"
    few = plan_step(make_state(*requests), cold_view(), make_limits(max_running=1), 0.0)
    assert len(few.runs) == 1, "one may always begin"


def test_each_load_of_a_plan_stands_behind_those_before_it():
    """The last of a burst would be told that the link is free for it."""
    requests = [ask(number, adapter_id=number) for number in range(3)]
    view = cold_view(Loads(can_help=False), num_pages=200)
    plan = plan_step(make_state(*requests), view, make_limits(max_loads=3), 0.0)
    foretold = [start.others_s[Way.WAIT] for _, start in plan.starts]
    assert foretold == pytest.approx([2.4, 4.4, 6.4])


def test_those_of_a_burst_are_judged_together():
    """One helper would be asked for all of them, and the device wait for it."""
    slow = HelpCosts(call_s=0.0, token_byte_s=1e-3, num_calls=4)  # as fast as the device
    requests = [ask(number, adapter_id=number) for number in range(4)]
    view = cold_view(num_pages=200, num_free_slots=8)
    prices = replace(view.prices, help=slow, slack_s=0.5)
    plan = plan_step(make_state(*requests), replace(view, prices=prices), make_limits(), 0.0)
    assert [run.row for run in plan.runs] == [0, 1, 2, 3]
    tight = replace(view, prices=replace(prices, help=replace(slow, token_byte_s=2e-3)))
    plan = plan_step(make_state(*requests), tight, make_limits(), 0.0)
    # Alone it may wait for its helpers; beside it another would have both wait for 0.8 s.
    assert [run.row for run in plan.runs] == [0]


def test_a_row_that_finds_no_room_beside_its_adapter_does_not_begin():
    """Pages for the adapter alone, or for the prompt alone, are not enough."""
    state = make_state(ask(num_prompt=12))
    for num_pages, begins in ((7, True), (6, False)):
        plan = plan_step(state, cold_view(num_pages=num_pages), make_limits(), 0.0)
        assert bool(plan.runs) == bool(plan.loads) == begins
    plan = plan_step(state, cold_view(num_pages=20, num_free_slots=0), make_limits(), 0.0)
    assert plan.loads == () and plan.runs == ()
    idle = cold_view(num_pages=8, num_free_slots=1, adapters={3: resident(4)})
    plan = plan_step(state, idle, make_limits(), 0.0)
    assert plan.evictions == (3,) and plan.ways == {0: Way.ASSIST}


def running(*, tpot_s: float = 0.2, max_new: int = 4):
    """A row that has its first token, while its adapter is on its way."""
    state = make_state(replace(ask(max_new=max_new), tpot_s=tpot_s))
    enter(state, 0, computed=4, pages=1, extra=1)
    state.last_token_s[0] = state.first_token_s[0] = 0.0
    return state


def test_a_row_pauses_while_the_rest_of_its_load_is_short():
    """Helpers would be asked for a token that comes as soon without them."""
    view = cold_view(Loads(landed_s=1.19), adapters={0: loading()})
    plan = plan_step(running(), view, make_limits(), 1.0)
    assert plan.runs == () and plan.preemptions == ()
    assert plan.wake_s == pytest.approx(1.2)
    view = cold_view(Loads(landed_s=1.21), adapters={0: loading()})
    plan = plan_step(running(), view, make_limits(), 1.0)
    assert [run.num_tokens for run in plan.runs] == [1]
    assert plan.ways == {0: Way.ASSIST} and plan.starts == ()


def test_without_helpers_a_row_pauses_until_its_load_is_over():
    """A step would stop for the whole load, and everyone in it."""
    for view in (
        cold_view(Loads(landed_s=9.0, can_help=False), adapters={0: loading()}),
        cold_view(Loads(landed_s=9.0), ways={Way.WAIT, Way.STREAM}, adapters={0: loading()}),
    ):
        plan = plan_step(running(), view, make_limits(), 1.0)
        assert plan.runs == () and plan.preemptions == ()


def test_beside_others_a_helped_row_goes_at_the_pace_of_its_bound():
    """Each of its tokens holds them up a little."""
    state = running(tpot_s=1.0, max_new=9)
    row = state.add(make_request(7, max_new=9), 0.0, resident=True)
    enter(state, row, computed=4, pages=1, extra=1)
    view = cold_view(Loads(landed_s=9.0), adapters={0: loading()})
    early = plan_step(state, view, make_limits(), 0.4)
    assert [run.row for run in early.runs] == [row]
    assert early.wake_s == pytest.approx(0.5)
    assert [run.row for run in plan_step(state, view, make_limits(), 0.5).runs] == [row, 0]


def test_a_paused_row_keeps_its_pages_and_lets_others_in():
    """It would be preempted by newcomers, or shut the door while it does nothing."""
    state = running()
    state.add(make_request(1), 0.0, resident=True)
    view = cold_view(Loads(landed_s=1.1), num_pages=8, num_free=3, adapters={0: loading()})
    plan = plan_step(state, view, make_limits(), 1.0)
    assert [run.row for run in plan.runs] == [1]
    assert plan.preemptions == ()


def test_a_prompt_in_chunks_goes_on_beside_its_load():
    """It would stand still between two chunks until the load is over."""
    state = make_state(ask(num_prompt=40))
    view = cold_view(num_free_slots=1)
    plan = plan_step(state, view, make_limits(max_step_tokens=16), 0.0)
    commit(state, plan, {}, 0.1)
    view = cold_view(adapters={0: loading()})
    plan = plan_step(state, view, make_limits(max_step_tokens=16), 0.2)
    assert [(run.start, run.num_tokens) for run in plan.runs] == [(16, 16)]
    assert plan.ways == {0: Way.ASSIST}


def test_two_rows_of_one_adapter_go_one_way():
    """A step would have its adapter twice, or one of them starve."""
    state = running()
    state.add(ask(1), 0.0, resident=False)
    plan = plan_step(state, cold_view(adapters={0: loading()}), make_limits(), 1.0)
    assert [run.row for run in plan.runs] == [0, 1]
    assert plan.ways == {0: Way.ASSIST}


def test_wishes_wait_for_the_link_though_its_loads_are_for_those_who_run():
    """A load that nobody waits for would hold up layers that somebody computes with."""
    view = cold_view(Loads(landed_s=1.1), num_pages=40, adapters={0: loading()})
    view = replace(view, wishes=(Wish(3, 2, worth=1.0),))
    assert plan_step(running(), view, make_limits(), 1.0).loads == ()
    view = replace(view, adapters={0: resident()})
    assert plan_step(running(), view, make_limits(), 1.0).loads == (PlannedLoad(3, 2),)


def test_a_full_step_still_brings_adapters_for_those_who_are_next():
    """The link would stand still while all places are taken."""
    state = make_state(make_request(0, num_prompt=32), ask(1, num_prompt=2))
    plan = plan_step(state, cold_view(), make_limits(max_step_tokens=32), 0.0)
    assert [run.row for run in plan.runs] == [0]
    assert plan.loads == (PlannedLoad(0, 4),) and plan.starts == ()


def test_the_load_clock_of_a_cold_row_stops_when_it_begins():
    """It would count as waiting for its load while it computes."""
    state = make_state(ask(arrival_s=0.0))
    plan = plan_step(state, cold_view(), make_limits(), 0.5)
    advance(state, plan, awaits(state, plan))
    assert state.load_wait_s[0] == 0.5
    state.adapter_arrived(0, 2.0)
    assert state.load_wait_s[0] == 0.5


def test_a_load_of_somebody_who_runs_does_not_hold_up_those_who_wait():
    """One cold row with a long load would close the link to everyone who waits for theirs."""
    state = running()
    state.add(ask(1, adapter_id=5), 0.0, resident=False)
    view = cold_view(Loads(landed_s=9.0, can_help=False), adapters={0: loading()})
    plan = plan_step(state, view, make_limits(max_loads=1), 1.0)
    assert plan.loads == (PlannedLoad(5, 4),)
    view = cold_view(Loads(landed_s=9.0, can_help=False), adapters={0: loading(), 7: loading()})
    assert plan_step(state, view, make_limits(max_loads=1), 1.0).loads == ()


def test_a_victim_leaves_no_way_behind():
    """The engine would look for rows of an adapter that none of the step uses."""
    state = make_state(make_request(0, max_new=9), ask(1, max_new=9))
    for row in (0, 1):
        enter(state, row, computed=4, pages=1, extra=1)
        state.last_token_s[row] = -9.0
    view = cold_view(Loads(landed_s=9.0), num_pages=6, num_free=0, adapters={0: loading()})
    plan = plan_step(state, view, make_limits(), 1.0)
    assert plan.preemptions == (1,)
    assert [run.row for run in plan.runs] == [0]
    assert plan.ways == {}
