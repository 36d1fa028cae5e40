"""The pool: who owns which page of device memory.

Owns the free list, owners and reference counts; page numbers only.
Does not know tensors, models, or which request matters more (scheduling decides).
Called by the engine (`apply`, `release`) and by residency (`release`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
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


Owner = KvOwner | AdapterOwner


@dataclass(frozen=True, slots=True)
class PageRun:
    """`count` neighbouring pages of one owner, for the picture of the pool."""

    kind: str  # free, kv, adapter
    count: int
    owner: Owner | None  # None: free


@dataclass(frozen=True, slots=True)
class PoolStats:
    num_pages: int
    num_free: int
    num_kv: int
    num_adapter: int


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
        self._refs = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

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
        return pages

    def release(self, owner: Owner) -> list[int]:
        """Takes back all the owner holds; returns the pages that have become free."""
        pages = self._leases.pop(owner, array("q"))
        for page in pages:
            self._refs[page] -= 1
        freed = [page for page in pages if self._refs[page] == 0]
        # Backwards, so that the next lease gets them in their old order: neighbours stay so.
        self._free.extend(reversed(freed))
        if freed:
            self._on_free(freed)
        return freed

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
        coming = sum(len(self._leases.get(owner, ())) for owner in gone)
        needed = sum(num_pages for _, num_pages in wanted)
        if needed > len(self._free) + coming:
            raise InternalError(
                f"the plan needs {needed} pages, {len(self._free)} are free and {coming} "
                "will be released"
            )

    def audit(self) -> None:
        """Free + KV + adapter pages = total, no page with two owners, no negative count.

        Raises:
            InternalError: names the pages that do not add up.
        """
        seen = [0] * self.num_pages
        for page in (*self._free, *(page for pages in self._leases.values() for page in pages)):
            if not 0 <= page < self.num_pages:
                raise InternalError(f"page {page} is not of this pool of {self.num_pages}")
            seen[page] += 1
        lost = [page for page, count in enumerate(seen) if count == 0]
        double = [page for page, count in enumerate(seen) if count > 1]
        free = set(self._free)
        miscounted = [
            page for page, refs in enumerate(self._refs) if refs != (0 if page in free else 1)
        ]
        if lost or double or miscounted:
            raise InternalError(
                f"{self.stats()}: lost pages {lost}, pages with two owners {double}, "
                f"pages with a wrong count {miscounted}"
            )

    def stats(self) -> PoolStats:
        held = {KvOwner: 0, AdapterOwner: 0}
        for owner, pages in self._leases.items():
            held[type(owner)] += len(pages)
        return PoolStats(self.num_pages, len(self._free), held[KvOwner], held[AdapterOwner])

    def page_runs(self) -> tuple[PageRun, ...]:
        """All pages in the order of their numbers, neighbours of one owner together."""
        owners: list[Owner | None] = [None] * self.num_pages
        for owner, pages in self._leases.items():
            for page in pages:
                owners[page] = owner
        runs: list[PageRun] = []
        for owner in owners:
            if runs and runs[-1].owner == owner:
                runs[-1] = PageRun(runs[-1].kind, runs[-1].count + 1, owner)
            else:
                runs.append(PageRun(_kind(owner), 1, owner))
        return tuple(runs)


def _kind(owner: Owner | None) -> str:
    if owner is None:
        return "free"
    return "kv" if isinstance(owner, KvOwner) else "adapter"
