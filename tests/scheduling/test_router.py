"""Routers, by cases worked out by hand."""

from collections import Counter

from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.replica_view import ReplicaView, RequestFacts, look_at
from lorry.server.scheduling.router import (
    at_random,
    by_adapter,
    by_added_cost,
    least_work,
    round_robin,
)
from lorry.server.scheduling.step_work import NO_WORK, StepWork
from lorry.tests.scheduling_builders import loading, make_request, make_state, make_view, resident


def seen(replica_id, num_running=0, num_waiting=0, **fields):
    return ReplicaView(replica_id, num_running, num_waiting, **fields)


def model(**coefs_s):
    return CostModel(tuple(coefs_s.get(name, 0.0) for name in StepWork._fields))


def test_round_robin_goes_by_the_requests_number():
    """A counter inside would make two runs of one simulation differ."""
    views = [seen(0), seen(1), seen(2)]
    assert [round_robin(RequestFacts(n), views) for n in (0, 1, 2, 3, 7)] == [0, 1, 2, 0, 1]


def test_random_is_even_and_the_same_for_a_seed():
    """Not to be replayed, or one replica gets everything."""
    views = [seen(0), seen(1), seen(2)]
    places = [at_random(1)(RequestFacts(n), views) for n in range(300)]
    assert places == [at_random(1)(RequestFacts(n), views) for n in range(300)]
    assert places != [at_random(2)(RequestFacts(n), views) for n in range(300)]
    assert min(Counter(places).values()) > 80


def test_least_work_counts_prompts_and_answers():
    """Three short requests are less than one of a long prompt, or more, as answers go."""
    views = [seen(0, 3, todo_tokens=0), seen(1, 1, todo_tokens=500)]
    assert least_work(100.0)(RequestFacts(0), views) == 0  # 300 against 600
    assert least_work(400.0)(RequestFacts(0), views) == 1  # 1200 against 900


def homes(views, num_adapters=300):
    route = by_adapter()
    return [views[route(RequestFacts(0, n), views)].replica_id for n in range(num_adapters)]


def test_an_adapter_has_a_home_that_few_lose_when_replicas_change():
    """Every adapter would be fetched anew whenever a replica comes or goes."""
    views = [seen(replica_id) for replica_id in (10, 11, 12, 13)]
    before = homes(views)
    assert min(Counter(before).values()) > 50
    assert homes(views[::-1]) == before, "a replica is known by its number, not by its place"
    after = homes(views[:3])
    assert [new for old, new in zip(before, after, strict=True) if old != 13] == [
        old for old in before if old != 13
    ]


def test_a_full_home_sends_on_to_where_the_adapter_is_then_to_the_least_loaded():
    """A popular adapter would bury one replica; or be strewn over all of them."""
    home = by_adapter()(RequestFacts(0, 5), [seen(0), seen(1), seen(2)])
    first, second = (i for i in range(3) if i != home)

    def route(load, *, others=(0, 0), resident=frozenset[int]()):
        loads = dict(zip((home, first, second), (load, *others), strict=True))
        views = [
            seen(i, loads[i], resident=resident if i == second else frozenset()) for i in range(3)
        ]
        return by_adapter(1.25)(RequestFacts(0, 5), views)

    # Of 12 in all the limit is 1.25 x 4 + 1 = 6.
    assert route(5, others=(3, 4)) == home
    assert route(6, others=(2, 4)) == first
    assert route(6, others=(2, 4), resident=frozenset({5})) == second
    assert route(6, others=(0, 6), resident=frozenset({5})) == first, "it is full as well"


def test_the_base_goes_to_the_least_loaded():
    """All base requests would have one home."""
    views = [seen(0, 2), seen(1, 1, 1), seen(2, 1, 0, free_pages=1), seen(3, 1, 0, free_pages=9)]
    assert by_adapter()(RequestFacts(0), views) == 3


def test_added_cost_by_hand():
    """The published formula, term by term.

    Prompt of 10: 10 x 2 ms = 20 ms over 10 tokens of answer, 2 ms each; a row more 3 ms; an
    adapter more 7 ms, of its bytes 1 ms each: what is there already is not paid for again.
    """
    cost = model(prompt_tokens=0.002, decode_rows=0.003, adapters=0.007, adapter_bytes=0.001)
    route = by_added_cost(cost, mean_new_tokens=10.0)
    request = RequestFacts(0, 4, adapter_bytes=5, num_prompt_tokens=10)
    has_it = StepWork(1, 0, 0, 0, 1, 0, 1, 5, 0)
    # Without it: prefill (20 + 7 + 5) / 10 + decode 3 + 7 + 5 = 18.2 ms, times 2 = 36.4.
    without = seen(0, 2, decode=has_it, decode_adapters=frozenset({9}))
    # With it in both: (20) / 10 + 3 = 5 ms, times 7 = 35; times 8 = 40.
    with_it = {
        "queue": has_it,
        "queue_adapters": frozenset({4}),
        "decode": has_it,
        "decode_adapters": frozenset({4}),
    }
    assert route(request, [without, seen(1, 7, **with_it)]) == 1
    assert route(request, [without, seen(1, 4, 4, **with_it)]) == 0
    # With it among those that run alone: (20 + 7 + 5) / 10 + 3 = 6.2 ms, times 6 = 37.2.
    only_decode = {name: with_it[name] for name in ("decode", "decode_adapters")}
    assert route(request, [without, seen(1, 6, **only_decode)]) == 0
    assert route(request, [without, seen(1, 5, **only_decode)]) == 1


def test_added_cost_keeps_to_the_bound_while_it_can():
    """The cheapest would be taken although everyone there misses its bound."""
    cost = model(steps=0.010, decode_rows=0.001)
    route = by_added_cost(cost, mean_new_tokens=10.0)
    few, many = StepWork(1, 0, 0, 0, 2, 0, 0, 0, 0), StepWork(1, 0, 0, 0, 9, 0, 0, 0, 0)
    # A step of ten rows takes 20 ms, one of three 13 ms.
    views = [seen(0, 1, decode=many), seen(1, 2, decode=few)]
    assert route(RequestFacts(0, tpot_s=0.020), views) == 0
    assert route(RequestFacts(0, tpot_s=0.019), views) == 1
    assert route(RequestFacts(0, tpot_s=0.012), views) == 0, "broken everywhere: the least cost"


def test_an_idle_replica_is_taken_first():
    """Nobody is slowed down there."""
    route = by_added_cost(model(steps=0.01, decode_rows=0.001), mean_new_tokens=10.0)
    assert route(RequestFacts(0), [seen(0, 1, decode=StepWork(1, 0, 0, 0, 1, 0, 0, 0, 0)), seen(1)])


def test_a_view_is_read_off_the_table():
    """A router would decide on what is not so."""
    state = make_state(
        make_request(0, num_prompt=4, adapter_id=2, adapter_bytes=100),
        make_request(1, num_prompt=6, adapter_id=2, adapter_bytes=100),
        make_request(2, num_prompt=1),
    )
    state.enter(0, 0.0)
    state.num_computed[0], state.num_known[0] = 4, 5
    pool = make_view(num_free=7, adapters={2: resident(), 5: loading()})
    view = look_at(state, pool, replica_id=3)
    assert (view.replica_id, view.num_running, view.num_waiting) == (3, 1, 2)
    assert view.todo_tokens == 1 + 6 + 1
    assert (view.free_pages, view.resident) == (7, {2, 5})
    # Six tokens of one prompt, 21 pairs; the other prompt is one token.
    assert view.queue == StepWork(1, 1, 6, 21, 1, 1, 1, 100, 600)
    assert view.decode == StepWork(1, 0, 0, 0, 3, 6 + 7 + 2, 1, 100, 200)
    assert view.queue_adapters == view.decode_adapters == {2}
    empty = look_at(make_state(), make_view(), replica_id=0)
    assert (empty.queue, empty.decode, empty.todo_tokens) == (NO_WORK, NO_WORK, 0)
