"""plan_step, one rule at a time; the laws over many steps are in test_plan_laws.py."""

import copy
import dataclasses

import numpy as np
import pytest

from lorry.server.scheduling.fitting import never_fits
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.policies import Policy
from lorry.server.scheduling.records import PlannedLoad, StepPlan
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.scheduling_builders import (
    enter,
    loading,
    make_limits,
    make_request,
    make_state,
    make_view,
    resident,
)


def rows(plan: StepPlan) -> list[int]:
    return [run.row for run in plan.runs]


def test_nothing_to_do_is_an_empty_plan():
    """An idle server would crash on empty columns."""
    assert plan_step(make_state(), make_view(), make_limits(), 3.0) == StepPlan(now_s=3.0)


def test_decoding_comes_before_prompts_and_prompts_before_newcomers():
    """A long prompt would stall the streams of everyone else."""
    state = make_state(*(make_request(i, num_prompt=20, max_new=9) for i in range(3)))
    enter(state, 0, computed=4, pages=1)  # oldest, in the middle of its prompt
    enter(state, 1, computed=20, pages=5, extra=1)
    plan = plan_step(state, make_view(), make_limits(max_step_tokens=10), 0.0)
    assert {run.row: run.num_tokens for run in plan.runs} == {1: 1, 0: 9}


def test_a_prompt_is_cut_to_the_step():
    """One prompt would make a step longer than its budget."""
    state = make_state(make_request(num_prompt=50))
    (run,) = plan_step(state, make_view(), make_limits(max_step_tokens=16), 0.0).runs
    assert (run.start, run.num_tokens, run.num_new_pages) == (0, 16, 4)


def test_runs_of_an_adapter_stand_together_base_first():
    """LoRA segments would be torn apart."""
    ids = [1, -1, 0, 1, -1, 0]
    state = make_state(*(make_request(i, adapter_id=a) for i, a in enumerate(ids)))
    view = make_view(adapters={0: resident(), 1: resident()})
    assert rows(plan_step(state, view, make_limits(), 0.0)) == [1, 4, 2, 5, 0, 3]


def test_an_adapter_on_its_way_is_not_run():
    """Compute would read pages whose copy is in flight."""
    state = make_state(make_request(adapter_id=0, adapter_pages=4))
    assert plan_step(state, make_view(adapters={0: loading()}), make_limits(), 0.0).runs == ()


def test_absent_adapters_load_in_order_and_few_at_a_time():
    """A thousand cold requests would start a thousand loads, the last before the first."""
    ids = [4, 4, 2, 7, 5]
    state = make_state(*(make_request(i, adapter_id=a, adapter_pages=3) for i, a in enumerate(ids)))
    plan = plan_step(state, make_view(), make_limits(max_loads=2), 0.0)
    assert plan.loads == (PlannedLoad(4, 3), PlannedLoad(2, 3))
    view = make_view(adapters={4: loading(3), 2: loading(3)})
    assert plan_step(state, view, make_limits(max_loads=3), 0.0).loads == (PlannedLoad(7, 3),)


def test_idle_adapters_go_least_recently_used_first():
    """A hot adapter would be thrown out while a forgotten one stays."""
    state = make_state(make_request(adapter_id=9, adapter_pages=5))
    view = make_view(
        num_pages=12,
        adapters={
            1: resident(4, last_used_s=5.0),
            2: resident(4, last_used_s=2.0),
            3: resident(4, last_used_s=7.0),
        },
    )
    plan = plan_step(state, view, make_limits(), 8.0)
    assert plan.evictions == (2, 1)
    assert plan.loads == (PlannedLoad(9, 5),)


def test_what_a_plan_evicts_it_does_not_load():
    """The large adapter evicted after the small one leaves room for that to come straight back:
    its pages would be released and leased under one owner in the same plan."""
    state = make_state(
        make_request(0, num_prompt=12, max_new=9),
        make_request(1, adapter_id=1, adapter_pages=1),
    )
    enter(state, 0, computed=4, pages=1)
    adapters = {1: resident(1), 2: resident(9, last_used_s=9.0)}
    state.add(make_request(2, adapter_id=2, adapter_pages=9, arrival_s=-1.0), 0.0, resident=True)
    plan = plan_step(
        state, make_view(num_pages=11, num_free=0, adapters=adapters), make_limits(), 9
    )
    assert (plan.evictions, plan.loads, rows(plan)) == ((1, 2), (), [0])


def test_the_room_of_an_adapter_that_has_gone_is_not_kept_for_it():
    """Pages taken from an adapter would count as kept for those who wait for it, and the door stay
    shut while there is room."""
    state = make_state(
        make_request(0, num_prompt=4, max_new=9),
        make_request(1, adapter_id=1, adapter_pages=5),
        make_request(2, num_prompt=4, max_new=1),
    )
    enter(state, 0, computed=4, pages=1, extra=1)
    view = make_view(num_pages=6, num_free=0, adapters={1: resident(5)})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.evictions, rows(plan)) == ((1,), [0, 2])


def test_an_adapter_an_older_one_waits_for_stays():
    """A newer request's load would throw out what an older one is about to run on."""
    older = make_request(0, adapter_id=1, adapter_pages=4, num_prompt=4)
    newer = make_request(1, adapter_id=2, adapter_pages=4)
    view = make_view(num_pages=8, num_free=0, adapters={1: resident(4)})
    plan = plan_step(make_state(older, newer), view, make_limits(), 0.0)
    assert (plan.evictions, plan.loads) == ((), ())
    # The other way round it is the older one that gets the room.
    state = make_state(
        dataclasses.replace(newer, request_id=0), dataclasses.replace(older, request_id=1)
    )
    view = make_view(num_pages=8, num_free=1, adapters={1: resident(4)})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.evictions, plan.loads) == ((1,), (PlannedLoad(2, 4),))


def test_no_slot_no_load():
    """More adapters than the kernels have slots for."""
    state = make_state(make_request(adapter_id=9, adapter_pages=1))
    view = make_view(num_free_slots=0, adapters={1: loading(1)})
    assert plan_step(state, view, make_limits(), 0.0).loads == ()
    view = make_view(num_free_slots=0, adapters={1: resident(1)})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.evictions, len(plan.loads)) == ((1,), 1)


def test_a_full_set_of_adapters_and_a_base_request_run():
    """A base request would wait for a slot it does not need (anchors, item 24)."""
    state = make_state(
        *(make_request(i, adapter_id=i) for i in range(3)), make_request(3, adapter_id=-1)
    )
    view = make_view(num_free_slots=0, adapters={i: resident() for i in range(3)})
    assert rows(plan_step(state, view, make_limits(), 0.0)) == [3, 0, 1, 2]


def test_a_misfit_at_the_head_does_not_block():
    """One large request would idle the server (anchors, item 25)."""
    state = make_state(
        make_request(0, num_prompt=4, max_new=90),
        *(make_request(i, num_prompt=60) for i in range(1, 40)),
        make_request(40, num_prompt=8, max_new=1),
        max_running=4,
    )
    enter(state, 0, computed=3, pages=1)
    plan = plan_step(state, make_view(num_pages=16, num_free=8), make_limits(max_running=4), 0.0)
    assert rows(plan) == [0, 40]


def test_who_was_passed_for_too_long_bars_the_door():
    """A large request would be overtaken for ever (anchors, item 21)."""
    state = make_state(
        make_request(0, max_new=90), make_request(1, num_prompt=60), make_request(2, num_prompt=4)
    )
    enter(state, 0, computed=3, pages=1)
    view = make_view(num_pages=16, num_free=8)
    state.overtaken_s[1] = 10.0
    assert rows(plan_step(state, view, make_limits(max_bypass_s=5.0), 14.9)) == [0, 2]
    assert rows(plan_step(state, view, make_limits(max_bypass_s=5.0), 15.0)) == [0]


def test_waiting_for_the_link_bars_nobody():
    """A slow disk would stop requests that do not need it."""
    state = make_state(
        make_request(0, adapter_id=3, adapter_pages=4), make_request(1, num_prompt=4)
    )
    state.overtaken_s[0] = 0.0
    plan = plan_step(state, make_view(adapters={3: loading()}), make_limits(), 100.0)
    assert rows(plan) == [1]


def test_out_of_pages_takes_idle_adapters_then_the_newest():
    """An exhausted pool would fail, or an old request would lose its work to a new one."""
    state = make_state(*(make_request(i, num_prompt=8, max_new=9) for i in range(3)))
    for row in range(3):
        enter(state, row, computed=8, pages=2, extra=1)
    adapters = {1: resident(2)}
    view = make_view(num_pages=8, num_free=0, adapters=adapters)
    plan = plan_step(state, view, make_limits(), 0.0)
    # Rows 0 and 1 need a page each and get the adapter's two; row 2 waits, keeping its pages.
    assert (plan.evictions, plan.preemptions, rows(plan)) == ((1,), (), [0, 1])
    plan = plan_step(state, make_view(num_pages=6, num_free=0), make_limits(), 0.0)
    assert (plan.preemptions, rows(plan)) == ((2,), [0, 1])


def test_a_shorter_chunk_is_preferred_to_a_preemption():
    """A newer request would lose its pages although the older one could go on without."""
    state = make_state(make_request(0, num_prompt=40), make_request(1, num_prompt=8, max_new=9))
    enter(state, 0, computed=4, pages=1)
    enter(state, 1, computed=7, pages=2)
    plan = plan_step(state, make_view(num_pages=8, num_free=2), make_limits(), 0.0)
    assert plan.preemptions == ()
    assert {run.row: run.num_tokens for run in plan.runs} == {0: 8, 1: 1}


def test_a_preempted_row_gives_back_what_this_plan_gave_it():
    """Pages or tokens of the step would leak when a row is planned first, preempted after."""
    state = make_state(
        make_request(0, num_prompt=30, max_new=2), make_request(1, num_prompt=8, max_new=9)
    )
    enter(state, 0, computed=8, pages=2)  # a prompt: planned after the decoding row
    enter(state, 1, computed=8, pages=2, extra=1)
    limits = make_limits(max_step_tokens=12)
    plan = plan_step(state, make_view(num_pages=5, num_free=1), limits, 0.0)
    assert plan.preemptions == (1,)
    (run,) = plan.runs
    assert (run.row, run.num_tokens, run.num_new_pages) == (0, 12, 3)


def test_nobody_comes_in_while_those_inside_lack_room():
    """A newcomer would take the pages of the older row that was preempted a moment ago."""
    state = make_state(*(make_request(i, num_prompt=8, max_new=9) for i in range(2)))
    state.add(make_request(2, num_prompt=4, max_new=1), 0.0, resident=True)
    enter(state, 0, computed=8, pages=2, extra=1)
    enter(state, 1, computed=12, pages=3, extra=5)
    plan = plan_step(state, make_view(num_pages=5, num_free=0), make_limits(), 0.0)
    assert (plan.preemptions, rows(plan)) == ((1,), [0])


def test_newcomers_leave_room_for_each_other():
    """Two newcomers would be let in on the same last page."""
    state = make_state(
        make_request(0, num_prompt=16, max_new=9), make_request(1, num_prompt=4, max_new=9)
    )
    assert rows(plan_step(state, make_view(num_pages=7), make_limits(), 0.0)) == [0, 1]
    assert rows(plan_step(state, make_view(num_pages=7, num_free=5), make_limits(), 0.0)) == [0]


def test_adapters_are_fetched_ahead_only_for_those_who_could_be_next():
    """The tail of a long line would push out what its head is about to need."""
    cold = make_request(9, adapter_id=1, adapter_pages=4)
    limits = make_limits(max_running=2)
    short = make_state(*(make_request(i) for i in range(2)), cold)
    assert len(plan_step(short, make_view(), limits, 0.0).loads) == 1
    long = make_state(*(make_request(i) for i in range(3)), cold)
    assert plan_step(long, make_view(), limits, 0.0).loads == ()


def test_newcomers_leave_room_for_those_inside():
    """A newcomer let in today would be preempted tomorrow."""
    state = make_state(
        make_request(0, num_prompt=16, max_new=9), make_request(1, num_prompt=8, max_new=9)
    )
    enter(state, 0, computed=4, pages=1)
    limits = make_limits(max_step_tokens=12)
    # Row 0 is promised 3 more pages for its prompt and one for its answer.
    assert rows(plan_step(state, make_view(num_pages=7, num_free=5), limits, 0.0)) == [0]
    state.num_prompt[0] = state.num_known[0] = 8
    del state.known_ids[0][8:]
    assert rows(plan_step(state, make_view(num_pages=7, num_free=5), limits, 0.0)) == [0, 1]


def test_a_request_that_fits_alone_is_let_in():
    """The room kept for others would make a large request impossible in an empty pool."""
    state = make_state(make_request(num_prompt=28, max_new=4, adapter_id=0, adapter_pages=4))
    view = make_view(num_pages=12, adapters={0: resident(4), 1: resident(4)})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (rows(plan), plan.evictions) == ([0], (1,))


@pytest.mark.parametrize("running", [False, True], ids=["waiting", "running"])
def test_a_passed_deadline_expires_and_its_pages_serve_others(running):
    """Nobody's answer would go on taking pages."""
    state = make_state(
        make_request(0, num_prompt=8, deadline_s=5.0), make_request(1, num_prompt=8, max_new=1)
    )
    if running:
        enter(state, 0, computed=7, pages=2)
    view = make_view(num_pages=4, num_free=2 if running else 4)
    plan = plan_step(state, view, make_limits(), 5.0)
    assert (plan.expired, rows(plan)) == ((0,), [1])
    assert plan_step(state, view, make_limits(), 4.9).expired == ()


def test_planning_changes_nothing():
    """A plan that is thrown away, or made ahead, would leave traces."""
    ids = [0, -1, 1, 2, 3, -1]
    state = make_state(
        *(
            make_request(i, adapter_id=a, adapter_pages=4, deadline_s=9.0 if i == 5 else 99.0)
            for i, a in enumerate(ids)
        )
    )
    enter(state, 0, computed=4, pages=1, extra=1)
    enter(state, 1, computed=4, pages=1, extra=1)
    view = make_view(
        num_pages=20, num_free=1, adapters={0: resident(), 1: resident(), 7: resident()}
    )
    before, view_before = copy.deepcopy(vars(state)), copy.deepcopy(view)
    plan = plan_step(state, view, make_limits(), 10.0)
    assert plan.expired and plan.evictions and plan.runs
    for name, value in vars(state).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        elif name == "line":
            assert value.rows().tolist() == before[name].rows().tolist()
        else:
            assert value == before[name], name
    assert view == view_before
    assert plan_step(state, view, make_limits(), 10.0) == plan


def test_a_policy_is_a_key_and_a_test():
    """Another policy would need a copy of the planner."""
    shortest = Policy(
        name="shortest, one per tenant",
        sort_key=lambda request: float(len(request.prompt_ids)),
        admits=lambda new, running, now_s: all(new.tenant != old.tenant for old in running),
    )
    state = SchedulerState(8, 8, policy=shortest)
    for i, (length, tenant) in enumerate([(9, "a"), (3, "a"), (5, "b"), (4, "a")]):
        request = make_request(i, num_prompt=length, tenant=tenant)
        state.add(request, 0.0, resident=True)
    plan = plan_step(state, make_view(), make_limits(max_step_tokens=99), 0.0)
    assert rows(plan) == [1, 2]


def test_what_never_fits_is_told_with_the_arithmetic():
    """A request larger than the pool would wait for ever, or be refused without a reason."""
    request = make_request(num_prompt=30, max_new=10, adapter_id=1, adapter_pages=3)
    assert never_fits(request, num_pages=13, tokens_per_page=4, max_model_len=40) is None
    reason = never_fits(request, num_pages=12, tokens_per_page=4, max_model_len=40)
    assert reason is not None and "10 pages of 4 tokens" in reason
    assert "the adapter takes 3: 13 pages, the pool has 12" in reason
    reason = never_fits(request, num_pages=99, tokens_per_page=4, max_model_len=39)
    assert reason is not None and "30 prompt tokens + max_new_tokens 10 = 40" in reason
    assert "39" in reason


def test_a_row_whose_last_token_is_on_its_way_is_left_alone():
    """A token beyond the answer's length, a place in the step taken for nothing, or pages taken
    from one who is about to give them back."""
    state = make_state(*(make_request(i, num_prompt=4, max_new=5) for i in range(3)))
    enter(state, 0, computed=4, pages=1, extra=1)
    enter(state, 1, computed=8, pages=2, extra=5)  # whole, and the newest of those who run
    plan = plan_step(state, make_view(num_free=0), make_limits(max_running=2), 0.0)
    assert rows(plan) == [] and plan.preemptions == ()
    plan = plan_step(state, make_view(num_free=9), make_limits(max_running=2), 0.0)
    assert rows(plan) == [0, 2], "the newcomer takes the place of the whole one"


def test_weights_that_a_launched_step_reads_are_not_evicted():
    """An adapter's pages given to another while rows that are whole or leaving still use it."""
    state = make_state(
        make_request(0, num_prompt=4, max_new=1, adapter_id=0, adapter_pages=4),
        make_request(1, num_prompt=4, max_new=9, adapter_id=1, adapter_pages=4),
        make_request(2, num_prompt=4, adapter_id=2, adapter_pages=4),
    )
    enter(state, 0, computed=4, pages=1, extra=1)
    enter(state, 1, computed=4, pages=1, extra=1)
    state.retire(1)
    view = make_view(num_free=2, adapters={0: resident(), 1: resident()})
    plan = plan_step(state, view, make_limits(), 0.0)
    assert plan == StepPlan(now_s=0.0)
    state.drop(1)
    assert plan_step(state, view, make_limits(), 0.0).evictions == (1,)
