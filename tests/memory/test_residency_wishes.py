"""Residency and what nobody waits for: worths, wishes, pins, and loads that are given up."""

import pytest

from lorry.server.memory.economy import make_economy
from lorry.server.memory.link_records import LoadCancelled, LoadFailed
from lorry.server.memory.pool import Pool
from lorry.server.memory.residency import Residency
from lorry.server.memory.residency_records import Arrived
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.prefix_view import NO_PREFIXES
from lorry.server.scheduling.records import StepLimits, StepPlan
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.fakes import FakeLink, make_card, make_key
from lorry.tests.memory_builders import bring, load_plan, make_residency, start_load


def wish_names(residency: Residency) -> list[str]:
    return [
        residency.key_of(wish.adapter_id).name for wish in residency.view(4, NO_PREFIXES).wishes
    ]


def test_an_adapter_asked_for_more_often_is_worth_more():
    """The economy would evict whom the next request names."""
    residency, pool, link = make_residency(popular=True)
    often, seldom = (bring(residency, pool, link, name) for name in ("often", "seldom"))
    residency.use(often, 1.0)
    view = residency.view(4, NO_PREFIXES)
    assert view.adapters[often].worth > view.adapters[seldom].worth
    assert view.adapters[often].tenant == "default"


def test_the_evicted_popular_one_is_wished_for_and_the_waited_for_is_not():
    """The link would stand idle, or one adapter be loaded for the line and for popularity."""
    residency, pool, link = make_residency(popular=True)
    gone = bring(residency, pool, link, "gone")
    residency.leave(gone, 1.0)
    plan = load_plan(evict=[gone])
    pool.apply(plan)
    residency.apply(plan)
    assert wish_names(residency) == ["gone"]
    (wish,) = residency.view(4, NO_PREFIXES).wishes
    assert (wish.num_pages, wish.tenant) == (2, "default")
    waited = residency.intern(make_card("gone"))
    residency.use(waited, 2.0)
    assert wish_names(residency) == []


def test_no_wish_is_shown_while_the_link_is_busy():
    """A prefetch would be in the way of whoever comes next."""
    residency, pool, link = make_residency(popular=True)
    residency.wishes.ask(make_card("asked"), 1.0)
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 1.0)
    load_id = start_load(residency, pool, adapter_id)
    assert wish_names(residency) == []
    link.finish(load_id)
    residency.drain(link.poll(), 2.0)
    assert wish_names(residency) == ["asked"]


def test_no_wish_is_looked_for_while_somebody_lacks_an_adapter():
    """The planner would not have it loaded, and each step would look through the usage book."""
    residency, _, _ = make_residency(popular=True)
    residency.wishes.ask(make_card("asked"), 1.0)
    lacked = residency.intern(make_card("lacked"))
    residency.use(lacked, 1.0)
    assert wish_names(residency) == []
    residency.leave(lacked, 2.0)
    assert "asked" in wish_names(residency)


def test_a_handle_of_a_wish_lasts_for_one_plan():
    """Ten thousand wishes that come to nothing would leave ten thousand handles."""
    residency, _, _ = make_residency(popular=True)
    for number in range(50):
        card = make_card(f"a{number}")
        residency.wishes.ask(card, 1.0)
        assert wish_names(residency)[0] == f"a{number}"
        residency.doom(card.key)
        residency.take_departed()
        residency.apply(StepPlan())
    assert residency.intern(make_card("last")) == 0


def test_a_prefetched_adapter_arrives_and_is_counted():
    """GetStats would not tell what the idle link was used for."""
    residency, pool, link = make_residency(popular=True)
    residency.wishes.ask(make_card(), 1.0)
    (wish,) = residency.view(4, NO_PREFIXES).wishes
    link.finish(start_load(residency, pool, wish.adapter_id))
    (told,) = residency.drain(link.poll(), 2.0)
    assert isinstance(told, Arrived) and residency.num_prefetches == 1
    assert wish_names(residency) == []
    met = residency.met(make_key())
    assert (met.place.value, met.num_pages, met.num_users) == ("resident", 2, 0)
    assert met.usage is not None and met.usage.num_loads == 1


def test_a_load_nobody_needs_is_cancelled_and_fails_nobody():
    """A client that went away would keep the link from those who wait; one that comes back
    meanwhile would be told of a failure that was none."""
    residency, pool, link = make_residency()
    adapter_id = residency.intern(make_card())
    residency.use(adapter_id, 0.0)
    load_id = start_load(residency, pool, adapter_id)
    residency.leave(adapter_id, 1.0)
    assert link.cancelled == [load_id]
    residency.use(adapter_id, 2.0)
    news = residency.drain([LoadFailed(load_id, LoadCancelled())], 3.0)
    assert news == () and residency.num_cancelled == 1
    assert pool.num_free == 10 and not residency.is_resident(adapter_id)
    assert start_load(residency, pool, adapter_id) != load_id


@pytest.mark.parametrize("why", ["prefetched", "pinned", "doomed"])
def test_a_load_that_was_wished_for_goes_on_unless_it_is_deleted(why):
    """One passing request would undo the prefetch of another."""
    residency, pool, link = make_residency(popular=True)
    if why == "pinned":
        residency.wishes.pin(make_card())
        adapter_id = residency.intern(make_card())
        residency.use(adapter_id, 0.0)
        load_id = start_load(residency, pool, adapter_id)
    else:
        residency.wishes.ask(make_card(), 0.0)
        adapter_id = residency.view(4, NO_PREFIXES).wishes[0].adapter_id
        load_id = start_load(residency, pool, adapter_id)
        residency.use(adapter_id, 0.0)
    residency.leave(adapter_id, 1.0)
    if why == "doomed":
        residency.doom(make_key())
    assert link.cancelled == [load_id] * (why == "doomed")


def test_a_pin_is_seen_by_the_planner_and_can_be_taken_back():
    """What is pinned would be evicted like any other."""
    residency, pool, link = make_residency()
    adapter_id = bring(residency, pool, link)
    residency.wishes.pin(make_card())
    assert (
        residency.view(4, NO_PREFIXES).adapters[adapter_id].pinned
        and residency.met(make_key()).pinned
    )
    residency.wishes.unpin(make_key())
    assert not residency.view(4, NO_PREFIXES).adapters[adapter_id].pinned


def test_an_adapter_nobody_has_heard_of_is_nowhere():
    met = make_residency()[0].met(make_key("never"))
    assert (met.place.value, met.pinned, met.num_pages, met.usage) == ("absent", False, 0, None)


def test_an_idle_engine_with_little_host_memory_comes_to_rest():
    """Three adapters of one popularity, host memory for one, the pool for two: whoever was away had
    to be read from disk, was worth more for it, and pushed out who was there, for ever.
    """
    pool, link, in_host = Pool(4), FakeLink(), [""]
    residency = Residency(
        pool,
        link,
        max_slots=4,
        economy=make_economy("economy"),
        reload_s=lambda card: 1.0 if card.key.name in in_host else 10.0,
        cross_s=lambda card: 1.0,
        by_popularity=True,
    )
    for name in "abc":
        adapter_id = residency.intern(make_card(name))
        residency.use(adapter_id, 0.0)
        residency.leave(adapter_id, 0.0)
    state, limits = SchedulerState(4, 4), StepLimits(4, 16)
    for step in range(20):
        plan = plan_step(state, residency.view(4, NO_PREFIXES), limits, float(step))
        pool.apply(plan)
        for order in residency.apply(plan).orders:
            in_host[:] = [order.card.key.name]
            link.finish(order.load_id)
        residency.drain(link.poll(), float(step))
        residency.take_departed()
    assert len(link.started) == 2
