"""Who may have how much: two rooms, a cap for each tenant, and what may be fetched unasked."""

import math
from typing import Any

import pytest

from lorry.server.scheduling.fitting import never_fits
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import (
    PlannedHit,
    PlannedLoad,
    Request,
    StepPlan,
    Wish,
)
from lorry.tests.prefix_builders import FakePrefixes
from lorry.tests.scheduling_builders import (
    enter,
    loading,
    make_limits,
    make_request,
    make_state,
    make_view,
    resident,
)

# Two rooms


def test_two_rooms_do_not_lend_to_each_other():
    """The baseline would be the economy under another name."""
    limits = make_limits(adapter_share_pages=4)
    adapters = {1: resident(4)}
    state = make_state(make_request(num_prompt=24, max_new=1))
    view = make_view(num_pages=10, num_free=6, adapters=adapters)
    assert [run.row for run in plan_step(state, view, limits, 0.0).runs] == [0]
    view = make_view(num_pages=9, num_free=5, adapters=adapters)
    assert plan_step(state, view, limits, 0.0) == StepPlan(now_s=0.0)
    prefixes = FakePrefixes()
    prefixes.add_chain(1, 2, worth=-1.0)
    state = make_state(make_request(adapter_id=2, adapter_pages=3))
    view = make_view(num_pages=10, num_free=4, adapters=adapters, prefixes=prefixes)
    plan = plan_step(state, view, limits, 0.0)
    assert (plan.evictions, plan.prefix_evictions) == ((1,), ())
    assert plan.loads == (PlannedLoad(2, 3),)


# Caps


def test_a_tenant_gets_no_more_than_its_cap():
    """One tenant's burst would take the pool from all others."""
    state = make_state(
        make_request(0, num_prompt=7, max_new=1, tenant="a"),
        make_request(1, num_prompt=7, max_new=1, tenant="a"),
        make_request(2, num_prompt=7, max_new=1, tenant="a", adapter_id=3, adapter_pages=1),
        make_request(3, num_prompt=7, max_new=1, tenant="b"),
    )
    limits = make_limits(max_tenant_pages=5, max_step_tokens=99)
    view = make_view(adapters={3: resident(1, tenant="a")})
    assert [run.row for run in plan_step(state, view, limits, 0.0).runs] == [0, 1, 3]
    limits = make_limits(max_tenant_pages=7, max_step_tokens=99)
    assert [run.row for run in plan_step(state, view, limits, 0.0).runs] == [0, 1, 3, 2]


def test_shared_pages_count_once_for_their_tenant():
    """A hundred requests of one system prompt would be stopped by a cap they are far from."""
    prefixes = FakePrefixes(chains={2: (1, 2, 3)})
    prefixes.add_chain(1, 2, 3, holders=(0, 1), tenant="a")
    state = make_state(*(make_request(i, num_prompt=14, max_new=1, tenant="a") for i in range(3)))
    for row in (0, 1):
        enter(state, row, computed=13, pages=4)
    view = make_view(num_free=20, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_tenant_pages=6), 0.0)
    assert plan.hits == (PlannedHit(2, 3),)
    plan = plan_step(state, view, make_limits(max_tenant_pages=5), 0.0)
    assert plan.hits == ()


def test_a_row_that_its_cap_holds_back_bars_nobody_else():
    """One tenant's large request would close the server to all others."""
    state = make_state(
        make_request(0, num_prompt=8, max_new=9, tenant="a"),
        make_request(1, num_prompt=16, tenant="a"),
        make_request(2, num_prompt=4, max_new=1, tenant="a"),
        make_request(3, num_prompt=4, max_new=1, tenant="b"),
    )
    enter(state, 0, computed=7, pages=2)
    limits = make_limits(max_tenant_pages=6)
    state.overtaken_s[1] = math.inf
    assert [run.row for run in plan_step(state, make_view(), limits, 99.0).runs] == [0, 2, 3]
    state.overtaken_s[1] = 1.0
    plan = plan_step(state, make_view(), limits, 99.0)
    assert [run.row for run in plan.runs] == [0, 3], "its own tenant's newer ones wait behind it"


def test_what_is_above_a_cap_goes_first():
    """The idle things of one tenant would push out those of all others."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, worth=1.0, tenant="b")
    prefixes.add_chain(2, 3, worth=8.0, tenant="a")
    adapters = {
        4: resident(2, worth=0.5, tenant="b"),
        5: resident(2, worth=9.0, tenant="a"),
    }
    state = make_state(make_request(0, num_prompt=16, max_new=1, tenant="b"))
    state.add(make_request(1, num_prompt=99, tenant="a"), 0.0, resident=True)
    view = make_view(num_pages=7, num_free=0, adapters=adapters, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_tenant_pages=7), 0.0)
    assert (plan.evictions, plan.prefix_evictions) == ((4,), (1, 3))
    plan = plan_step(state, view, make_limits(max_tenant_pages=3), 0.0)
    assert (plan.evictions, plan.prefix_evictions) == ((), ())
    limits = make_limits(max_tenant_pages=3)
    state = make_state(
        make_request(0, num_prompt=8, max_new=1, tenant="c"),
        make_request(1, num_prompt=99, tenant="a"),
    )
    plan = plan_step(state, view, limits, 0.0)
    assert (plan.evictions, plan.prefix_evictions) == ((4,), (3,)), "one page above the cap"


def test_a_page_above_a_cap_waits_for_what_goes_on_from_it():
    """Where tenants share prefixes: a page in the middle of another tenant's chain would go."""
    prefixes = FakePrefixes()
    prefixes.add_chain(1, worth=1.0, tenant="a")
    prefixes.add_chain(2, worth=5.0, tenant="b", behind=1)
    prefixes.add_chain(3, worth=4.0, tenant="b")
    state = make_state(
        make_request(0, num_prompt=3, max_new=1, tenant="c"),
        make_request(1, num_prompt=99, tenant="a"),
    )
    adapters = {7: resident(1, worth=9.0, tenant="a")}
    view = make_view(num_pages=4, num_free=0, adapters=adapters, prefixes=prefixes)
    plan = plan_step(state, view, make_limits(max_tenant_pages=1), 0.0)
    assert (plan.prefix_evictions, plan.evictions) == ((), (7,)), "the one above that can go"


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({"max_tenant_pages": 12}, "13 pages, --tenant-share leaves each tenant 12 of 40"),
        ({"adapter_share_pages": 2}, "takes 3 pages, --adapter-share leaves adapters 2 of 40"),
        ({"adapter_share_pages": 31}, "10 pages of 4 tokens, --adapter-share leaves KV 9"),
    ],
)
def test_what_no_share_can_hold_is_refused_with_the_flag(shares, reason):
    """It would wait for ever in a pool that has room for it."""
    request = make_request(num_prompt=30, max_new=10, adapter_id=1, adapter_pages=3)
    assert reason in str(never_fits(request, 40, 4, 99, **shares))
    enough = {name: value + 1 if value != 31 else 30 for name, value in shares.items()}
    assert never_fits(request, 40, 4, 99, **enough) is None


# Prefetch


def wish(adapter_id: int, num_pages: int = 2, *, worth: float = 5.0, tenant: str = "") -> Wish:
    return Wish(adapter_id, num_pages, worth, tenant)


def fetched(view_facts: dict[str, Any], *requests: Request, **limits: int) -> StepPlan:
    view = make_view(wishes=(wish(1, 9), wish(2), wish(3)), **view_facts)
    return plan_step(make_state(*requests), view, make_limits(**limits), 0.0)


def test_wishes_are_loaded_in_order_one_at_a_time_into_free_pages():
    """Nothing would be fetched ahead; or a request would find the link full of guesses."""
    plan = fetched({"num_pages": 8})
    assert (plan.loads, plan.evictions) == ((PlannedLoad(2, 2),), ()), "the first is too large"
    assert fetched({"num_pages": 8, "adapters": {7: loading(2)}}).loads == ()
    assert fetched({"num_pages": 8, "adapters": {2: resident(2)}}).loads == (PlannedLoad(3, 2),)


def test_a_wish_takes_only_what_nobody_needs_and_is_worth_less():
    """A guess would push out what is sure, or two guesses each other for ever."""
    facts = {"num_pages": 4, "num_free": 0}
    adapters = {7: resident(2, worth=4.0), 8: resident(2, worth=6.0)}
    plan = fetched({**facts, "adapters": adapters})
    assert (plan.evictions, plan.loads) == ((7,), (PlannedLoad(2, 2),))
    for better in (resident(2, worth=5.0), resident(2, worth=0.0, pinned=True)):
        assert fetched({**facts, "adapters": {**adapters, 7: better}}) == StepPlan(now_s=0.0)
    waiting = make_request(num_prompt=99, adapter_id=7, adapter_pages=2)
    assert fetched({**facts, "adapters": adapters}, waiting).loads == ()
    prefixes = FakePrefixes()
    prefixes.add_chain(1, worth=4.0)
    prefixes.add_chain(2, 3, worth=2.0)
    plan = fetched({**facts, "adapters": {8: resident(1, worth=9.0)}, "prefixes": prefixes})
    assert (plan.prefix_evictions, plan.loads) == ((3, 2), (PlannedLoad(2, 2),))


def test_a_wish_takes_no_slot_from_what_is_worth_more():
    """The pages would be there, and the adapter next in line for them thrown out for its slot."""
    facts = {"num_pages": 8, "num_free_slots": 0}
    assert fetched({**facts, "adapters": {7: resident(2, worth=5.5)}}).loads == ()
    plan = fetched({**facts, "adapters": {7: resident(2, worth=4.5)}})
    assert (plan.evictions, plan.loads) == ((7,), (PlannedLoad(2, 2),))


def test_requests_come_before_wishes():
    """A request would wait for the link, or for pages, behind a guess."""
    cold = make_request(adapter_id=9, adapter_pages=90)  # finds no room: it is its turn next
    assert fetched({}, cold).loads == ()
    runs = make_request(num_prompt=20, max_new=9)
    assert fetched({"num_pages": 7}, runs).loads == ()
    assert fetched({"num_pages": 8}, runs).loads == (PlannedLoad(2, 2),)
    waits = make_request(1, num_prompt=20)
    assert fetched({"num_pages": 12}, runs, waits, max_running=1).loads == ()
    assert len(fetched({"num_pages": 13}, runs, waits, max_running=1).loads) == 1


def test_what_a_newcomer_found_is_no_room_for_a_wish():
    """The pages that those who run are promised would go to a guess."""
    runs = make_request(num_prompt=12, max_new=9)
    prefixes = FakePrefixes(chains={0: (1, 2)})
    prefixes.add_chain(1, 2)
    facts = {"num_pages": 5, "prefixes": prefixes}
    assert fetched({**facts, "num_free": 3}, runs).loads == ()
    assert len(fetched({**facts, "num_free": 4}, runs).loads) == 1


def test_a_wish_keeps_to_its_tenants_cap():
    """It would be loaded and, above the cap, go first of all."""
    view = make_view(num_pages=64, wishes=(wish(1, 4, tenant="a"), wish(2, 3, tenant="a")))
    plan = plan_step(make_state(), view, make_limits(max_tenant_pages=3), 0.0)
    assert plan.loads == (PlannedLoad(2, 3),)
