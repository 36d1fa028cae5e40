"""The planner's laws again, over lives with a prefix cache, shares, pins and wishes.

Each step of `World` checks that a row reads pages of its own tokens, that nothing is evicted that
those it goes for need, that rooms and caps hold, and every book. The prefix cache is the real one.
"""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.memory.pool import KvOwner
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import Ending, PlannedKeep, PlannedRun, StepPlan
from lorry.tests.life_builders import live_with_memory, make_world, random_requests
from lorry.tests.scheduling_builders import make_request
from lorry.tests.world_builders import World


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [live_with_memory(seed, deadlines=seed % 3 == 0) for seed in range(20)]


@pytest.mark.slow
def test_everyone_is_served_or_expired(worlds):
    """A request would starve behind a cap, a wall or pages that are kept for others; or nobody
    get on because everyone's pages stay cached."""
    for seed, world in enumerate(worlds):
        assert set(world.endings) == set(world.asked) and len(world.asked) >= 12
        said = {Ending.LENGTH} if seed % 3 else {Ending.LENGTH, Ending.EXPIRED}
        assert set(world.endings.values()) <= said
        for request_id, answer in world.answers.items():
            # The same whoever shared the pool, and whatever was found: see `World._token`.
            first = 100 + request_id * 7 + len(world.asked[request_id].prompt_ids)
            assert answer == list(range(first, first + len(answer)))
        stats = world.prefixes.stats()
        assert stats.num_pages == stats.num_idle, "nobody is left to hold any"


def test_the_same_seed_gives_the_same_plans(worlds):
    """An order of a set or a dict would leak into plans: nothing could be replayed."""
    for seed in (1, 4):
        assert live_with_memory(seed).plans == worlds[seed].plans


def test_the_lives_above_know_all_of_it(worlds):
    """The laws would hold because nothing ever was found, kept, or thrown out."""
    for name, least in (("hits", 20), ("prefix_evictions", 200), ("evictions", 50), ("keeps", 5)):
        assert sum(world.count(name) for world in worlds) > least, name
    shares = [world.limits.adapter_share_pages is not None for world in worlds]
    caps = [world.limits.max_tenant_pages is not None for world in worlds]
    assert 3 < sum(shares) < 17 and 3 < sum(caps) < 17
    assert any(world.pinned for world in worlds) and any(world.wanted for world in worlds)
    wished = [
        load
        for world in worlds
        for plan in world.plans
        for load in plan.loads
        if load.adapter_id not in {asked.adapter_id for asked in world.asked.values()}
    ]
    assert wished


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_planning_changes_nothing_and_says_the_same_twice(seed):
    """A plan that is thrown away, as one made behind a launched step may be, leaves traces."""
    world = make_world(seed, num_requests=16)
    world.caches = True
    world.__post_init__()
    for number, request in enumerate(random_requests(seed, 16, world.num_pages)):
        world.submit(request)
        world.step()
        if number % 4:
            continue
        view, before = world.view(), copy.deepcopy((world.prefixes, world.state.known_ids))
        plan = plan_step(world.state, view, world.limits, world.now_s)
        assert plan_step(world.state, view, world.limits, world.now_s) == plan
        was, known = before
        now = world.prefixes
        assert list(was.leaves()) == list(now.leaves()) and was.stats() == now.stats()
        assert known == world.state.known_ids
        rows = world.state.line.rows()
        assert [was.chain(row) for row in rows] == [now.chain(row) for row in rows]


def test_a_victim_comes_back_behind_its_own_pages():
    """What a victim had computed would be kept and not found again, or computed anew."""
    world = make_world(0, num_requests=4, num_pages=40)
    world.caches = True
    world.__post_init__()
    row = world.submit(make_request(0, num_prompt=40, max_new=9))
    while not world.answers:
        world.step()
    world.preempt(row)
    plan = world.step()
    assert [(hit.row, hit.num_pages) for hit in plan.hits] == [(row, 10)]
    world.run(50)
    assert len(world.answers[0]) == 9
    assert world.state.num_preemptions[row] == 1


def test_one_victim_is_kept_and_another_with_the_same_pages_goes():
    """What is kept of one hung behind a block of the other that went: nothing could be evicted
    before its children, and the engine ended."""
    world = make_world(0, num_requests=4, num_pages=40)
    world.caches = True
    world.__post_init__()
    rows = [world.submit(make_request(i, num_prompt=12, max_new=9)) for i in range(2)]
    for row in rows:
        world.state.enter(row, 0.0)
        world.pool.lease(KvOwner(row), 3)
        run = PlannedRun(row, 0, 12, 0)
        world.prefixes.apply(StepPlan(runs=(run,)))
    world.prefixes.publish(rows[1], 8, 0.0)
    world.prefixes.publish(rows[0], 4, 0.0)  # it has copies: the other one's blocks came first
    theirs = world.prefixes.held(rows[1])
    assert len(theirs) == 2 and not world.prefixes.held(rows[0])
    plan = StepPlan(
        preemptions=(rows[1], rows[0]),
        keeps=(PlannedKeep(rows[0], 3),),
        prefix_evictions=tuple(reversed(theirs)),
    )
    world.prefixes.apply(plan)
    world.pool.apply(plan)
    world.prefixes.audit()
    assert world.pool.num_free == 37 and world.prefixes.num_idle == 3
