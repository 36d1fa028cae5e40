"""What the planner may know of the prefix cache: whose beginning is there, and what may go.

Declared here and filled by server/memory/prefix_cache.py, because the planner says what it needs
to see. A *block* is one cached page of KV, named by a handle; its *parent* is the block of the
tokens before it. *Idle*: no request holds it. Read-only, and valid until the next change of the
cache: the planner keeps its own book of what its plan takes and gives up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

NO_BLOCK = -1


class IdleBlock(NamedTuple):
    """One page that may go, once its children have gone."""

    worth: float  # comparable with AdapterView.worth: smaller goes first
    block_id: int
    parent_id: int  # NO_BLOCK: it begins a prompt
    tenant: str = ""  # who had it computed


class TenantPages(NamedTuple):
    """Blocks that a tenant had computed."""

    held: int  # by one request or more, each counted once
    idle: int


class PrefixView(Protocol):
    @property
    def num_idle(self) -> int:
        """Cached pages that nobody holds: all of them can be had, each after its children."""
        ...

    def hit_pages(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these waiting rows, how many pages of what they know are cached, from the beginning;
        always fewer than hold all they know, so that a token is left to compute.
        """
        ...

    def chain(self, row: int) -> Sequence[int]:
        """Those pages of a waiting row, as blocks, in the order of the tokens."""
        ...

    def is_idle(self, block_id: int) -> bool: ...

    def num_children(self, block_id: int) -> int:
        """Cached blocks that go on from this one."""
        ...

    def waiters(self, block_id: int) -> Sequence[int]:
        """Waiting rows whose chain ends with this block."""
        ...

    def leaves(self) -> Iterator[IdleBlock]:
        """Idle blocks, smallest worth first among those whose children have been given out: the
        order in which they may go, if all that were given out go. Those in a waiting row's chain
        may be left out: the planner skips them here and finds them by their rows.
        """
        ...

    def held(self, row: int) -> Sequence[int]:
        """The blocks among the pages of a row that holds pages: its first so many, in their order.

        Without a hole: whoever holds a block holds its parent too, as the page before.
        """
        ...

    def num_holders(self, block_id: int) -> int:
        """Rows that hold it; 0: it is idle."""
        ...

    def pages_of(self, tenant: str) -> TenantPages:
        """Asked only where there is a cap per tenant."""
        ...


@dataclass(frozen=True, slots=True)
class NoPrefixes:
    """The view of a cache that is switched off."""

    num_idle: int = 0

    def hit_pages(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.zeros(len(rows), np.int64)

    def chain(self, row: int) -> Sequence[int]:
        del row
        return ()

    def is_idle(self, block_id: int) -> bool:
        raise KeyError(block_id)

    def num_children(self, block_id: int) -> int:
        raise KeyError(block_id)

    def waiters(self, block_id: int) -> Sequence[int]:
        raise KeyError(block_id)

    def leaves(self) -> Iterator[IdleBlock]:
        return iter(())

    def held(self, row: int) -> Sequence[int]:
        del row
        return ()

    def num_holders(self, block_id: int) -> int:
        raise KeyError(block_id)

    def pages_of(self, tenant: str) -> TenantPages:
        del tenant
        return TenantPages(0, 0)


NO_PREFIXES: PrefixView = NoPrefixes()
