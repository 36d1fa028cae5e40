"""The pool against a dict, and its refusals."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lorry.server.errors import InternalError
from lorry.server.memory.pool import AdapterOwner, KvOwner, PageRun, Pool, PoolStats
from lorry.server.scheduling.records import StepPlan
from lorry.tests.memory_builders import load_plan, run_plan

NUM_PAGES = 12
OWNERS = st.one_of(
    st.builds(KvOwner, st.integers(0, 3)), st.builds(AdapterOwner, st.integers(0, 3))
)


class PoolAgainstDict(RuleBasedStateMachine):
    """The model knows how many pages each owner holds, and which pages were freed last."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []
        self.pool = Pool(NUM_PAGES, on_free=self.heard.extend)
        self.pages: dict[object, list[int]] = {}

    @property
    def num_free(self) -> int:
        return NUM_PAGES - sum(len(pages) for pages in self.pages.values())

    @rule(owner=OWNERS, num_pages=st.integers(0, 5))
    def lease(self, owner, num_pages):
        assert self.pool.can_lease(num_pages) == (num_pages <= self.num_free)
        if num_pages > self.num_free:
            with pytest.raises(InternalError, match=f"wants {num_pages} pages"):
                self.pool.lease(owner, num_pages)
            return
        new = self.pool.lease(owner, num_pages)
        assert len(new) == num_pages
        self.pages.setdefault(owner, []).extend(new)

    @rule(owner=OWNERS)
    def release(self, owner):
        self.heard.clear()
        freed = self.pool.release(owner)
        assert freed == self.pages.pop(owner, []) == self.heard

    @rule(
        gone=st.sets(st.integers(0, 3), max_size=2),
        grows=st.dictionaries(st.integers(0, 3), st.integers(0, 4), max_size=3),
    )
    def apply(self, gone, grows):
        grows = {row: count for row, count in grows.items() if row not in gone}
        coming = sum(len(self.pages.get(KvOwner(row), [])) for row in gone)
        before = {owner: list(pages) for owner, pages in self.pages.items()}
        plan = run_plan(*grows.items(), preempt=sorted(gone))
        if sum(grows.values()) > self.num_free + coming:
            with pytest.raises(InternalError, match="the plan needs"):
                self.pool.apply(plan)
            assert all(self.pool.pages_of(owner) == tuple(p) for owner, p in before.items())
            return
        freed = self.pool.apply(plan)
        assert len(freed) == coming
        for row in gone:
            self.pages.pop(KvOwner(row), None)
        for row, count in grows.items():
            held = self.pool.pages_of(KvOwner(row))
            old = before.get(KvOwner(row), [])
            assert held[: len(old)] == tuple(old), "a request's old pages stay where they are"
            assert len(held) == len(old) + count
            self.pages[KvOwner(row)] = list(held)

    @invariant()
    def adds_up(self):
        self.pool.audit()
        kv = sum(len(pages) for owner, pages in self.pages.items() if isinstance(owner, KvOwner))
        adapter = NUM_PAGES - self.num_free - kv
        assert self.pool.stats() == PoolStats(NUM_PAGES, self.num_free, kv, adapter)
        seen = [run.owner for run in self.pool.page_runs() for _ in range(run.count)]
        assert len(seen) == NUM_PAGES
        for owner, pages in self.pages.items():
            assert self.pool.pages_of(owner) == tuple(pages)
            assert [page for page in range(NUM_PAGES) if seen[page] == owner] == sorted(pages)


PoolAgainstDict.TestCase.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, derandomize=True
)
TestPoolAgainstDict = PoolAgainstDict.TestCase


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (load_plan(evict=[5]), "evicts adapter 5, which holds no pages"),
        (load_plan((1, 2)), "loads adapter 1 a second time"),
        (run_plan((0, -1)), "gives -1 pages"),
        (run_plan((0, 1), preempt=[0]), "gives 1 pages"),
        (run_plan(expire=[0], preempt=[0]), "releases an owner twice"),
        (run_plan((3, 9)), r"needs 9 pages, 4 are free and 0 will be released"),
    ],
    ids=["evict", "load", "negative", "preempted", "twice", "too-many"],
)
def test_a_plan_that_lies_is_refused_whole(plan: StepPlan, words: str):
    """Half an applied plan would leave pages that belong to nobody."""
    pool = Pool(8)
    pool.lease(KvOwner(0), 2)
    pool.lease(AdapterOwner(1), 2)
    with pytest.raises(InternalError, match=words):
        pool.apply(plan)
    assert pool.stats() == PoolStats(8, 4, 2, 2)
    pool.audit()


def test_evictions_make_room_for_loads_of_the_same_plan():
    """A plan that trades one adapter for another would be refused in a full pool."""
    pool = Pool(4)
    pool.apply(load_plan((1, 4)))
    freed = pool.apply(load_plan((2, 3), evict=[1]))
    assert sorted(freed) == [0, 1, 2, 3]
    assert len(pool.pages_of(AdapterOwner(2))) == 3


def test_the_picture_joins_neighbours_of_one_owner():
    """The picture of the pool would be a list of single pages, or mix owners."""
    pool = Pool(8)
    pool.lease(KvOwner(1), 2)
    pool.lease(AdapterOwner(1), 3)
    pool.lease(KvOwner(2), 1)
    assert pool.page_runs() == (
        PageRun("kv", 2, KvOwner(1)),
        PageRun("adapter", 3, AdapterOwner(1)),
        PageRun("kv", 1, KvOwner(2)),
        PageRun("free", 2, None),
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda pool: pool._free.pop(), r"lost pages \[5\]"),
        (lambda pool: pool._free.append(0), r"two owners \[0\]"),
        (lambda pool: pool._leases[KvOwner(1)].append(0), r"two owners \[0\]"),
        (lambda pool: pool._refs.__setitem__(2, -1), r"wrong count \[2\]"),
        (lambda pool: pool._free.append(99), "page 99 is not of this pool"),
    ],
    ids=["lost", "freed-in-use", "shared", "count", "foreign"],
)
def test_the_audit_sees_each_kind_of_damage(damage, words):
    """A bug in the allocator would first be seen as a wrong answer."""
    pool = Pool(8)
    pool.lease(KvOwner(0), 1)
    pool.lease(KvOwner(1), 4)
    damage(pool)
    with pytest.raises(InternalError, match=words):
        pool.audit()


def test_kv_pages_are_a_copy() -> None:
    """A step's rows keep them while the next lease makes the request's own list longer."""
    pool = Pool(8)
    first = pool.lease(KvOwner(1), 2)
    pages = pool.kv_pages(1)
    second = pool.lease(KvOwner(1), 1)
    assert pages.typecode == "q"
    assert pages.tolist() == first
    assert pool.kv_pages(1).tolist() == first + second
    assert pool.kv_pages(2).tolist() == []


def test_a_shared_page_is_free_when_the_last_has_let_go():
    """The second reader of a page would find it given away; or nobody ever got it back."""
    heard: list[int] = []
    pool = Pool(8, on_free=heard.extend)
    pages = pool.lease(KvOwner(0), 2)
    pool.cache(pages[:1])
    pool.share(KvOwner(1), pages[:1])
    assert pool.stats() == PoolStats(8, 6, 2, 0, 0)
    assert pool.release(KvOwner(0)) == [pages[1]]
    assert pool.release(KvOwner(1)) == []
    assert pool.stats() == PoolStats(8, 7, 0, 0, 1)
    assert [run.kind for run in pool.page_runs()] == ["cached", "free"]
    assert pool.uncache(pages[:1]) == [pages[0]]
    assert heard == [pages[1], pages[0]]
    pool.audit()


def test_a_plan_counts_shared_pages_once_all_who_hold_them_go():
    """A plan that preempts two readers of a page would be refused, or be given it twice."""
    pool = Pool(4)
    pages = pool.lease(KvOwner(0), 3)
    pool.cache(pages[:2])
    pool.share(KvOwner(1), pages[:2])
    pool.uncache(pages[:2])
    with pytest.raises(InternalError, match="needs 3 pages"):
        pool.apply(run_plan((2, 3), preempt=[0]))
    assert sorted(pool.apply(run_plan((2, 4), preempt=[0, 1]))) == pages
    pool.audit()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda pool: pool.cache([0]), "page 0 is cached already"),
        (lambda pool: pool.cache([7]), "nobody's"),
        (lambda pool: pool.share(KvOwner(1), [1]), "page 1, which is not cached"),
    ],
    ids=["twice", "free", "private"],
)
def test_only_what_is_computed_and_cached_is_shared(act, words):
    """A page that its owner still writes would be read by another."""
    pool = Pool(8)
    pool.lease(KvOwner(0), 2)
    pool.cache([0])
    with pytest.raises(InternalError, match=words):
        act(pool)


def test_the_audit_sees_an_adapter_that_shares_a_page():
    """KV would be written over its weights."""
    pool = Pool(8)
    pages = pool.lease(AdapterOwner(0), 1)
    pool.cache(pages)
    pool.share(KvOwner(1), pages)
    with pytest.raises(InternalError, match=r"two owners \[0\]"):
        pool.audit()
