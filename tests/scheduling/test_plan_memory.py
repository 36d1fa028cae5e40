"""What goes for whom, what is found again, and what stays: adapters and cached pages in one plan.

Rows are the requests' numbers; a page holds four tokens. Laws over many steps: test_plan_laws.py.
"""

import pytest

from lorry.server.scheduling.commit import commit
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import (
    PlannedHit,
    PlannedKeep,
    PlannedLoad,
    PlannedRun,
    StepPlan,
)
from lorry.tests.prefix_builders import FakePrefixes
from lorry.tests.scheduling_builders import (
    enter,
    make_limits,
    make_request,
    make_state,
    make_view,
    resident,
)

# Hits


def test_a_newcomer_begins_behind_what_is_cached():
    """Cached pages would be computed again, or a run would not start where they end."""
    prefixes = FakePrefixes(chains={0: (1, 2)})
    prefixes.add_chain(1, 2)
    state = make_state(make_request(num_prompt=13))
    view = make_view(num_pages=12, num_free=8, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_step_tokens=4), 1.0)
    assert (plan.hits, plan.prefix_evictions) == ((PlannedHit(0, 2),), ())
    assert plan.runs == (PlannedRun(0, start=8, num_tokens=4, num_new_pages=1),)
    commit(state, plan, {}, 1.5)
    assert (state.num_computed[0], state.num_pages[0], state.num_cached_tokens[0]) == (12, 3, 8)
    commit(state, StepPlan(preemptions=(0,)), {}, 2.5)
    hit = StepPlan(hits=(PlannedHit(0, 3),), runs=(PlannedRun(0, 12, 1, 1),))
    commit(state, hit, {0: 50}, 3.5)
    assert (state.num_pages[0], state.num_cached_tokens[0]) == (4, 8), "told of its first run"


def test_found_pages_need_no_room_and_are_not_taken_for_it():
    """A long prompt, nearly all of it cached, kept out of a pool that has its pages already; or
    its own pages evicted to make room for it."""
    prefixes = FakePrefixes(chains={0: (1, 2, 3)})
    prefixes.add_chain(1, 2, 3)
    state = make_state(make_request(num_prompt=16, max_new=1))
    view = make_view(num_pages=4, num_free=1, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(), 0.0)
    assert plan.hits == (PlannedHit(0, 3),) and plan.prefix_evictions == ()
    # One page more is missing, and nothing but its own could go for it.
    state = make_state(make_request(num_prompt=20, max_new=1))
    assert plan_step(state, view, make_limits(), 0.0) == StepPlan(now_s=0.0)


def test_pages_that_another_row_holds_are_found_too():
    """Shared pages counted as room that is needed twice."""
    prefixes = FakePrefixes(chains={1: (1, 2)})
    prefixes.add_chain(1, 2, holders=(0,))
    state = make_state(
        make_request(0, num_prompt=8, max_new=4), make_request(1, num_prompt=12, max_new=1)
    )
    enter(state, 0, computed=8, pages=2, extra=1)
    plan = plan_step(
        state, make_view(num_pages=4, num_free=2, prefixes=prefixes), make_limits(), 0.0
    )
    assert plan.hits == (PlannedHit(1, 2),)
    assert {run.row: run.num_new_pages for run in plan.runs} == {0: 1, 1: 1}


def test_two_newcomers_share_what_was_idle_once():
    """The second one would count the pages as idle again, and be let in on room that is gone."""
    prefixes = FakePrefixes(chains={0: (1, 2), 1: (1, 2)})
    prefixes.add_chain(1, 2)
    state = make_state(*(make_request(i, num_prompt=11, max_new=1) for i in range(3)))
    view = make_view(num_pages=5, num_free=2, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_step_tokens=99), 0.0)
    assert plan.hits == (PlannedHit(0, 2), PlannedHit(1, 2))
    assert [run.row for run in plan.runs] == [0, 1] and plan.prefix_evictions == ()


def test_a_page_found_twice_is_no_longer_idle_only_once():
    """The second one who finds it would take it from the room of a third."""
    prefixes = FakePrefixes(chains={0: (1, 2), 1: (1, 2)})
    prefixes.add_chain(1, 2, tenant="a")
    state = make_state(*(make_request(i, num_prompt=11, max_new=1, tenant="a") for i in (0, 1)))
    view = make_view(num_pages=8, num_free=6, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_tenant_pages=4), 0.0)
    assert plan.hits == (PlannedHit(0, 2), PlannedHit(1, 2)), "two shared, and one for each"


def test_blocks_that_made_room_in_this_plan_are_not_found_in_it():
    """A newcomer would begin behind pages that are evicted under it."""
    prefixes = FakePrefixes(chains={2: (1, 2)})
    prefixes.add_chain(1, 2, 3, 4, 5, 6, holders=(0,))
    state = make_state(
        make_request(0, num_prompt=24, max_new=9, deadline_s=1.0),
        make_request(1, num_prompt=8, max_new=2),
        make_request(2, num_prompt=9, max_new=1),
    )
    enter(state, 0, computed=24, pages=6, extra=1)
    enter(state, 1, computed=8, pages=2, extra=1)
    view = make_view(num_pages=8, num_free=0, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(), 1.0)
    assert ([run.row for run in plan.runs], plan.hits) == ([1, 2], ())
    assert plan.prefix_evictions == (6, 5, 4, 3), "what was not taken stays"


# One order


@pytest.mark.parametrize("tells_all", [True, False])
def test_least_worth_goes_first_whatever_it_is(tells_all):
    """Adapters would always go before prefixes, or the other way round."""
    prefixes = FakePrefixes(tells_all=tells_all)
    prefixes.add_chain(1, 2, worth=2.0)
    prefixes.add_chain(3, worth=5.0)
    adapters = {7: resident(2, worth=3.0), 8: resident(2, worth=1.0), 9: resident(2, worth=4.0)}
    state = make_state(make_request(num_prompt=25, max_new=1))
    view = make_view(num_pages=9, num_free=0, adapters=adapters, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(), 0.0)
    assert plan.evictions == (8, 7, 9)
    assert plan.prefix_evictions == (2, 1), "a page goes after those that go on from it"


@pytest.mark.parametrize("tells_all", [True, False])
def test_what_the_line_needs_goes_last_and_from_its_back(tells_all):
    """A request would throw out what one in front of it is about to find."""
    prefixes = FakePrefixes(chains={1: (1, 2), 2: (1, 3, 4)}, tells_all=tells_all)
    prefixes.add_chain(1, 2)
    prefixes.add_chain(3, 4, behind=1)
    prefixes.add_chain(5, worth=9.0)
    state = make_state(
        make_request(0, num_prompt=4, max_new=40),
        make_request(1, num_prompt=99),
        make_request(2, num_prompt=98, adapter_id=6, adapter_pages=1),
    )
    enter(state, 0, computed=4, pages=1, extra=1)
    adapters = {6: resident(1)}

    def gone(num_computed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        state.num_computed[0], state.num_known[0] = 4, num_computed
        view = make_view(num_pages=7, num_free=0, adapters=adapters, prefixes=prefixes)
        plan = plan_step(state, view, make_limits(), 0.0)
        return plan.prefix_evictions, plan.evictions

    assert gone(8) == ((5,), ())
    assert gone(12) == ((5, 4), ())
    assert gone(16) == ((5, 4, 3), ())
    assert gone(20) == ((5, 4, 3), (6,)), "what only the last one needs, then what both need"
    assert gone(24) == ((5, 4, 3, 2), (6,))
    assert gone(28) == ((5, 4, 3, 2, 1), (6,))


def test_a_waiting_row_takes_nothing_that_it_or_one_before_it_needs():
    """A newcomer let in on the pages of the chain of another who waits in front."""
    prefixes = FakePrefixes(chains={0: (1, 2, 3), 1: (4,)})
    prefixes.add_chain(1, 2, 3)
    prefixes.add_chain(4)
    state = make_state(make_request(0, num_prompt=60), make_request(1, num_prompt=8, max_new=1))
    view = make_view(num_pages=9, num_free=0, prefixes=prefixes)
    assert plan_step(state, view, make_limits(), 0.0) == StepPlan(now_s=0.0)
    prefixes.add_chain(5, worth=7.0)
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.prefix_evictions, plan.hits) == ((5,), (PlannedHit(1, 1),))


def test_pinned_adapters_go_after_all_that_nobody_needs():
    """A pin would mean nothing; or a request that could not run otherwise would wait for ever."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, worth=9.0)
    adapters = {7: resident(1, worth=-5.0, pinned=True), 8: resident(1, worth=9.5)}
    state = make_state(make_request(num_prompt=8, max_new=1))
    view = make_view(num_pages=3, num_free=0, adapters=adapters, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.prefix_evictions, plan.evictions) == ((1,), (8,))
    state = make_state(make_request(num_prompt=12, max_new=1))
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.prefix_evictions, plan.evictions) == ((1,), (8, 7))


def test_a_slot_is_had_from_an_adapter_though_pages_are_worth_less():
    """Blocks would be evicted one after the other for a slot that none of them has."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, worth=0.0)
    state = make_state(make_request(adapter_id=9, adapter_pages=2))
    adapters = {3: resident(2, worth=4.0), 5: resident(2, worth=5.0)}
    view = make_view(
        num_pages=8, num_free=1, num_free_slots=0, adapters=adapters, prefixes=prefixes
    )
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.evictions, plan.prefix_evictions) == ((3,), ())
    assert plan.loads == (PlannedLoad(9, 2),)


def test_only_as_many_are_looked_at_as_go():
    """Every plan would walk the whole cache."""
    prefixes = FakePrefixes()
    for block_id in range(1000):
        prefixes.add_chain(block_id, worth=float(block_id))
    state = make_state(make_request(num_prompt=20, max_new=1))
    view = make_view(num_pages=1000, num_free=0, prefixes=prefixes)
    assert len(plan_step(state, view, make_limits(), 0.0).prefix_evictions) == 5
    assert prefixes.num_looks < 10


# Victims


def victims(prefixes: FakePrefixes, *, num_free: int = 0) -> StepPlan:
    """Row 0 needs a page and is older than row 1, which holds five, four of them full."""
    state = make_state(*(make_request(i, num_prompt=8, max_new=30) for i in range(2)))
    enter(state, 0, computed=8, pages=2, extra=1)
    enter(state, 1, computed=17, pages=5, extra=10)
    view = make_view(num_pages=12, num_free=num_free, prefixes=prefixes)
    return plan_step(state, view, make_limits(), 0.0)


def test_what_nobody_needs_of_a_victim_stays():
    """All it had computed would be thrown away for one page."""
    plan = victims(FakePrefixes())
    assert (plan.preemptions, plan.keeps) == ((1,), (PlannedKeep(1, 4),))
    assert plan.runs == (PlannedRun(0, 8, 1, 1),)


def test_blocks_of_a_victim_go_from_the_tail_and_only_its_own():
    """Pages that others read would be given away, or counted as room."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, 2, 3, 4, holders=(1,))
    assert victims(prefixes).prefix_evictions == (), "its fifth page is enough"
    prefixes.add_chain(5, holders=(1,), behind=4)
    plan = victims(prefixes)
    assert (plan.prefix_evictions, plan.keeps) == ((5,), ())
    prefixes.add_chain(6, holders=(2,), behind=5)
    plan = victims(prefixes)
    assert (plan.preemptions, plan.prefix_evictions, plan.runs) == ((1,), (), ())


def test_two_victims_give_up_what_only_they_shared():
    """Each would say that the other still holds it, and the oldest one stand still."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, 2, holders=(1, 2))
    state = make_state(*(make_request(i, num_prompt=8, max_new=40) for i in range(3)))
    enter(state, 0, computed=4, pages=1)
    state.num_known[0] = 12
    enter(state, 1, computed=8, pages=2, extra=1)
    enter(state, 2, computed=8, pages=2, extra=1)
    view = make_view(num_pages=3, num_free=0, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.preemptions, plan.prefix_evictions) == ((2, 1), (2, 1))
    assert plan.runs == (PlannedRun(0, 4, 8, 2),)
    state.num_known[0] = 8  # one page will do
    plan = plan_step(state, view, make_limits(), 0.0)
    assert (plan.preemptions, plan.prefix_evictions) == ((2, 1), (2,))


@pytest.mark.parametrize("needs_all", [False, True])
def test_blocks_of_an_expired_row_stay_unless_somebody_would_be_preempted(needs_all):
    """A shared beginning thrown away with whoever was too late; or a victim made for pages that
    nobody uses any more."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, 2, holders=(0,))
    state = make_state(
        make_request(0, num_prompt=8, max_new=9, deadline_s=1.0),
        *(make_request(i, num_prompt=8, max_new=9) for i in (1, 2)),
    )
    enter(state, 0, computed=8, pages=3, extra=1)
    for row in (1, 2) if needs_all else (1,):
        enter(state, row, computed=8, pages=2, extra=1)
    plan = plan_step(
        state, make_view(num_pages=7, num_free=0, prefixes=prefixes), make_limits(), 1.0
    )
    assert (plan.expired, plan.preemptions) == ((0,), ())
    assert plan.prefix_evictions == ((2,) if needs_all else ())
    assert [run.row for run in plan.runs] == ([1, 2] if needs_all else [1])
