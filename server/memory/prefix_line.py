"""Rows and how much of what they know is cached; for waiting rows exact at every moment.

Owns each row's chain of hashes and, for the waiting, where the chain of cached blocks ends: a block
that comes extends the rows that miss it, a block that goes shortens those that end with it. So a
step costs nothing for a line in which nothing changes. Does not know pages' owners or worths.
Called by prefix_cache.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InternalError
from .prefix_blocks import Block, BlockStore, Root
from .prefix_hash import block_hash


@dataclass(slots=True, eq=False)
class PrefixRow:
    """A request, from the line to its end."""

    row: int
    root: Root
    known_ids: list[int]  # the table's own: it grows
    tenant: str
    hashes: list[bytes] = field(default_factory=list[bytes])  # of its first pages, as far as asked
    chain: list[Block] = field(default_factory=list[Block])  # while it waits: what is cached
    max_pages: int = 0  # while it waits: that the chain may have
    held: list[Block] = field(default_factory=list[Block])  # its first pages that are blocks
    num_sound_pages: int = 0  # its first pages that may become blocks
    is_new: bool = True  # it has not run yet

    def hash_at(self, page_idx: int, tokens_per_page: int) -> bytes:
        """Of this page of its tokens, which have to be known."""
        hashes = self.hashes
        while len(hashes) <= page_idx:
            first = len(hashes) * tokens_per_page
            ids = self.known_ids[first : first + tokens_per_page]
            if len(ids) < tokens_per_page:
                raise InternalError(f"row {self.row} does not know all of page {len(hashes)}")
            hashes.append(block_hash(hashes[-1] if hashes else self.root.key, ids))
        return hashes[page_idx]


class PrefixLine:
    def __init__(self, blocks: BlockStore, *, tokens_per_page: int) -> None:
        self._blocks, self._tokens_per_page = blocks, tokens_per_page
        self._rows: dict[int, PrefixRow] = {}
        self._missing: dict[bytes, set[int]] = {}  # hash of the next block -> rows that miss it
        self._ends: dict[int, set[int]] = {}  # page of the last block -> rows
        self._num_hits = np.zeros(0, np.int64)  # by row: a line is asked about as a whole

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def rows(self) -> Iterable[int]:
        return self._rows.keys()

    def join(self, prefix: PrefixRow, *, max_pages: int) -> None:
        """It waits: its chain is looked up, and kept right from now on."""
        if prefix.row in self._rows:
            raise InternalError(f"row {prefix.row} waits already")
        self._rows[prefix.row] = prefix
        if prefix.row >= len(self._num_hits):
            longer = np.zeros(2 * prefix.row + 1, np.int64)
            longer[: len(self._num_hits)] = self._num_hits
            self._num_hits = longer
        prefix.chain, prefix.max_pages = [], max_pages
        self._extend(prefix)
        self._enter(prefix)

    def leave(self, row: int) -> list[Block]:
        """It waits no more; returns its chain."""
        prefix = self._rows.pop(row)
        self._withdraw(prefix)
        self._num_hits[row] = 0
        chain, prefix.chain = prefix.chain, []
        for block in chain:
            self._blocks.wait_for(block, -1)
        return chain

    def came(self, blocks: Sequence[Block]) -> None:
        """New in the store, parents first."""
        for block in blocks:
            for row in sorted(self._missing.get(block.hash, ())):
                prefix = self._rows[row]
                self._withdraw(prefix)
                self._extend(prefix)
                self._enter(prefix)

    def went(self, block: Block) -> None:
        """About to leave the store, after its children."""
        for row in sorted(self._ends.get(block.page, ())):
            prefix = self._rows[row]
            self._withdraw(prefix)
            prefix.chain.pop()
            self._enter(prefix)

    def hit_pages(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        num_known = len(self._num_hits)
        if not num_known or int(rows.max(initial=0)) >= num_known:  # some never joined
            hits = np.zeros(len(rows), np.int64)
            hits[rows < num_known] = self._num_hits[rows[rows < num_known]]
            return hits
        return self._num_hits[rows]

    def chain(self, row: int) -> list[int]:
        prefix = self._rows.get(row)
        return [block.page for block in prefix.chain] if prefix else []

    def waiters(self, page: int) -> list[int]:
        return sorted(self._ends.get(page, ()))

    def _next_hash(self, prefix: PrefixRow) -> bytes | None:
        """Of the first block that is not there; None: its chain is as long as it may be."""
        if len(prefix.chain) >= prefix.max_pages:
            return None
        return prefix.hash_at(len(prefix.chain), self._tokens_per_page)

    def _extend(self, prefix: PrefixRow) -> None:
        while (hash_ := self._next_hash(prefix)) is not None:
            block = self._blocks.find(hash_)
            if block is None:
                return
            prefix.chain.append(block)
            self._blocks.wait_for(block, 1)

    def _enter(self, prefix: PrefixRow) -> None:
        hash_ = self._next_hash(prefix)
        if hash_ is not None:
            self._missing.setdefault(hash_, set()).add(prefix.row)
        if prefix.chain:
            self._ends.setdefault(prefix.chain[-1].page, set()).add(prefix.row)
        self._num_hits[prefix.row] = len(prefix.chain)

    def _withdraw(self, prefix: PrefixRow) -> None:
        hash_ = self._next_hash(prefix)
        if hash_ is not None:
            self._missing[hash_].remove(prefix.row)
            if not self._missing[hash_]:
                del self._missing[hash_]
        if prefix.chain:
            page = prefix.chain[-1].page
            self._ends[page].remove(prefix.row)
            if not self._ends[page]:
                del self._ends[page]

    def audit(self) -> None:
        """Every chain is what a look-up from the beginning would find.

        Raises:
            InternalError: names the row whose chain is wrong.
        """
        for row, prefix in self._rows.items():
            found: list[Block] = []
            for page_idx in range(prefix.max_pages):
                block = self._blocks.find(prefix.hash_at(page_idx, self._tokens_per_page))
                if block is None:
                    break
                found.append(block)
            hash_ = self._next_hash(prefix)
            listed = hash_ is None or row in self._missing.get(hash_, ())
            listed &= not found or row in self._ends.get(found[-1].page, ())
            if found != prefix.chain or self._num_hits[row] != len(found) or not listed:
                raise InternalError(f"row {row} has {len(prefix.chain)} hits, not {len(found)}")
        for name, index in (("missing", self._missing), ("ends", self._ends)):
            if not {row for rows in index.values() for row in rows} <= self._rows.keys():
                raise InternalError(f"{name} names rows that do not wait")
        waiting = Counter(block.page for prefix in self._rows.values() for block in prefix.chain)
        for block in self._blocks.all():
            if block.num_waiting != waiting[block.page]:
                raise InternalError(f"block {block.page} is waited for by {waiting[block.page]}")
