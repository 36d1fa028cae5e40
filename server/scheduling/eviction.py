"""The order in which idle things go: adapters that nobody runs on, cached pages nobody holds.

First what no waiting row needs, smallest worth first whatever it is (one economy; the idea of one
value for adapters and KV is ELORA's), pinned adapters last of those; then what waiting rows need,
the farthest back in the line first. Things of tenants above their cap go before all. Looks only as
far along the order as somebody asks. Knows no budgets. Used by rooms.py.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cached_property
from heapq import merge
from typing import NamedTuple

from .blocks import Blocks
from .line import NOBODY
from .prefix_view import NO_BLOCK, IdleBlock
from .records import BASE_ID


class IdleAdapter(NamedTuple):
    """A resident adapter that nobody ran on when the plan began."""

    adapter_id: int
    num_pages: int
    position: int  # of the first waiting row that names it; the line's length: nobody does
    worth: float
    last_used_s: float  # settles equal worths
    pinned: bool
    tenant: str


class Idle(NamedTuple):
    """What goes next: an adapter, or a block."""

    position: int  # of the first waiting row that needs it; the line's length: nobody does
    worth: float  # inf: it goes for a request only
    num_pages: int
    adapter_id: int = BASE_ID
    block_id: int = NO_BLOCK
    parent_id: int = NO_BLOCK


class EvictionOrder:
    """Along it the positions never grow. A parent comes after its children, whatever its worth."""

    def __init__(
        self,
        find_adapters: Callable[[], list[IdleAdapter]],
        blocks: Blocks | None,
        *,
        num_pages: int,
        end: int,
        over_cap: dict[str, int],
    ) -> None:
        """`num_pages`: of all that is idle; `end`: length of the line; `over_cap`: pages that
        tenants are to give first, by name.
        """
        self._find_adapters = find_adapters
        self._blocks, self._end, self._over_cap = blocks, end, over_cap
        self.num_pages = num_pages
        self._given_adapters: set[int] = set()
        self._gone_adapters: set[int] = set()
        self._walk = self._all()
        # As far as somebody has looked; those before `_head` have gone.
        self._queue: list[Idle] = []
        self._backs: list[int] = []  # -position of each, so that they never fall
        self._sums: list[int] = [0]  # pages of those before each
        self._head = 0

    @cached_property
    def _adapters(self) -> list[IdleAdapter]:
        """Sorted for who asks what may go: most plans find room without."""
        return sorted(
            self._find_adapters(),
            key=lambda idle: (
                -idle.position,
                idle.pinned,
                idle.worth,
                idle.last_used_s,
                idle.adapter_id,
            ),
        )

    def reachable(self, enough: int, position: int) -> int:
        """Pages of what may go for a row at `position`: all that is first needed by someone behind
        it. Stops counting at `enough`, unless it is everything.
        """
        if position == NOBODY:
            return self.num_pages
        while (pages := self._pages_behind(position)) < enough and self._look_on(position):
            pass
        return pages

    def pop(self, position: int) -> Idle:
        """The next to go for a row at this position; ask `reachable` first."""
        if self._head == len(self._queue):
            self._look_on(position)
        if self._head == len(self._queue) or self._queue[self._head].position <= position:
            raise IndexError(f"nothing idle may go for position {position}")
        idle = self._queue[self._head]
        self._head += 1
        self._leave(idle)
        return idle

    def next_adapter(self, position: int) -> IdleAdapter | None:
        """The adapter that would go first for a row at this position: there are slots for few."""
        for idle in self._adapters:
            if idle.position <= position:
                return None
            if idle.adapter_id not in self._gone_adapters:
                return idle
        return None

    def pop_adapter(self, position: int) -> Idle:
        """Ask `next_adapter` first."""
        adapter = self.next_adapter(position)
        if adapter is None:
            raise IndexError(f"no idle adapter may go for position {position}")
        idle = self._adapter(adapter)
        self._leave(idle)
        rest = [item for item in self._queue[self._head :] if item.adapter_id != idle.adapter_id]
        if len(rest) < len(self._queue) - self._head:
            self._queue, self._backs, self._sums, self._head = [], [], [0], 0
            for item in rest:
                self._append(item)
        return idle

    def worth_less(self, worth: float, enough: int) -> int:
        """Pages of what nobody in the line needs and is worth less; stops at `enough`."""
        pages, index = 0, self._head
        while pages < enough:
            if index == len(self._queue) and not self._look_on(NOBODY):
                break
            if self._queue[index].worth >= worth:
                break
            pages += self._queue[index].num_pages
            index += 1
        return pages

    def _leave(self, idle: Idle) -> None:
        self.num_pages -= idle.num_pages
        if idle.adapter_id != BASE_ID:
            self._gone_adapters.add(idle.adapter_id)
        elif self._blocks is not None:
            self._blocks.evict(idle.block_id, idle.parent_id)

    # Looking along the order

    def _pages_behind(self, position: int) -> int:
        stop = bisect_left(self._backs, -position, lo=self._head)
        return self._sums[stop] - self._sums[self._head]

    def _look_on(self, position: int) -> bool:
        """One further; False: that is all, or all that may go for this position."""
        if len(self._queue) > self._head and self._queue[-1].position <= position:
            return False
        for idle in self._walk:
            if idle.adapter_id not in self._gone_adapters:
                self._append(idle)
                return True
        return False

    def _append(self, idle: Idle) -> None:
        self._queue.append(idle)
        self._backs.append(-idle.position)
        self._sums.append(self._sums[-1] + idle.num_pages)

    def _all(self) -> Iterator[Idle]:
        unneeded = [idle for idle in self._adapters if idle.position == self._end]
        loose = [idle for idle in unneeded if not idle.pinned]
        yield from merge(self._blocks_over_cap(), self._adapters_over_cap(loose), key=_worth)
        loose = [idle for idle in loose if idle.adapter_id not in self._given_adapters]
        yield from merge(self._unneeded_blocks(), map(self._adapter, loose), key=_worth)
        yield from (self._adapter(idle) for idle in unneeded if idle.pinned)
        needed = [idle for idle in self._adapters if idle.position < self._end]
        yield from merge(self._needed_blocks(), map(self._adapter, needed), key=_from_the_back)

    def _adapters_over_cap(self, loose: list[IdleAdapter]) -> Iterator[Idle]:
        for idle in loose if self._over_cap else ():
            if self._over_cap.get(idle.tenant, 0) > 0:
                self._over_cap[idle.tenant] -= idle.num_pages
                self._given_adapters.add(idle.adapter_id)
                yield self._adapter(idle)

    def _blocks_over_cap(self) -> Iterator[Idle]:
        if self._blocks and self._over_cap:
            for block in self._blocks.of_tenants(self._over_cap):
                yield self._block(block)

    def _unneeded_blocks(self) -> Iterator[Idle]:
        if self._blocks:
            for block in self._blocks.unneeded():
                yield self._block(block)

    def _needed_blocks(self) -> Iterator[Idle]:
        if self._blocks:
            for block in self._blocks.needed():
                yield Idle(block.position, math.inf, 1, BASE_ID, block.block_id, block.parent_id)

    def _block(self, block: IdleBlock) -> Idle:
        return Idle(self._end, block.worth, 1, BASE_ID, block.block_id, block.parent_id)

    def _adapter(self, idle: IdleAdapter) -> Idle:
        goes_for_anything = idle.position == self._end and not idle.pinned
        worth = idle.worth if goes_for_anything else math.inf
        return Idle(idle.position, worth, idle.num_pages, idle.adapter_id)


def _worth(idle: Idle) -> float:
    return idle.worth


def _from_the_back(idle: Idle) -> int:
    return -idle.position
