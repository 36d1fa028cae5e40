"""Pool, residency and prefix cache together against a model of dicts, after every operation."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorry.server.memory.economy import make_economy
from lorry.server.memory.pool import AdapterOwner
from lorry.server.memory.residency import Arrived, Place, Residency
from lorry.server.scheduling.records import PlannedLoad, StepPlan
from lorry.tests.fakes import FakeLink, make_card
from lorry.tests.memory_law_builders import MemoryWorld, Z, root_of

NUM_PAGES, NUM_ROWS, NAMES = 14, 6, ("base", "a", "b")
CARDS = {name: make_card(name, num_pages=num_pages) for name, num_pages in (("a", 2), ("b", 3))}
# Few ways to go on, so that beginnings are met again.
PROMPTS = st.builds(
    lambda first, rest, tail: [first] * rest + [tail],
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 4 * Z),
    st.integers(0, 1),
)
ROOTS = ("base", "base", *NAMES)
PICK = st.integers(0, NUM_ROWS - 1)


class MemoryLaws(RuleBasedStateMachine):
    """Rows of three contents live, end and are preempted; two adapters come and go beside them."""

    @initialize(eviction=st.sampled_from(["economy", "lru"]))
    def build(self, eviction):
        self.world = MemoryWorld(NUM_PAGES, eviction=eviction)
        self.link = FakeLink()
        economy = make_economy(eviction)
        self.residency = Residency(self.world.pool, self.link, max_slots=2, economy=economy)
        self.world.also_applies = self.residency.apply

    def pick(self, choice: int, *, running: bool) -> int | None:
        rows = self.world.rows(running=running)
        return rows[choice % len(rows)] if rows else None

    @precondition(lambda self: len(self.world.lives) < NUM_ROWS)
    @rule(name=st.sampled_from(ROOTS), ids=PROMPTS, reusable=st.integers(0, 9))
    def submit(self, name, ids, reusable):
        row = min(set(range(NUM_ROWS)).difference(self.world.lives))
        self.world.submit(row, root_of(name), ids, reusable=reusable < 9)

    @precondition(lambda self: self.world.rows(running=False))
    @rule(choice=PICK, num_tokens=st.sampled_from([20, 20, 4, 3]), max_hits=st.sampled_from([9, 0]))
    def enter(self, choice, num_tokens, max_hits):
        row = self.pick(choice, running=False)
        self.world.run(row, num_tokens=num_tokens, max_hits=max_hits)
        if self.world.lives[row].num_computed == len(self.world.lives[row].ids):
            self.world.publish(row)

    @precondition(lambda self: self.world.rows(running=True))
    @rule(choice=PICK, token=st.sampled_from([0, 0, 1]), num_tokens=st.integers(1, 4))
    def go_on(self, choice, token, num_tokens):
        row = self.pick(choice, running=True)
        life = self.world.lives[row]
        if life.num_computed == len(life.ids):
            life.ids.append(token)
        self.world.run(row, num_tokens=num_tokens, max_hits=0)

    @precondition(lambda self: self.world.lives)
    @rule(choice=PICK, running=st.sampled_from([True, True, False]), publishes=st.integers(0, 3))
    def end(self, choice, running, publishes):
        row = self.pick(choice, running=running)
        if row is not None:
            if running and publishes < 3:
                self.world.publish(row)
            self.world.close(row)

    @precondition(lambda self: self.world.rows(running=True))
    @rule(
        victims=st.dictionaries(PICK, st.integers(0, 4), min_size=1, max_size=2),
        taker=PICK,
        expires=st.integers(0, 2),
        evicts=st.booleans(),
    )
    def remove(self, victims, taker, expires, evicts):
        running = self.world.rows(running=True)
        victims = {running[i % len(running)]: keep for i, keep in victims.items()}
        others = [row for row in running if row not in victims]
        taker = others[taker % len(others)] if others else None
        self.world.remove(victims, expires=expires == 2, evicts=evicts, taker=taker)

    @precondition(lambda self: self.world.model.pages)
    @rule(num_pages=st.integers(0, 9), name=st.sampled_from(NAMES))
    def lose(self, num_pages, name):
        """Blocks go for something else, or all of one content for good."""
        if num_pages < 6:
            self.world.evict(num_pages // 2 + 1)
        elif num_pages < 9:
            self.world.shorten()
        else:
            self.world.forget(root_of(name))

    @rule(name=st.sampled_from(NAMES[1:]))
    def load(self, name):
        """An adapter begins its way in, if there is room; blocks go for it if need be."""
        adapter_id, num_pages = self.residency.intern(CARDS[name]), CARDS[name].num_pages
        if self.residency.slot_of(adapter_id) >= 0:
            return
        gone = self.world._evictable(num_pages - self.world.pool.num_free)
        if gone is not None:
            load = PlannedLoad(adapter_id, num_pages)
            self.world.apply(StepPlan(prefix_evictions=tuple(gone), loads=(load,)))

    @precondition(lambda self: self.link.orders)
    @rule(fails=st.integers(0, 3))
    def land(self, fails):
        load_id = min(self.link.orders)
        if fails:
            self.link.finish(load_id)
        else:
            self.link.fail(load_id)
        for news in self.residency.drain(self.link.poll(), self.world.now_s):
            if isinstance(news, Arrived):
                assert self.world.pool.pages_of(AdapterOwner(news.adapter_id)) == news.pages

    @precondition(lambda self: self.residency.stats())
    @rule(name=st.sampled_from(NAMES[1:]), delete=st.integers(0, 9))
    def adapter_leaves(self, name, delete):
        """Evicted by a plan; or deleted, and then nothing computed with it is met again."""
        if delete == 9:
            self.residency.doom(CARDS[name].key)
            self.world.forget(root_of(name))
        placed = [one for one in self.residency.stats() if one.key.name == name]
        if placed and self.residency._entry(placed[0].adapter_id).place is Place.RESIDENT:
            self.world.apply(StepPlan(evictions=(placed[0].adapter_id,)))
        self.residency.take_departed()

    @invariant()
    def adds_up(self):
        self.world.check()
        stats = self.world.pool.stats()
        kv = len(self.world.leased())
        adapter = sum(one.num_pages for one in self.residency.stats())
        assert (stats.num_kv, stats.num_adapter) == (kv, adapter)
        assert stats.num_free + kv + adapter + stats.num_cached == NUM_PAGES

    def teardown(self):
        """When the last row is gone all that is left can be had, and then everything is free."""
        if not hasattr(self, "world"):
            return
        for row in list(self.world.lives):
            self.world.close(row)
        self.world.check()
        self.world.evict(math.inf)
        assert not self.world.prefixes.stats().num_pages
        assert self.world.pool.stats().num_cached == self.world.pool.stats().num_kv == 0
        self.world.prefixes.audit()


MemoryLaws.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
TestMemoryLaws = MemoryLaws.TestCase
