"""Cached pages of KV as blocks: a forest, found by hash, and the order in which idle ones may go.

Owns the index, how many rows hold each block and how many wait for it. Who holds a block holds its
parents too, so all that is idle can be had, children first. Does not know rows, tokens or leases:
prefix_cache.py says what is held, prefix_line.py what is waited for. A tree of blocks that loses
its leaves first is SGLang's RadixAttention; what a leaf is worth is economy.py's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ..errors import InternalError
from ..scheduling.prefix_view import NO_BLOCK, IdleBlock, TenantPages
from .economy import Economy, Use
from .ghosts import Ghosts


@dataclass(slots=True, eq=False)
class Root:
    """All prompts that depend on the same adapter and model, of one tenant or of all."""

    key: bytes
    alive: bool = True  # False: forgotten, its blocks stay as long as rows hold them
    num_rows: int = 0  # that were opened under it, while it is alive
    pages: set[int] = field(default_factory=set[int])  # of its blocks


@dataclass(slots=True, eq=False)
class Block:
    """One full page of KV. Its page number is its name to the planner."""

    page: int
    hash: bytes
    root: Root = field(repr=False)
    parent: Block | None = field(repr=False)  # None: it begins a prompt
    first_token: int  # place of its first token in the prompt
    tenant: str  # whose request computed it
    use: Use
    worth: float
    num_holders: int = 0  # rows that have it in their block tables; 0: idle
    num_waiting: int = 0  # rows in line whose chains go through it
    is_listed: bool = False  # among the leaves that may go
    children: set[Block] = field(default_factory=set["Block"], repr=False)


class BlockStore:
    def __init__(
        self,
        economy: Economy,
        *,
        tokens_per_page: int,
        page_cost: Callable[[int], float],
        max_ghosts: int,
    ) -> None:
        """`max_ghosts`: evicted blocks whose uses are remembered."""
        self._economy, self._page_cost = economy, page_cost
        self._ghosts = Ghosts(max_ghosts)
        self._tokens_per_page = tokens_per_page
        self._by_hash: dict[bytes, Block] = {}
        self._by_page: dict[int, Block] = {}
        # Idle blocks without children that nobody waits for, sorted. Inserting moves some memory,
        # but a reader walks it from the front without taking anything out, as no heap lets him.
        self._leaves: list[tuple[float, int]] = []  # worth, page
        self.num_idle = 0
        self._num_of: Counter[str] = Counter()  # blocks by tenant
        self._num_idle_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_page)

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def find(self, hash_: bytes) -> Block | None:
        return self._by_hash.get(hash_)

    def at(self, page: int) -> Block:
        """Raises: KeyError, no block has this page."""
        return self._by_page[page]

    def all(self) -> Iterator[Block]:
        return iter(self._by_page.values())

    def tenants(self) -> list[str]:
        return sorted(self._num_of)

    def pages_of(self, tenant: str) -> TenantPages:
        num_idle = self._num_idle_of[tenant]
        return TenantPages(held=self._num_of[tenant] - num_idle, idle=num_idle)

    # Changes

    def insert(
        self,
        page: int,
        hash_: bytes,
        *,
        root: Root,
        parent: Block | None,
        tenant: str,
        now_s: float,
    ) -> Block:
        """A block that no row holds yet."""
        first_token = parent.first_token + self._tokens_per_page if parent else 0
        use = self._economy.touched(self._ghosts.recall(hash_), now_s)
        block = Block(page, hash_, root, parent, first_token, tenant, use, 0.0)
        self._by_hash[hash_], self._by_page[page] = block, block
        root.pages.add(page)
        self._num_of[tenant] += 1
        self._count_idle(block, 1)
        if parent is not None:
            parent.children.add(block)
            self._list(parent)
        self._price(block, use)
        return block

    def touch(self, block: Block, now_s: float) -> None:
        """Somebody wants it once more."""
        self._price(block, self._economy.touched(block.use, now_s))

    def hold(self, block: Block) -> None:
        block.num_holders += 1
        if block.num_holders == 1:
            self._count_idle(block, -1)
            self._list(block)

    def let_go(self, block: Block, now_s: float) -> None:
        block.num_holders -= 1
        if not block.num_holders:
            self._count_idle(block, 1)
            self._price(block, self._economy.rested(block.use, now_s))

    def wait_for(self, block: Block, change: int) -> None:
        """So many more rows in line have it in their chains, or fewer."""
        block.num_waiting += change
        self._list(block)

    def hide(self, block: Block) -> None:
        """Nobody finds it any more."""
        del self._by_hash[block.hash]

    def remove(self, block: Block) -> None:
        """Nobody holds it; its children have to go before it."""
        if block.children or block.num_holders:
            raise InternalError(f"block {block.page} is needed: {block}")
        if block.root.alive:
            del self._by_hash[block.hash]
            self._ghosts.remember(block.hash, block.use)
        del self._by_page[block.page]
        block.root.pages.remove(block.page)
        self._num_of[block.tenant] -= 1
        self._count_idle(block, -1)
        if not self._num_of[block.tenant]:
            del self._num_of[block.tenant], self._num_idle_of[block.tenant]
        if block.is_listed:
            self._unlist(block)
        if block.parent is not None:
            block.parent.children.remove(block)
            self._list(block.parent)

    # The order

    def leaves(self) -> Iterator[IdleBlock]:
        """All idle blocks that nobody waits for, in the order in which they may go: smallest worth
        first, a parent once its children are out.
        """
        exposed: list[tuple[float, int]] = []  # heap of parents
        num_out: Counter[int] = Counter()  # children given out, by page
        place = 0
        while exposed or place < len(self._leaves):
            if exposed and (place == len(self._leaves) or exposed[0] < self._leaves[place]):
                worth, page = heappop(exposed)
            else:
                worth, page = self._leaves[place]
                place += 1
            block = self._by_page[page]
            parent = block.parent
            if parent is None:
                yield IdleBlock(worth, page, NO_BLOCK, block.tenant)
                continue
            yield IdleBlock(worth, page, parent.page, block.tenant)
            num_out[parent.page] += 1
            loose = not parent.num_holders and not parent.num_waiting
            if loose and num_out[parent.page] == len(parent.children):
                heappush(exposed, (parent.worth, parent.page))

    def _price(self, block: Block, use: Use) -> None:
        if block.is_listed:
            self._unlist(block)
        recompute_s = self._page_cost(block.first_token)
        block.use = use
        block.worth = self._economy.block_worth(use, recompute_s=recompute_s)
        self._list(block)

    def _list(self, block: Block) -> None:
        """Among the leaves or not, as it is now."""
        is_leaf = not (block.num_holders or block.num_waiting or block.children)
        if is_leaf and not block.is_listed:
            insort(self._leaves, (block.worth, block.page))
            block.is_listed = True
        elif block.is_listed and not is_leaf:
            self._unlist(block)

    def _unlist(self, block: Block) -> None:
        del self._leaves[bisect_left(self._leaves, (block.worth, block.page))]
        block.is_listed = False

    def _count_idle(self, block: Block, change: int) -> None:
        self.num_idle += change
        self._num_idle_of[block.tenant] += change

    def audit(self) -> None:
        """Raises:
        InternalError: names the block that does not add up.
        """
        for page, block in self._by_page.items():
            parent, is_known = block.parent, block.page == page and page in block.root.pages
            if block.root.alive:
                is_known &= self._by_hash.get(block.hash) is block
            else:
                is_known &= block.num_holders > 0
            if parent is not None:
                is_known &= block in parent.children and parent.page in self
                # Each holder of a block holds its parent.
                is_known &= parent.num_holders >= block.num_holders
            if not is_known or block.num_holders < 0:
                raise InternalError(f"block {page} of {len(self)} does not hang together: {block}")
        idle = [block for block in self._by_page.values() if not block.num_holders]
        may_go = [block for block in idle if not block.num_waiting and not block.children]
        leaves = sorted((block.worth, block.page) for block in may_go)
        counts = Counter(block.tenant for block in self._by_page.values())
        idle_counts = Counter(block.tenant for block in idle)
        if leaves != self._leaves or len(idle) != self.num_idle:
            raise InternalError(
                f"{len(idle)} blocks are idle, {self.num_idle} counted; {len(leaves)} may go, "
                f"{len(self._leaves)} listed"
            )
        if counts != self._num_of or idle_counts != self._num_idle_of:
            raise InternalError(f"tenants have {counts}, idle {idle_counts}; {self._num_of}")
        if not all(block.root.alive for block in self._by_hash.values()):
            raise InternalError("a forgotten block can be found")
