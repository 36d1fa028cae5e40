"""One plan's book of cached pages: which idle ones go in which order, and what victims give up.

A block that a waiting row's chain goes through is *needed*; one may go once all that go on from
it have gone. Walks lazily: what nobody asks for costs nothing, and nothing is O(cached pages).
Knows no adapters, no budgets. Used by eviction.py (order) and draft.py (victims, hits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from .line import Line
from .prefix_view import NO_BLOCK, IdleBlock, PrefixView

# Cached pages looked at to find those of tenants above their cap, before any will do.
MAX_LOOKED_AT = 1000


class NeededBlock(NamedTuple):
    position: int  # of the first waiting row that needs it
    block_id: int
    parent_id: int


class Blocks:
    def __init__(self, view: PrefixView, line: Line) -> None:
        self._view, self._line = view, line
        self.evicted: list[int] = []  # in their order: children first
        self._gone: set[int] = set()  # evicted, or given up by a victim
        self._gone_children = Counter[int]()
        # Given out as the next to go, if all that were given out go.
        self._given: set[int] = set()
        self._given_children = Counter[int]()
        self._released = Counter[int]()  # holders that go by this plan
        self._taken: set[int] = set()  # were idle: newcomers hold them now

    # The order

    def of_tenants(self, tenants: dict[str, int]) -> Iterator[IdleBlock]:
        """Those that nobody needs of these tenants, smallest worth first. `tenants`: by name, how
        many pages they are to give; counted down.
        """
        blocked: set[int] = set()
        for block in islice(self._view.leaves(), MAX_LOOKED_AT):
            wanted = tenants.get(block.tenant, 0) > 0
            if not wanted or block.block_id in blocked or self._is_waited_for(block.block_id):
                blocked.add(block.parent_id)
                continue
            self._give(block.block_id, block.parent_id)
            tenants[block.tenant] -= 1
            yield block

    def unneeded(self) -> Iterator[IdleBlock]:
        """Those that no waiting row needs, smallest worth first."""
        blocked: set[int] = set()
        for block in self._view.leaves():
            if block.block_id in self._given:
                continue
            if block.block_id in blocked or self._is_waited_for(block.block_id):
                blocked.add(block.parent_id)
                continue
            self._give(block.block_id, block.parent_id)
            yield block

    def needed(self) -> Iterator[NeededBlock]:
        """The others, once all of the unneeded were given out: from the back of the line, each
        chain from its tail, so that the first rows lose last, and nobody a page in the middle.
        """
        line = self._line
        for row in line.ended.tolist():  # their chains nobody needs any more
            yield from self._tail(row, len(line))
        for position in np.flatnonzero(line.hits)[::-1].tolist():
            yield from self._tail(int(line.rows[position]), position)

    def _tail(self, row: int, position: int) -> Iterator[NeededBlock]:
        chain = self._view.chain(row)
        for index in range(len(chain) - 1, -1, -1):
            block_id = chain[index]
            if block_id in self._given:
                continue
            if not self._view.is_idle(block_id) or self._is_needed_before(block_id, position):
                return
            parent_id = chain[index - 1] if index else NO_BLOCK
            self._give(block_id, parent_id)
            yield NeededBlock(position, block_id, parent_id)

    def _is_needed_before(self, block_id: int, position: int) -> bool:
        """By a row further in front, which finds it when its own turn comes."""
        if self._view.num_children(block_id) > self._given_children[block_id]:
            return True
        return self._is_waited_for(block_id, position)

    def _is_waited_for(self, block_id: int, before: int | None = None) -> bool:
        """By a row in line, in front of a position if one is given."""
        waiters = self._view.waiters(block_id)
        if not waiters:  # as a rule: nobody's place is looked up
            return False
        end, positions = len(self._line) if before is None else before, self._line.positions
        return any(positions[row] < end for row in waiters)

    def _give(self, block_id: int, parent_id: int) -> None:
        self._given.add(block_id)
        self._given_children[parent_id] += 1

    def evict(self, block_id: int, parent_id: int) -> None:
        self.evicted.append(block_id)
        self._go(block_id, parent_id)

    def _go(self, block_id: int, parent_id: int) -> None:
        self._gone.add(block_id)
        self._gone_children[parent_id] += 1

    # Rows that go

    def num_held(self, row: int) -> int:
        return len(self._view.held(row))

    def release(self, row: int) -> tuple[int, ...]:
        """Of the blocks of a row that goes, those that could go with it: nobody else holds them,
        and nothing goes on from them. In the order of the tokens.
        """
        held = self._view.held(row)
        self._released.update(held)
        first = len(held)
        while first and self._is_loose(held[first - 1]):
            first -= 1
            self._go(held[first], held[first - 1] if first else NO_BLOCK)
        return tuple(held[first:])

    def _is_loose(self, block_id: int) -> bool:
        view = self._view
        return (
            view.num_holders(block_id) == self._released[block_id]
            and view.num_children(block_id) == self._gone_children[block_id]
        )

    # Newcomers

    def hits(self, row: int) -> tuple[int, int]:
        """Cached pages that a newcomer begins behind, and how many of them were idle so far."""
        chain = self._view.chain(row)
        num_pages = len(chain)
        while num_pages and chain[num_pages - 1] in self._gone:
            num_pages -= 1
        # Whoever holds a block holds all before it.
        num_held = num_pages
        while num_held and self._is_idle(chain[num_held - 1]):
            num_held -= 1
        return num_pages, num_pages - num_held

    def take(self, row: int, num_pages: int) -> None:
        """A newcomer holds the first of its chain from now on."""
        chain = self._view.chain(row)
        for index in range(num_pages - 1, -1, -1):
            if not self._is_idle(chain[index]):
                return
            self._taken.add(chain[index])

    def _is_idle(self, block_id: int) -> bool:
        return block_id not in self._taken and self._view.is_idle(block_id)
