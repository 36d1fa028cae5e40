"""The prefix cache: KV that was computed before, kept while nobody needs its pages more.

Owns which pages of the pool hold which beginnings, and which rows hold those. Only full pages,
wholly computed, of known tokens; a shared page is never written. Does not choose what goes
(scheduling does, in the order of `leaves`): it is the planner's `PrefixView`. Called by the
engine: `open`, `apply` (before the pool's), `publish`, `close` (before the pool's `release`),
`forget`. The idea of pages shared through a hash is vLLM's (PagedAttention).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from ..scheduling.prefix_view import IdleBlock, TenantPages
from ..scheduling.records import PlannedHit, StepPlan
from .economy import Economy
from .pool import KvOwner, Pool
from .prefix_blocks import Block, BlockStore, Root
from .prefix_line import PrefixLine, PrefixRow

# Evicted blocks whose uses are remembered, for each page of the pool; 200 bytes each.
GHOSTS_PER_PAGE = 2


@dataclass(frozen=True, slots=True)
class PrefixStats:
    num_pages: int  # cached, held by requests or not
    num_idle: int  # of those, that can be had
    lookup_tokens: int  # known by requests when they first ran
    hit_tokens: int  # of those, that were cached
    num_evictions: int  # pages that went for something else
    kept_tokens: int  # of preempted requests, that stayed in the cache
    tenants: tuple[tuple[str, TenantPages], ...]  # by name


class PrefixCache:
    def __init__(
        self,
        pool: Pool,
        economy: Economy,
        *,
        tokens_per_page: int,
        page_cost: Callable[[int], float],
        enabled: bool = True,
    ) -> None:
        """`page_cost`: seconds to compute the page with this first token anew."""
        self._pool, self._enabled = pool, enabled
        self._tokens_per_page = tokens_per_page
        self._blocks = BlockStore(
            economy,
            tokens_per_page=tokens_per_page,
            page_cost=page_cost,
            max_ghosts=GHOSTS_PER_PAGE * pool.num_pages,
        )
        self._line = PrefixLine(self._blocks, tokens_per_page=tokens_per_page)
        self._rows: dict[int, PrefixRow] = {}
        self._waiting: set[int] = set()  # rows that do not run, with a chain in the line or not
        self._roots: dict[bytes, Root] = {}
        self._now_s = 0.0  # the latest instant heard of
        self._lookup_tokens = self._hit_tokens = self._num_evictions = self._kept_pages = 0

    # The life of a row

    def open(
        self,
        row: int,
        root: bytes,
        known_ids: list[int],
        *,
        tenant: str,
        reusable: bool = True,
    ) -> None:
        """A row joins the line: it is new, or was preempted. `known_ids` is the table's own list.

        `reusable` False: it has to compute all it knows, for it needs the logits of its prompt.
        """
        if not self._enabled:
            return
        prefix = self._rows.get(row)
        if prefix is None:
            prefix = PrefixRow(row, self._roots.setdefault(root, Root(root)), known_ids, tenant)
            prefix.root.num_rows += 1
            self._rows[row] = prefix
        elif prefix.known_ids is not known_ids or prefix.root.key != root:
            raise InternalError(f"row {row} is opened for another request before it is closed")
        self._waiting.add(row)
        if reusable and prefix.root.alive:
            # One token at least is left to compute: its logits are the next token's.
            self._line.join(prefix, max_pages=(len(known_ids) - 1) // self._tokens_per_page)

    def publish(self, row: int, num_tokens: int, now_s: float) -> None:
        """The full pages of its first `num_tokens` tokens may be met again: all are computed, and
        gave finite logits.

        They become blocks that the row goes on holding, up to the first that another row computed
        at the same time: from there on its copies stay its own, and what goes on from the other's
        page becomes blocks when the row closes. A block is never held without its parent.
        """
        if not self._enabled:
            return
        prefix = self._row(row)
        self._now_s = max(self._now_s, now_s)
        if not prefix.root.alive:
            return
        num_pages = min(num_tokens, len(prefix.known_ids)) // self._tokens_per_page
        prefix.num_sound_pages = max(prefix.num_sound_pages, num_pages)
        self._make_blocks(prefix, is_leaving=False)

    def close(self, row: int) -> None:
        """Forgets a row, waiting or not, and leaves behind what it published. Its pages are the
        pool's business: to be released at once.
        """
        if not self._enabled:
            return
        prefix = self._row(row)
        self._make_blocks(prefix, is_leaving=True)
        self._drop(self._leave(prefix))
        self._waiting.discard(row)
        del self._rows[row]
        prefix.root.num_rows -= 1
        self._tidy(prefix.root)

    def forget(self, root: bytes) -> None:
        """Deleted or replaced: nobody meets these pages any more. Idle ones are free at once, the
        others when their last holder leaves; its rows publish nothing from now on.
        """
        gone = self._roots.pop(root, None)
        if gone is None:
            return
        gone.alive = False
        for prefix in [one for one in self._rows.values() if one.root is gone]:
            self._leave_line(prefix)
            prefix.num_sound_pages = 0
        blocks = [self._blocks.at(page) for page in gone.pages]
        for block in blocks:
            self._blocks.hide(block)
        self._drop([block for block in blocks if not block.num_holders])

    # Plans

    def apply(self, plan: StepPlan) -> None:
        """Before `pool.apply`: what is kept becomes blocks, what must go is free, hits are held.

        Raises:
            InternalError: the plan does not fit what is here.
        """
        if not self._enabled:
            return
        self._now_s = max(self._now_s, plan.now_s)
        held = {row: self._row(row).held for row in plan.preemptions}
        dead: list[Block] = []
        for row in (*plan.preemptions, *plan.expired, *plan.aborted):
            dead += self._leave(self._row(row))
        self._evict(plan.prefix_evictions)
        self._drop([block for block in dead if block.page in self._blocks])
        for blocks in held.values():
            self._kept_pages += sum(block.page in self._blocks for block in blocks)
        # Now, for a victim may have copies of what goes with another: those become the blocks.
        for keep in plan.keeps:
            self._keep(self._row(keep.row), keep.num_pages, held[keep.row])
        for hit in plan.hits:
            self._grant(hit)
        if self._waiting:
            for row in self._waiting.intersection([run.row for run in plan.runs]):
                self._begin(self._rows[row])

    def _keep(self, prefix: PrefixRow, num_pages: int, held: list[Block]) -> None:
        """Of a victim, which held these blocks: the plan evicts none of them."""
        if prefix.root.alive:
            prefix.held = held
            prefix.num_sound_pages = min(num_pages, len(prefix.known_ids) // self._tokens_per_page)
            self._kept_pages += max(prefix.num_sound_pages - len(held), 0)
            self._make_blocks(prefix, is_leaving=True)
            prefix.held, prefix.num_sound_pages = [], 0

    def _grant(self, hit: PlannedHit) -> None:
        """A newcomer holds the first of its chain."""
        prefix = self._row(hit.row)
        blocks = prefix.chain[: hit.num_pages]
        owner = KvOwner(hit.row)
        if len(blocks) < hit.num_pages or self._pool.pages_of(owner):
            raise InternalError(
                f"the plan begins row {hit.row} behind {hit.num_pages} pages; {len(blocks)} are "
                f"cached, it holds {len(self._pool.pages_of(owner))}"
            )
        self._pool.share(owner, [block.page for block in blocks])
        for block in blocks:
            self._blocks.hold(block)
            self._blocks.touch(block, self._now_s)
        prefix.held = blocks
        if prefix.is_new:
            self._hit_tokens += hit.num_pages * self._tokens_per_page

    def _begin(self, prefix: PrefixRow) -> None:
        self._leave_line(prefix)
        self._waiting.remove(prefix.row)
        if prefix.is_new:
            self._lookup_tokens += len(prefix.known_ids)
            prefix.is_new = False

    def _evict(self, pages: Sequence[int]) -> None:
        """Children first."""
        for page in pages:
            if page not in self._blocks or self._blocks.at(page).num_holders:
                raise InternalError(f"the plan evicts block {page}, which is not idle")
            block = self._blocks.at(page)
            self._line.went(block)
            self._blocks.remove(block)
            self._tidy(block.root)
        self._num_evictions += len(pages)
        self._pool.uncache(pages)

    # What the planner sees

    @property
    def num_idle(self) -> int:
        return self._blocks.num_idle

    def hit_pages(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._line.hit_pages(rows)

    def chain(self, row: int) -> Sequence[int]:
        return self._line.chain(row)

    def is_idle(self, block_id: int) -> bool:
        return not self._blocks.at(block_id).num_holders

    def num_children(self, block_id: int) -> int:
        return len(self._blocks.at(block_id).children)

    def num_holders(self, block_id: int) -> int:
        return self._blocks.at(block_id).num_holders

    def waiters(self, block_id: int) -> Sequence[int]:
        return self._line.waiters(block_id)

    def leaves(self) -> Iterator[IdleBlock]:
        return self._blocks.leaves()

    def held(self, row: int) -> Sequence[int]:
        prefix = self._rows.get(row)
        return [block.page for block in prefix.held] if prefix else ()

    def pages_of(self, tenant: str) -> TenantPages:
        return self._blocks.pages_of(tenant)

    # Books

    def stats(self) -> PrefixStats:
        return PrefixStats(
            num_pages=len(self._blocks),
            num_idle=self._blocks.num_idle,
            lookup_tokens=self._lookup_tokens,
            hit_tokens=self._hit_tokens,
            num_evictions=self._num_evictions,
            kept_tokens=self._kept_pages * self._tokens_per_page,
            tenants=tuple((name, self._blocks.pages_of(name)) for name in self._blocks.tenants()),
        )

    def audit(self) -> None:
        """Blocks, rows and the pool say the same.

        Raises:
            InternalError: names what does not.
        """
        self._blocks.audit()
        self._line.audit()
        pages, cached = {block.page for block in self._blocks.all()}, self._pool.cached_pages()
        if pages != cached:
            raise InternalError(f"the pool has {sorted(cached)} for the cache of {sorted(pages)}")
        holders = Counter(block.page for prefix in self._rows.values() for block in prefix.held)
        for block in self._blocks.all():
            leases = self._pool.num_holders(block.page)
            if not block.num_holders == holders[block.page] == leases:
                raise InternalError(f"block {block.page} has {leases} leases, not {block}")
        for row, prefix in self._rows.items():
            leased = self._pool.kv_pages(row)[: len(prefix.held)].tolist()
            if leased != [block.page for block in prefix.held]:
                raise InternalError(f"row {row} holds {prefix.held}, and leases {leased}")
        rows_of = Counter(prefix.root for prefix in self._rows.values())
        for root in self._roots.values():
            num_rows = rows_of[root]
            if not root.alive or num_rows != root.num_rows or not (num_rows or root.pages):
                raise InternalError(f"root {root.key.hex()[:8]} counts {root.num_rows} rows")

    # Parts of the above

    def _make_blocks(self, prefix: PrefixRow, *, is_leaving: bool) -> None:
        """Of all sound pages. A row that leaves holds none of the new ones, so that other rows'
        pages between its own do no harm.
        """
        first, stop = len(prefix.held), prefix.num_sound_pages
        if first >= stop:
            return
        pages = self._pool.kv_pages(prefix.row)
        if stop > len(pages):
            raise InternalError(f"row {prefix.row} publishes {stop} pages of {len(pages)}")
        parent = prefix.held[-1] if prefix.held else None
        new: list[Block] = []
        for page_idx in range(first, stop):
            hash_ = prefix.hash_at(page_idx, self._tokens_per_page)
            block = self._blocks.find(hash_)
            if block is None:
                block = self._make_block(prefix, pages[page_idx], hash_, parent)
                new.append(block)
                if not is_leaving:
                    self._blocks.hold(block)
                    prefix.held.append(block)
            elif is_leaving:
                self._blocks.touch(block, self._now_s)
            else:
                break
            parent = block
        self._line.came(new)

    def _make_block(
        self, prefix: PrefixRow, page: int, hash_: bytes, parent: Block | None
    ) -> Block:
        self._pool.cache([page])
        return self._blocks.insert(
            page,
            hash_,
            root=prefix.root,
            parent=parent,
            tenant=prefix.tenant,
            now_s=self._now_s,
        )

    def _leave(self, prefix: PrefixRow) -> list[Block]:
        """It neither waits nor runs any more, and publishes nothing of what it leases. Returns
        forgotten blocks that nobody holds now, children first.
        """
        self._leave_line(prefix)
        for block in prefix.held:
            self._blocks.let_go(block, self._now_s)
        held, prefix.held, prefix.num_sound_pages = prefix.held, [], 0
        return [block for block in reversed(held) if not (prefix.root.alive or block.num_holders)]

    def _drop(self, blocks: Sequence[Block]) -> None:
        """All of them go at once: nobody holds them."""
        for block in sorted(blocks, key=lambda block: -block.first_token):
            self._blocks.remove(block)
        self._pool.uncache([block.page for block in blocks])

    def _leave_line(self, prefix: PrefixRow) -> None:
        if prefix.row in self._line:
            self._line.leave(prefix.row)

    def _tidy(self, root: Root) -> None:
        """A root that nothing hangs on is forgotten: there are as many as adapters."""
        if root.alive and not root.num_rows and not root.pages:
            del self._roots[root.key]

    def _row(self, row: int) -> PrefixRow:
        prefix = self._rows.get(row)
        if prefix is None:
            raise InternalError(f"row {row} was never opened to the prefix cache")
        return prefix
