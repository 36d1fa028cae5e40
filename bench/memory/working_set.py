"""The working set of a workload: how much a memory that knew the future would hold.

Pure. At an instant it is what was used before and will be used again: images of adapters, and full
pages of KV at the head of prompts, which belong to one adapter. Of a workload, the most at any
instant. Live KV is not in it: that is needed once, and by the request alone. Called by
simulated.py and live.py, which give the pool half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from ..workload.records import BASE, Workload, WorkloadRequest

POOL_SHARE = 0.5  # of the working set, in the study


@dataclass(frozen=True, slots=True)
class WorkingSet:
    pages: int  # the most at any instant
    adapter_pages: int  # of those, at that instant
    prefix_pages: int

    @property
    def pool_pages(self) -> int:
        """What the study gives the pool."""
        return round(self.pages * POOL_SHARE)


@dataclass(slots=True)
class _Life:
    pages: int
    is_adapter: bool
    first: int  # request that used it first, and last
    last: int


def working_set(
    workload: Workload, *, adapter_pages: Callable[[str], int], tokens_per_page: int
) -> WorkingSet:
    """`adapter_pages`: of the image of the adapter of this name."""
    lives: dict[Hashable, _Life] = {}
    heads: dict[Hashable, int] = {}  # a number for each beginning of a prompt
    for index, request in enumerate(workload.requests):
        used: list[tuple[Hashable, int]] = []
        if request.adapter != BASE:
            used.append((request.adapter, adapter_pages(request.adapter)))
        used += [(block, 1) for block in _blocks(request, tokens_per_page, heads)]
        for what, pages in used:
            life = lives.setdefault(what, _Life(pages, isinstance(what, str), index, index))
            life.last = index
    return _most(list(lives.values()), len(workload.requests))


def _blocks(
    request: WorkloadRequest, size: int, heads: dict[Hashable, int]
) -> Iterator[tuple[int, ...]]:
    """A name for each full page of the prompt: equal names, equal tokens up to its end.

    A piece's tokens depend on its seed and their place in it, so a stretch of it stands for them.
    """
    head = heads.setdefault(request.adapter, len(heads))
    page: list[tuple[int, int, int]] = []  # (seed, from, to) of the pieces it is made of
    room = size
    for piece in request.prompt:
        start = 0
        while start < piece.num_tokens:
            taken = min(room, piece.num_tokens - start)
            page.append((piece.seed, start, start + taken))
            start, room = start + taken, room - taken
            if not room:
                head = heads.setdefault((head, *page), len(heads))
                yield (head,)
                page, room = [], size


def _most(lives: list[_Life], num_requests: int) -> WorkingSet:
    """Over the instants between two requests: held from the first use up to the last."""
    change = [[0, 0] for _ in range(num_requests + 1)]  # [prefixes, adapters]
    for life in lives:
        change[life.first][life.is_adapter] += life.pages
        change[life.last][life.is_adapter] -= life.pages
    held, most = [0, 0], (0, 0)
    for prefixes, adapters in change:
        held[0] += prefixes
        held[1] += adapters
        most = max(most, (held[0], held[1]), key=sum)
    return WorkingSet(sum(most), adapter_pages=most[1], prefix_pages=most[0])
