"""The pool: who owns which page of device memory.

Owns the free list, owners and reference counts; page numbers only. A page is held by leases and,
beside them, by the prefix cache: it is free when neither holds it. Does not know tensors, models,
prompts, or which request matters more (scheduling decides). Called by the engine (`apply`), by
residency (`release`) and by the prefix cache (`cache`, `share`, `uncache`, `release`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InternalError
from ..scheduling.records import StepPlan


@dataclass(frozen=True, slots=True)
class KvOwner:
    """The KV cache of the request in this row of the scheduler's table."""

    row: int


@dataclass(frozen=True, slots=True)
class AdapterOwner:
    """The image of one adapter."""

    adapter_id: int  # residency's handle


@dataclass(frozen=True, slots=True)
class CacheOwner:
    """The prefix cache, of a page that no request holds."""


Owner = KvOwner | AdapterOwner
CACHE = CacheOwner()


@dataclass(frozen=True, slots=True)
class PageRun:
    """`count` neighbouring pages of one owner, for the picture of the pool."""

    kind: str  # free, kv, adapter, cached
    count: int
    owner: Owner | CacheOwner | None  # None: free


@dataclass(frozen=True, slots=True)
class PoolStats:
    num_pages: int
    num_free: int
    num_kv: int  # of requests, also where the prefix cache holds them as well
    num_adapter: int
    num_cached: int = 0  # that the prefix cache alone holds


def _nothing(pages: list[int]) -> None:
    del pages


class Pool:
    """Pages are granted as leases to owners; an owner's pages keep the order of their lease.

    `on_free` hears of pages the moment they have no owner any more, before anyone else can
    lease them: the engine's debug mode poisons them there.
    """

    def __init__(self, num_pages: int, *, on_free: Callable[[list[int]], None] = _nothing) -> None:
        self.num_pages = num_pages
        self._on_free = on_free
        # A stack: the page freed last is used first, it is the likeliest to be in a cache.
        self._free = list(range(num_pages - 1, -1, -1))
        # Arrays: a step's block table is made of them, and 64-bit numbers are copied as a block.
        self._leases: dict[Owner, array[int]] = {}
        self._refs = [0] * num_pages  # leases it is in, and the prefix cache
        self._cached: set[int] = set()
        self._num_leased = 0  # pages, ever

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def turnovers(self) -> float:
        """How often as many pages as there are have been handed out: a clock for what grows old."""
        return self._num_leased / max(self.num_pages, 1)

    def can_lease(self, num_pages: int) -> bool:
        return 0 <= num_pages <= len(self._free)

    def lease(self, owner: Owner, num_pages: int) -> list[int]:
        """Grants pages beyond those the owner holds; returns the new ones.

        Raises:
            InternalError: there are not so many; ask `can_lease` first.
        """
        if not self.can_lease(num_pages):
            raise InternalError(f"{owner} wants {num_pages} pages, {len(self._free)} are free")
        pages = [self._free.pop() for _ in range(num_pages)]
        for page in pages:
            self._refs[page] += 1
        if pages:
            self._leases.setdefault(owner, array("q")).extend(pages)
            self._num_leased += num_pages
        return pages

    def release(self, owner: Owner) -> list[int]:
        """Takes back all the owner holds; returns the pages that have become free."""
        pages = self._leases.pop(owner, array("q"))
        for page in pages:
            self._refs[page] -= 1
        freed = [page for page in pages if self._refs[page] == 0]
        self._set_free(freed)
        return freed

    def cache(self, pages: Sequence[int]) -> None:
        """From now on the prefix cache holds these, beside whoever leases them."""
        for page in pages:
            if page in self._cached or not self._refs[page]:
                raise InternalError(f"page {page} is cached already, or nobody's")
            self._cached.add(page)
            self._refs[page] += 1

    def uncache(self, pages: Sequence[int]) -> list[int]:
        """The prefix cache lets go; returns the pages that have become free."""
        for page in pages:
            self._cached.remove(page)
            self._refs[page] -= 1
        freed = [page for page in pages if self._refs[page] == 0]
        self._set_free(freed)
        return freed

    def share(self, owner: KvOwner, pages: Sequence[int]) -> None:
        """Adds cached pages to a lease; whoever reads them may not write them.

        Raises:
            InternalError: one of them is not cached.
        """
        for page in pages:
            if page not in self._cached:
                raise InternalError(f"{owner} wants to share page {page}, which is not cached")
            self._refs[page] += 1
        if pages:
            self._leases.setdefault(owner, array("q")).extend(pages)

    def cached_pages(self) -> set[int]:
        """All that the prefix cache holds, alone or not."""
        return set(self._cached)

    def num_holders(self, page: int) -> int:
        """Leases it is in."""
        return self._refs[page] - (page in self._cached)

    def _set_free(self, freed: list[int]) -> None:
        # Backwards, so that the next lease gets them in their old order: neighbours stay so.
        self._free.extend(reversed(freed))
        if freed:
            self._on_free(freed)

    def pages_of(self, owner: Owner) -> tuple[int, ...]:
        """In the order they were leased; empty for one who holds none."""
        return tuple(self._leases.get(owner, ()))

    def kv_pages(self, row: int) -> array[int]:
        """A copy of a request's pages, in order, as 64-bit numbers: cheap to make a tensor of."""
        return self._leases.get(KvOwner(row), array("q"))[:]

    def apply(self, plan: StepPlan) -> list[int]:
        """Turns the plan's counts into pages; returns those it freed (some may be leased anew).

        Raises:
            InternalError: the plan promised what is not there; nothing has been changed.
        """
        gone: list[Owner] = [KvOwner(row) for row in (*plan.expired, *plan.preemptions)]
        gone += [AdapterOwner(adapter_id) for adapter_id in plan.evictions]
        wanted: list[tuple[Owner, int]] = [
            (AdapterOwner(load.adapter_id), load.num_pages) for load in plan.loads
        ]
        out = {*plan.expired, *plan.preemptions}
        # Most runs of a step stay on the pages they have; one of a row that goes is to be refused.
        wanted += [
            (KvOwner(run.row), run.num_new_pages)
            for run in plan.runs
            if run.num_new_pages or run.row in out
        ]
        self._check(plan, gone, wanted)
        freed = [page for owner in gone for page in self.release(owner)]
        for owner, num_pages in wanted:
            self.lease(owner, num_pages)
        return freed

    def _check(self, plan: StepPlan, gone: list[Owner], wanted: list[tuple[Owner, int]]) -> None:
        for adapter_id in plan.evictions:
            if AdapterOwner(adapter_id) not in self._leases:
                raise InternalError(f"the plan evicts adapter {adapter_id}, which holds no pages")
        for load in plan.loads:
            if AdapterOwner(load.adapter_id) in self._leases:
                raise InternalError(f"the plan loads adapter {load.adapter_id} a second time")
        if len(set(gone)) != len(gone):
            raise InternalError(f"the plan releases an owner twice: {gone}")
        for owner, num_pages in wanted:
            if num_pages < 0 or owner in gone:
                raise InternalError(f"the plan gives {num_pages} pages to {owner}")
        coming = self._num_only_of(gone)
        needed = sum(num_pages for _, num_pages in wanted)
        if needed > len(self._free) + coming:
            raise InternalError(
                f"the plan needs {needed} pages, {len(self._free)} are free and {coming} "
                "will be released"
            )

    def _owners(self) -> list[Owner | CacheOwner | None]:
        """By page; of a page that requests share the first one."""
        owners: list[Owner | CacheOwner | None] = [None] * self.num_pages
        for page in self._cached:
            owners[page] = CACHE
        for owner, pages in reversed(self._leases.items()):
            for page in pages:
                owners[page] = owner
        return owners

    def _num_only_of(self, owners: Sequence[Owner]) -> int:
        """Pages that are free once these have let go."""
        leaving = Counter(page for owner in owners for page in self._leases.get(owner, ()))
        return sum(self._refs[page] == count for page, count in leaving.items())

    def audit(self) -> None:
        """Every page is free, leased or cached, and its count says by how many it is held; only
        requests share pages, and only cached ones.

        Raises:
            InternalError: names the pages that do not add up.
        """
        holders = Counter(page for pages in self._leases.values() for page in pages)
        adapters = Counter(
            page
            for owner, pages in self._leases.items()
            if isinstance(owner, AdapterOwner)
            for page in pages
        )
        free, known = Counter(self._free), range(self.num_pages)
        for page in sorted({*free, *holders, *self._cached}.difference(known)):
            raise InternalError(f"page {page} is not of this pool of {self.num_pages}")
        held = {page: holders[page] + (page in self._cached) for page in known}
        lost = [page for page in known if not held[page] and not free[page]]
        double = [page for page in known if free[page] > (held[page] == 0)]
        double += [page for page in holders if holders[page] > 1 and page not in self._cached]
        double += [page for page in adapters if held.get(page, 1) > 1]
        miscounted = [page for page in known if self._refs[page] != held[page]]
        if lost or double or miscounted:
            raise InternalError(
                f"{self.stats()}: lost pages {lost}, pages with two owners {double}, "
                f"pages with a wrong count {miscounted}"
            )

    def stats(self) -> PoolStats:
        kinds = Counter(_kind(owner) for owner in self._owners())
        return PoolStats(
            self.num_pages, kinds["free"], kinds["kv"], kinds["adapter"], kinds["cached"]
        )

    def page_runs(self) -> tuple[PageRun, ...]:
        """All pages in the order of their numbers, neighbours of one owner together. A page that
        requests share is shown as the first one's.
        """
        runs: list[PageRun] = []
        for owner in self._owners():
            if runs and runs[-1].owner == owner:
                runs[-1] = PageRun(runs[-1].kind, runs[-1].count + 1, owner)
            else:
                runs.append(PageRun(_kind(owner), 1, owner))
        return tuple(runs)


def _kind(owner: Owner | CacheOwner | None) -> str:
    match owner:
        case None:
            return "free"
        case KvOwner():
            return "kv"
        case AdapterOwner():
            return "adapter"
        case CacheOwner():
            return "cached"
