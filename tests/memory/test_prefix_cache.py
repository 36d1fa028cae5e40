"""The prefix cache's promises one by one; all of them together are in test_memory_laws.py."""

from collections.abc import Sequence

import numpy as np
import pytest

from lorry.server.errors import InternalError
from lorry.server.memory.pool import AdapterOwner, KvOwner, Pool
from lorry.server.memory.prefix_cache import PrefixCache
from lorry.server.memory.prefix_hash import block_hash, prefix_root
from lorry.server.scheduling.records import PlannedHit, PlannedRun, StepPlan
from lorry.tests.memory_law_builders import Z, make_prefixes, root_of

IDS = list(range(7))  # three full pages of Z = 2, and a token


def make_world(num_pages: int = 12, **kwargs) -> tuple[Pool, PrefixCache]:
    pool = Pool(num_pages)
    return pool, make_prefixes(pool, **kwargs)


def apply(pool: Pool, prefixes: PrefixCache, plan: StepPlan) -> None:
    prefixes.apply(plan)
    pool.apply(plan)


def compute(
    pool: Pool,
    prefixes: PrefixCache,
    row: int,
    *,
    ids: Sequence[int] = IDS,
    root: bytes = root_of("a"),
    tenant: str = "t",
    num_hits: int = 0,
) -> None:
    """A row comes in and computes all it knows; nothing is published."""
    known = list(ids)
    prefixes.open(row, root, known, tenant=tenant)
    num_pages = -(-len(known) // Z)
    run = PlannedRun(row, num_hits * Z, len(known) - num_hits * Z, num_pages - num_hits)
    hits = (PlannedHit(row, num_hits),) if num_hits else ()
    apply(pool, prefixes, StepPlan(hits=hits, runs=(run,)))


def end(pool: Pool, prefixes: PrefixCache, row: int) -> None:
    prefixes.close(row)
    pool.release(KvOwner(row))
    pool.audit()
    prefixes.audit()


def num_hits(prefixes: PrefixCache, ids: Sequence[int], *, root: bytes = root_of("a")) -> int:
    """What a newcomer would find."""
    prefixes.open(99, root, list(ids), tenant="t")
    hits = prefixes.hit_pages(np.array([99]))
    prefixes.close(99)
    return int(hits[0])


def test_a_token_is_always_left_to_compute():
    """A prompt that is cached whole would have no logits, and so no first token."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0, ids=range(8))
    prefixes.publish(0, 8, 1.0)
    found = [num_hits(prefixes, range(count)) for count in range(1, 10)]
    assert found == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_a_page_is_met_again_only_when_it_is_wholly_computed():
    """The rest of a page that was not yet computed would be read as it was found."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, 5, 1.0)
    assert num_hits(prefixes, [*IDS, 9, 9]) == 2


def test_one_beginning_is_another_under_another_content_tenant_or_model():
    """A reload under the same name, or a neighbour, would meet KV that is not its own."""
    roots = [
        prefix_root(scope=scope, content=content, model=model)
        for scope, content, model in [
            ("t", "hash-1", "m"),
            ("t", "hash-2", "m"),
            ("u", "hash-1", "m"),
            ("t", "hash-1", "n"),
            ("th", "ash-1", "m"),
        ]
    ]
    pool, prefixes = make_world()
    compute(pool, prefixes, 0, root=roots[0])
    prefixes.publish(0, len(IDS), 1.0)
    assert [num_hits(prefixes, IDS, root=root) for root in roots] == [3, 0, 0, 0, 0]


def test_a_page_depends_on_all_before_it():
    """The same tokens behind another beginning have other KV."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0, ids=[1, 2, 3, 4, 5])
    prefixes.publish(0, 5, 1.0)
    assert num_hits(prefixes, [3, 4, 3, 4, 5]) == num_hits(prefixes, [9, 9, 3, 4, 5]) == 0
    assert block_hash(b"", [1, 256]) != block_hash(b"", [256, 1])


def test_deleted_content_is_gone_with_its_last_reader():
    """Pages of a deleted adapter would stay for as long as nobody needs room."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 1.0)
    compute(pool, prefixes, 1, ids=[*IDS, 7], num_hits=3)
    compute(pool, prefixes, 2, root=root_of("b"))
    end(pool, prefixes, 2)
    prefixes.forget(root_of("a"))
    prefixes.audit()
    end(pool, prefixes, 0)
    assert pool.stats().num_kv == 4, "row 1 reads on"
    end(pool, prefixes, 1)
    assert pool.num_free == pool.num_pages
    assert prefixes.stats().num_pages == 0


def test_a_row_of_deleted_content_leaves_nothing_behind():
    """Its pages would be found by whoever uploads the same adapter again, or never be free."""
    pool, prefixes = make_world()
    for row in (0, 1):  # both compute the same pages: those of row 1 wait for its end
        compute(pool, prefixes, row)
        prefixes.publish(row, len(IDS), 1.0)
    prefixes.forget(root_of("a"))
    prefixes.publish(1, len(IDS), 2.0)
    end(pool, prefixes, 0)
    end(pool, prefixes, 1)
    assert pool.num_free == pool.num_pages
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 3.0)
    assert num_hits(prefixes, IDS) == 3, "opened anew, it is cached as ever"


def test_what_two_compute_at_once_goes_on_from_one_of_them():
    """The second turn of a talk would find nothing, where its first had company."""
    pool, prefixes = make_world(20)
    compute(pool, prefixes, 0)
    compute(pool, prefixes, 1, ids=[*IDS, 7, 8, 9])
    prefixes.publish(0, len(IDS), 1.0)
    prefixes.publish(1, len(IDS), 1.0)
    assert (len(prefixes.held(0)), len(prefixes.held(1))) == (3, 0)
    prefixes.publish(1, 10, 2.0)
    end(pool, prefixes, 1)
    assert num_hits(prefixes, [*IDS, 7, 8, 9, 10]) == 5
    assert prefixes.num_idle == 2
    assert pool.num_free == 20 - 4 - 2


def test_time_ago_counts_from_the_end_of_a_request():
    """Under `lru` a long answer's prompt would go before one that was used and left earlier."""
    pool, prefixes = make_world(20, eviction="lru")
    compute(pool, prefixes, 0, ids=[1, 2, 3])
    prefixes.publish(0, 3, 1.0)
    compute(pool, prefixes, 1, ids=[4, 5, 6])
    prefixes.publish(1, 3, 2.0)
    first, second = prefixes.held(0)[0], prefixes.held(1)[0]
    end(pool, prefixes, 1)
    prefixes.publish(0, 3, 9.0)
    end(pool, prefixes, 0)
    assert [block.block_id for block in prefixes.leaves()] == [second, first]


def test_hits_are_counted_when_a_request_first_runs():
    """A preempted row that finds its own pages would look like a prefix that was shared."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 1.0)
    compute(pool, prefixes, 1, num_hits=3)
    before = prefixes.stats()
    assert (before.lookup_tokens, before.hit_tokens) == (14, 6)
    known = prefixes._rows[1].known_ids
    apply(pool, prefixes, StepPlan(preemptions=(1,)))
    prefixes.open(1, root_of("a"), known, tenant="t")
    again = StepPlan(hits=(PlannedHit(1, 3),), runs=(PlannedRun(1, 6, 1, 1),))
    apply(pool, prefixes, again)
    assert (prefixes.stats().lookup_tokens, prefixes.stats().hit_tokens) == (14, 6)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (StepPlan(prefix_evictions=(0,)), "evicts block 0, which is not idle"),
        (StepPlan(prefix_evictions=(11,)), "evicts block 11, which is not idle"),
        (StepPlan(hits=(PlannedHit(1, 4),)), "behind 4 pages; 3 are cached"),
        (StepPlan(hits=(PlannedHit(0, 0),)), "it holds 4"),
        (StepPlan(preemptions=(7,)), "row 7 was never opened"),
    ],
    ids=["held", "nothing", "too-far", "running", "unknown"],
)
def test_a_plan_that_lies_is_refused(plan: StepPlan, words: str):
    """It would take pages from under a request."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 1.0)
    prefixes.open(1, root_of("a"), list(IDS), tenant="t")
    with pytest.raises(InternalError, match=words):
        prefixes.apply(plan)


def test_switched_off_it_sees_nothing_and_costs_nothing():
    """`--no-prefix-cache` would leave the engine without a cache to ask."""
    pool, prefixes = make_world(enabled=False)
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 1.0)
    assert num_hits(prefixes, IDS) == prefixes.num_idle == 0
    assert list(prefixes.leaves()) == list(prefixes.held(0)) == list(prefixes.chain(0)) == []
    prefixes.forget(root_of("a"))
    end(pool, prefixes, 0)
    assert pool.num_free == pool.num_pages


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool, prefixes: pool.cache(pool.lease(AdapterOwner(5), 1)),
        lambda pool, prefixes: pool.share(KvOwner(3), [prefixes.held(0)[0]]),
        lambda pool, prefixes: prefixes._blocks._leaves.pop(),
        lambda pool, prefixes: prefixes._rows[0].held.pop(),
        lambda pool, prefixes: prefixes._line._num_hits.__setitem__(1, 1),
    ],
    ids=["cached", "leased", "leaf", "held", "hits"],
)
def test_the_audit_sees_each_kind_of_damage(damage):
    """A bug would first be seen as somebody else's answer."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, len(IDS), 1.0)
    compute(pool, prefixes, 2, root=root_of("b"))
    prefixes.publish(2, len(IDS), 1.0)
    end(pool, prefixes, 2)
    prefixes.open(1, root_of("a"), list(IDS), tenant="t")
    prefixes.audit()
    damage(pool, prefixes)
    with pytest.raises(InternalError):
        prefixes.audit()


def test_a_row_that_finds_nothing_hides_nobody_elses_hits():
    """One prompt that is to be told, in a row the line had not met, made everyone's hits zero."""
    pool, prefixes = make_world()
    compute(pool, prefixes, 0)
    prefixes.publish(0, 7, 1.0)
    prefixes.open(1, root_of("a"), IDS, tenant="t")
    prefixes.open(5000, root_of("a"), IDS, tenant="t", reusable=False)
    assert prefixes.hit_pages(np.array([5000, 1])).tolist() == [0, 3]
