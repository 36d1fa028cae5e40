"""Adapters that are brought nearer, kept, given up and asked after, without a request."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lorry.adapters.key import AdapterCard
from lorry.server.memory.link_records import LoadCancelled, LoadFailed
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.step_work import NO_WORK
from lorry.server.seam import AskResidency, Cancel, Finish, Forget, Prefetch
from lorry.tests.engine_bench import NO_CACHE, Bench, make_bench, submit
from lorry.tests.fakes import fake_answer, make_card, make_key

PROMPT = tuple(range(10, 19))


def places(bench: Bench, *names: str) -> list[str]:
    bench.residency.clear()
    bench.tell(AskResidency(9, tuple(make_key(name) for name in names)))
    bench.step()
    return [item.place for item in bench.residency]


def prefetch(card: AdapterCard, *, to_pool: bool = True, pinned: bool | None = None) -> Prefetch:
    return Prefetch(7, card, to_pool, pinned)


def test_a_prefetched_adapter_is_there_when_its_first_request_comes():
    """The first request of a new adapter would wait for a disk, whoever had foreseen it."""
    bench = make_bench()
    bench.tell(prefetch(make_card()))
    bench.run_dry()
    assert [item.place for item in bench.residency] == ["disk"], "answered before it is done"
    assert places(bench, "a", "never") == ["pool", "disk"]
    bench.tell(submit(1, make_card()))
    bench.run_dry()
    memory = bench.engine.stats(pages=False).memory
    assert (memory.prefetches, memory.requests_with_adapter, memory.pool_hits) == (1, 1, 1)


def test_residency_counts_what_requests_have_met():
    """Hit rate and load time of an adapter would be anybody's guess."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card(), max_new_tokens=30))
    bench.step()
    assert places(bench, "a") == ["loading"]
    bench.link.finish(bench.link.started[0].load_id)
    bench.step(2)
    bench.tell(submit(2, make_card(), max_new_tokens=2))
    bench.step()
    assert places(bench, "a") == ["pool"]
    (item,) = bench.residency
    assert (item.num_users, item.num_pages, item.num_requests) == (2, 2, 2)
    assert (item.num_pool_hits, item.num_loads, item.num_reads) == (1, 1, 0)
    assert places(bench, "b") == ["disk"] and math.isnan(bench.residency[0].load_s)


def test_a_pinned_adapter_stays_while_others_come_and_go():
    """The operator's choice would be evicted by the next burst."""
    bench = make_bench(num_pages=10)
    bench.tell(prefetch(make_card("pinned"), pinned=True))
    bench.run_dry()
    for request_id in range(12):
        card = make_card(f"a{request_id % 4}")
        bench.tell(submit(request_id, card, prompt_ids=PROMPT))
        bench.run_dry()
        assert bench.tokens[request_id] == fake_answer(PROMPT, 4, card)
    assert bench.engine.counters.adapter_evictions > 5
    assert places(bench, "pinned") == ["pool"] and bench.residency[0].pinned
    bench.tell(Prefetch(1, make_card("pinned"), to_pool=False, pinned=False))
    for request_id in range(12, 24):
        bench.tell(submit(request_id, make_card(f"a{request_id % 4}"), prompt_ids=PROMPT))
        bench.run_dry()
    assert places(bench, "pinned") == ["disk"]


def test_a_pin_gives_way_where_a_request_could_not_get_on_and_comes_back():
    """A pool full of pins would refuse everyone, or a pin be forgotten for good."""
    bench = make_bench(num_pages=8)
    bench.tell(prefetch(make_card("pinned", num_pages=4), pinned=True))
    bench.run_dry()
    bench.tell(submit(1, prompt_ids=tuple(range(20)), max_new_tokens=9))
    bench.run_dry()
    assert isinstance(bench.ended[1], Finish)
    bench.run_dry()
    assert places(bench, "pinned") == ["pool"]


def test_taking_a_pin_away_moves_nothing():
    """An adapter on disk was read into host memory because nobody wanted it any more."""
    bench = make_bench(instant=False)
    bench.tell(Prefetch(1, make_card(), to_pool=False, pinned=False))
    bench.step(2)
    assert not bench.link.wanted and not bench.link.started
    assert [item.place for item in bench.residency] == ["disk"]


def test_a_deleted_prefetch_leaves_nothing_behind():
    """Pages of a deleted adapter, or its files, would be kept by a wish."""
    bench = make_bench(instant=False)
    bench.tell(prefetch(make_card(), pinned=True))
    bench.step(2)
    bench.tell(Forget(make_key()))
    bench.step()
    (load_id,) = bench.link.orders
    assert bench.link.cancelled == [load_id]
    bench.link.finish(load_id)
    bench.run_dry()
    assert bench.pool.num_free == bench.pool.num_pages and bench.released == ["a"]
    assert len(bench.link.started) == 1


def test_a_load_whose_last_request_left_is_given_up():
    """A client that hangs up would keep the link from those who wait."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card()))
    bench.step(2)
    bench.tell(Cancel(1))
    bench.step()
    (load_id,) = bench.link.orders
    assert bench.link.cancelled == [load_id]


def test_a_wish_that_fails_is_tried_once_and_fails_no_one():
    """A corrupt file would keep the link busy for ever."""
    bench = make_bench(instant=False)
    bench.tell(prefetch(make_card(), pinned=True), submit(1))
    bench.step(2)
    bench.link.fail(bench.link.started[0].load_id)
    bench.run_dry()
    assert len(bench.link.started) == 1 and isinstance(bench.ended[1], Finish)
    bench.link.instant = True
    bench.tell(submit(2, make_card()))
    bench.run_dry()
    assert isinstance(bench.ended[2], Finish)


def test_a_tenant_without_requests_pins_no_more_than_its_share():
    """Whoever never asked for a token was no tenant to the planner, and could fill the pool."""
    bench = make_bench(num_pages=10, memory=replace(NO_CACHE, tenant_share=0.5))
    bench.tell(*(prefetch(make_card(name), pinned=True) for name in "abc"))
    bench.run_dry()
    assert places(bench, *"abc") == ["pool", "pool", "disk"]


def test_what_could_never_run_here_is_not_brought():
    bench = make_bench()
    big = make_card(num_pages=bench.pool.num_pages + 1)
    bench.tell(prefetch(big), prefetch(big, pinned=True))
    bench.run_dry()
    assert not bench.link.started and len(bench.residency) == 2


def test_the_link_hears_who_will_be_needed_next_and_only_when_that_changes():
    """Disks would stand idle while the pool is full, or hear one list a thousand times."""
    bench = make_bench(num_pages=8, instant=False)
    told: list[list[str]] = []
    link_want = bench.link.want

    def want(cards: object) -> None:
        link_want(cards)  # pyright: ignore[reportArgumentType]
        told.append([card.key.name for card in bench.link.wanted])

    bench.link.want = want  # pyright: ignore[reportAttributeAccessIssue]
    cards = [make_card(name, num_pages=5) for name in "abc"]
    bench.tell(*(submit(i, card) for i, card in enumerate(cards)))
    bench.step(6)
    assert told == [["b", "c"]], "the first is ordered, no room for the others"
    bench.tell(Prefetch(1, make_card("host"), to_pool=False))
    bench.step(2)
    assert told[-1] == ["b", "c", "host"]


@pytest.mark.parametrize("prefetches", [True, False])
def test_the_popular_come_back_when_there_is_room(prefetches):
    """Whoever is asked for all the time would wait for a load after every burst of others."""
    bench = make_bench(num_pages=10, memory=replace(NO_CACHE, prefetch=prefetches))
    for request_id in range(4):
        bench.tell(submit(request_id, make_card()))
        bench.run_dry()
    bench.tell(submit(5, prompt_ids=tuple(range(20)), max_new_tokens=18))
    bench.run_dry()
    bench.run_dry()
    assert bench.engine.counters.adapter_evictions == 1
    assert places(bench, "a") == (["pool"] if prefetches else ["disk"])


def test_a_cancelled_load_that_is_needed_again_is_ordered_again():
    """The second request would be told of a failure that was only a change of mind."""
    bench = make_bench(instant=False)
    bench.tell(submit(1, make_card()))
    bench.step(2)
    bench.tell(Cancel(1), submit(2, make_card()))
    bench.step()
    (load_id,) = bench.link.orders
    del bench.link.orders[load_id]
    bench.link.events.append(LoadFailed(load_id, LoadCancelled()))
    bench.link.instant = True
    bench.run_dry()
    assert bench.tokens[2] == fake_answer((5, 6, 7), 4, make_card())
    assert bench.engine.stats(pages=False).memory.loads_cancelled == 1


def test_prefetching_comes_to_rest():
    """With host memory for a few, whoever is on disk is dear and whoever is here is cheap: the
    popular would change places for ever, and the link never be idle."""
    costs = CostModel(tuple(NO_WORK), load_s_per_byte=1e-3, read_s_per_byte=5e-3)
    bench = make_bench(num_pages=10, memory=replace(NO_CACHE, prefetch=True), cost=costs)

    def step(times: int) -> None:
        for _ in range(times):
            bench.host_tier.held = {order.card.key for order in bench.link.started[-3:]}
            bench.step()

    for request_id in range(40):
        bench.tell(submit(request_id, make_card(f"a{request_id % 10}", weight_bytes=100)))
        step(8)
    num_loads = len(bench.link.started)
    step(200)
    assert len(bench.link.started) <= num_loads + 5
