"""A prefix cache as the planner sees it, written down block by block.

`FakePrefixes` is a `PrefixView` of what a test says; it changes nothing and checks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np

from lorry.server.scheduling.prefix_view import NO_BLOCK, IdleBlock, TenantPages


@dataclass(frozen=True, slots=True)
class FakeBlock:
    parent_id: int = NO_BLOCK
    worth: float = 0.0
    holders: tuple[int, ...] = ()  # rows that hold pages
    tenant: str = "default"


@dataclass(slots=True)
class FakePrefixes:
    blocks: dict[int, FakeBlock] = field(default_factory=dict[int, FakeBlock])
    chains: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    tells_all: bool = True  # False: `leaves` leaves out what waiting rows need, as it may
    num_looks: int = 0  # blocks that were given out by `leaves`

    def add_chain(self, *block_ids: int, behind: int = NO_BLOCK, **facts: object) -> None:
        """Blocks of one prompt, in the order of the tokens."""
        for block_id in block_ids:
            self.blocks[block_id] = FakeBlock(behind, **facts)  # type: ignore[arg-type]
            behind = block_id

    @property
    def num_idle(self) -> int:
        return sum(not block.holders for block in self.blocks.values())

    def hit_pages(self, rows: np.ndarray) -> np.ndarray:
        return np.array([len(self.chain(row)) for row in rows.tolist()], np.int64)

    def chain(self, row: int) -> tuple[int, ...]:
        return self.chains.get(row, ())

    def is_idle(self, block_id: int) -> bool:
        return not self.blocks[block_id].holders

    def num_children(self, block_id: int) -> int:
        return sum(block.parent_id == block_id for block in self.blocks.values())

    def waiters(self, block_id: int) -> list[int]:
        return [row for row, chain in self.chains.items() if chain and chain[-1] == block_id]

    def leaves(self) -> Iterator[IdleBlock]:
        num_left = Counter(block.parent_id for block in self.blocks.values())
        needed = {block_id for chain in self.chains.values() for block_id in chain}
        hidden = set[int]() if self.tells_all else needed
        heap = [(self.blocks[i].worth, i) for i in self.blocks if not num_left[i]]
        heapify(heap)
        while heap:
            worth, block_id = heappop(heap)
            block = self.blocks[block_id]
            if block.holders or block_id in hidden:
                continue
            self.num_looks += 1
            yield IdleBlock(worth, block_id, block.parent_id, block.tenant)
            num_left[block.parent_id] -= 1
            if block.parent_id != NO_BLOCK and not num_left[block.parent_id]:
                heappush(heap, (self.blocks[block.parent_id].worth, block.parent_id))

    def held(self, row: int) -> list[int]:
        """In the order of the tokens: a parent's number is smaller in every test."""
        return sorted(i for i, block in self.blocks.items() if row in block.holders)

    def num_holders(self, block_id: int) -> int:
        return len(self.blocks[block_id].holders)

    def pages_of(self, tenant: str) -> TenantPages:
        of_tenant = [block for block in self.blocks.values() if block.tenant == tenant]
        num_held = sum(bool(block.holders) for block in of_tenant)
        return TenantPages(num_held, len(of_tenant) - num_held)
