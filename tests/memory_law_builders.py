"""Pool, residency and prefix cache as the engine joins them, beside a reference made of dicts.

`MemoryWorld` lets rows live: its methods are the operations of a life, its `check` compares all
that can be asked with the reference and with what lies in each page. Used by the property tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from lorry.server.memory.economy import make_economy
from lorry.server.memory.pool import KvOwner, Pool
from lorry.server.memory.prefix_cache import PrefixCache
from lorry.server.memory.prefix_hash import prefix_root
from lorry.server.scheduling.records import PlannedHit, PlannedKeep, PlannedRun, StepPlan

Z = 2  # tokens per page
Beginning = tuple[bytes, tuple[int, ...]]  # root, tokens up to the end of a page


def make_prefixes(pool: Pool, *, tokens_per_page: int = Z, eviction: str = "economy", **kwargs):
    """Costs grow with the place, as attention's do."""
    return PrefixCache(
        pool,
        make_economy(eviction),
        tokens_per_page=tokens_per_page,
        page_cost=lambda start: 1e-3 + 1e-5 * start,
        **kwargs,
    )


def root_of(name: str) -> bytes:
    return prefix_root(scope="", content=name, model="m")


@dataclass(eq=False)
class Life:
    """One request in a row."""

    root: bytes
    ids: list[int]
    reusable: bool = True
    dead: bool = False  # its root is forgotten: it publishes nothing
    running: bool = False
    num_computed: int = 0
    num_held: int = 0  # its first pages that are cached, and that it holds
    num_sound: int = 0  # its first pages that it has published

    def beginning(self, num_pages: int) -> Beginning:
        return self.root, tuple(self.ids[: num_pages * Z])


class CacheModel:
    """The reference: which beginnings are cached, and in which page the last tokens of each lie."""

    def __init__(self) -> None:
        self.pages: dict[Beginning, int] = {}

    def publish(self, life: Life, num_pages: int, pages: Sequence[int]) -> None:
        """What goes on from another row's page waits until the row leaves."""
        if life.dead:
            return
        life.num_sound = max(life.num_sound, num_pages)
        while life.num_held < life.num_sound:
            one = life.beginning(life.num_held + 1)
            if one in self.pages:
                break
            self.pages[one] = pages[life.num_held]
            life.num_held += 1

    def leave(self, life: Life, pages: Sequence[int]) -> None:
        for num_pages in range(life.num_held + 1, life.num_sound + 1):
            self.pages.setdefault(life.beginning(num_pages), pages[num_pages - 1])
        life.num_held = life.num_sound = 0

    def chain(self, root: bytes, ids: list[int]) -> list[int]:
        found: list[int] = []
        for stop in range(Z, len(ids), Z):  # a token is left to compute
            if (root, tuple(ids[:stop])) not in self.pages:
                break
            found.append(self.pages[root, tuple(ids[:stop])])
        return found

    def parent(self, one: Beginning) -> Beginning:
        return one[0], one[1][:-Z]

    def evict(self, page: int) -> None:
        gone = next(one for one, held in self.pages.items() if held == page)
        del self.pages[gone]
        assert gone not in map(self.parent, self.pages), "children go first"

    def forget(self, root: bytes) -> None:
        self.pages = {one: page for one, page in self.pages.items() if one[0] != root}


@dataclass
class PageStore:
    """What lies in each page: the tokens before each place and its own, or nothing."""

    cells: dict[int, dict[int, Beginning]] = field(default_factory=dict)  # page -> place in it

    def poison(self, pages: Collection[int]) -> None:
        for page in pages:
            self.cells.pop(page, None)

    def write(self, life: Life, pages: tuple[int, ...], start: int, stop: int) -> None:
        for place in range(start, stop):
            if place % Z == 0:
                self.cells[pages[place // Z]] = {}
            content = (life.root, tuple(life.ids[: place + 1]))
            self.cells[pages[place // Z]][place % Z] = content

    def check(self, life: Life, pages: tuple[int, ...]) -> None:
        for place in range(life.num_computed):
            cell = self.cells.get(pages[place // Z], {}).get(place % Z)
            assert cell == (life.root, tuple(life.ids[: place + 1])), f"place {place} holds {cell}"


class MemoryWorld:
    def __init__(self, num_pages: int, *, eviction: str = "economy") -> None:
        self.store, self.model = PageStore(), CacheModel()
        self.pool = Pool(num_pages, on_free=self.store.poison)
        self.prefixes = make_prefixes(self.pool, eviction=eviction)
        self.lives: dict[int, Life] = {}
        self.now_s = 1.0
        self.seen: SimpleNamespace = SimpleNamespace(hits=0, kept=0, evicted=0, preempted=0)
        # What else goes with each plan: residency takes part where a test has one.
        self.also_applies: Callable[[StepPlan], object] = lambda plan: None

    # Asking

    def rows(self, *, running: bool) -> list[int]:
        return [row for row, life in self.lives.items() if life.running == running]

    def pages(self, row: int) -> tuple[int, ...]:
        return self.pool.pages_of(KvOwner(row))

    def leased(self) -> set[int]:
        """Pages of rows."""
        return {page for row in self.lives for page in self.pages(row)}

    # The life of a row

    def submit(self, row: int, root: bytes, ids: list[int], *, reusable: bool = True) -> None:
        self.lives[row] = Life(root, ids, reusable)
        self.open(row)

    def open(self, row: int) -> None:
        life = self.lives[row]
        tenant = life.root.hex()[:1]
        self.prefixes.open(row, life.root, life.ids, tenant=tenant, reusable=life.reusable)

    def run(self, row: int, *, num_tokens: int, max_hits: int) -> bool:
        """It computes up to so many tokens, after as many idle blocks as needed have gone.

        False: they do not suffice.
        """
        life = self.lives[row]
        hits = () if life.running else self.prefixes.chain(row)[:max_hits]
        start = life.num_computed or len(hits) * Z
        num_tokens = min(num_tokens, len(life.ids) - start)
        num_held = len(self.pages(row)) + len(hits)
        num_new = max(0, -(-(start + num_tokens) // Z) - num_held)
        gone = self._evictable(num_new - self.pool.num_free, spared=hits)
        if num_tokens < 1 or gone is None:
            return False
        self.apply(
            StepPlan(
                now_s=self.now_s,
                prefix_evictions=tuple(gone),
                hits=(PlannedHit(row, len(hits)),) if hits else (),
                runs=(PlannedRun(row, start, num_tokens, num_new),),
            )
        )
        if hits:
            life.num_computed, life.num_held, life.num_sound = start, len(hits), len(hits)
            self.store.check(life, self.pages(row))
        self.seen.hits += len(hits)
        life.running = True
        self.store.write(life, self.pages(row), start, start + num_tokens)
        life.num_computed = start + num_tokens
        return True

    def _evictable(self, num_pages: int, *, spared: Collection[int] = ()) -> list[int] | None:
        """The first so many idle blocks, without these and those they go on from."""
        kept = set(spared)
        gone: list[int] = []
        for block in self.prefixes.leaves():
            if len(gone) >= num_pages:
                break
            if block.block_id in kept:
                kept.add(block.parent_id)
            else:
                gone.append(block.block_id)
        return gone if len(gone) >= num_pages else None

    def evict(self, num_pages: int) -> None:
        loose = len(list(self.prefixes.leaves()))
        gone = self._evictable(min(num_pages, loose))
        assert gone is not None
        self.apply(StepPlan(now_s=self.now_s, prefix_evictions=tuple(gone)))

    def shorten(self) -> None:
        """Blocks go that waiting rows would have begun behind, from the tails of their chains."""
        inner = set(map(self.model.parent, self.model.pages))
        tails = {tuple(self.prefixes.chain(row))[-1:] for row in self.lives}
        ends = [page for one, page in self.model.pages.items() if one not in inner]
        gone = [page for page in ends if (page,) in tails and self.prefixes.is_idle(page)]
        self.apply(StepPlan(now_s=self.now_s, prefix_evictions=tuple(gone)))

    def remove(
        self, victims: dict[int, int], *, expires: bool, evicts: bool, taker: int | None
    ) -> None:
        """`victims`: row -> pages to keep; they are preempted, or their deadlines have passed.
        `evicts`: what they hold, and nobody else, goes with them. `taker`: a running row that gets
        all the pages that a planner would count on.
        """
        keeps = {row: 0 if expires else min(k, self._num_full(row)) for row, k in victims.items()}
        counted = self.pool.num_free
        for row, keep in keeps.items():
            counted += len(self.pages(row)) - max(keep, len(self.prefixes.held(row)))
            self.seen.kept += keep
            life = self.lives[row]
            if not life.dead:
                life.num_sound = keep
                self.model.leave(life, self.pages(row))
            life.num_held = life.num_sound = 0
        gone = self._go_with(keeps) if evicts else []
        runs = () if taker is None else (PlannedRun(taker, 0, 1, counted + len(gone)),)
        self.apply(
            StepPlan(
                now_s=self.now_s,
                expired=tuple(keeps) if expires else (),
                preemptions=() if expires else tuple(keeps),
                keeps=tuple(PlannedKeep(row, keep) for row, keep in keeps.items() if keep),
                prefix_evictions=tuple(gone),
                runs=runs,
            )
        )
        self.seen.preempted += len(keeps)
        for row in keeps:
            life = self.lives[row]
            life.running, life.num_computed = False, 0
            if expires:
                self.close(row)
            else:
                self.open(row)

    def _num_full(self, row: int) -> int:
        return min(self.lives[row].num_computed, len(self.lives[row].ids)) // Z

    def _go_with(self, keeps: dict[int, int]) -> list[int]:
        """Blocks held by these rows alone, from which nothing goes on but such blocks; without
        what is kept. As a planner finds them, and forgotten ones among them.
        """
        gone: list[int] = []
        released = Counter(page for row in keeps for page in self.prefixes.held(row))
        for row, keep in keeps.items():
            for page in reversed(self.prefixes.held(row)[keep:]):
                left = {one for one in self.model.pages if self.model.pages[one] not in gone}
                inner = map(self.model.parent, left)
                has_children = any(self.model.pages.get(one) == page for one in inner)
                if has_children or self.prefixes.num_holders(page) != released[page]:
                    break
                if page in gone:
                    break
                gone.append(page)
        return gone

    def publish(self, row: int) -> None:
        life = self.lives[row]
        self.model.publish(life, self._num_full(row), self.pages(row))
        self.prefixes.publish(row, life.num_computed, self.now_s)

    def close(self, row: int) -> None:
        self.model.leave(self.lives[row], self.pages(row))
        self.prefixes.close(row)
        self.pool.release(KvOwner(row))
        del self.lives[row]

    def forget(self, root: bytes) -> None:
        self.model.forget(root)
        self.prefixes.forget(root)
        for life in self.lives.values():
            if life.root == root:
                life.dead, life.num_sound = True, life.num_held

    def apply(self, plan: StepPlan) -> None:
        self.now_s += 1.0
        for page in plan.prefix_evictions:
            if page in self.model.pages.values():
                self.model.evict(page)
        self.seen.evicted += len(plan.prefix_evictions)
        self.prefixes.apply(plan)
        self.pool.apply(plan)
        self.also_applies(plan)

    # Laws

    def check(self) -> None:
        self.pool.audit()
        self.prefixes.audit()
        self._check_waiting()
        self._check_idle()
        for row in self.rows(running=True):
            self.store.check(self.lives[row], self.pages(row))
        for page, (root, ids) in ((page, key) for key, page in self.model.pages.items()):
            cells = [(root, ids[: len(ids) - Z + 1 + place]) for place in range(Z)]
            assert [self.store.cells[page][place] for place in range(Z)] == cells
        assert not self.store.cells.keys() & set(self.pool._free), "a free page is not poisoned"

    def _check_waiting(self) -> None:
        waiting = self.rows(running=False)
        hits = self.prefixes.hit_pages(np.array(waiting, np.int64))
        ends: dict[int, list[int]] = {}
        for row, num_hits in zip(waiting, hits.tolist(), strict=True):
            life = self.lives[row]
            blocked = life.dead or not life.reusable
            chain = [] if blocked else self.model.chain(life.root, life.ids)
            assert list(self.prefixes.chain(row)) == chain
            assert num_hits == len(chain)
            if chain:
                ends.setdefault(chain[-1], []).append(row)
        for page in self.model.pages.values():
            assert list(self.prefixes.waiters(page)) == sorted(ends.get(page, []))

    def _check_idle(self) -> None:
        holders = Counter[int]()
        for row, life in self.lives.items():
            held = self.pages(row)[: life.num_held]
            assert tuple(self.prefixes.held(row)) == held
            holders.update(held)
        pages = set(self.model.pages.values())
        idle = pages.difference(holders)
        assert self.prefixes.num_idle == len(idle)
        for page in pages | holders.keys():
            assert self.prefixes.num_holders(page) == holders[page]
            assert self.prefixes.is_idle(page) == (page in idle)
        stats = self.prefixes.stats()
        assert stats.num_pages == len(pages | holders.keys())
        assert sum(counts.idle for _, counts in stats.tenants) == len(idle)
        waiting = {page for row in self.lives for page in self.prefixes.chain(row)}
        given = list(self.prefixes.leaves())
        worths = {block.block_id: block.worth for block in given}
        assert worths.keys() == idle - waiting
        assert [block.block_id for block in given] == list(self._order(worths))

    def _order(self, worths: dict[int, float]) -> Iterator[int]:
        """The order said slowly: of those from which nothing goes on the smallest, again."""
        left = dict(self.model.pages)
        for _ in range(len(worths)):
            inner = {self.model.parent(one) for one in left}
            free = [page for one, page in left.items() if one not in inner and page in worths]
            page = min(free, key=lambda page: (worths[page], page))
            left = {one: held for one, held in left.items() if held != page}
            yield page
