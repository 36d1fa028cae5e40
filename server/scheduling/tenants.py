"""What each tenant holds of the pool, where there is a cap: who may come in, whose things go first.

In use are the pages of running rows, the blocks they share (once, however many share them), and
adapters that somebody runs on or that are on their way. What a running row is promised counts as
well. Knows no order and no step. Lives for one plan; used by draft.py and plan.py.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks
from .facts import Row
from .records import PoolView
from .state import SchedulerState


class Tenants:
    def __init__(
        self,
        state: SchedulerState,
        view: PoolView,
        cap: int,
        *,
        blocks: Blocks,
        holding: list[int],
        in_use: Collection[int],
    ) -> None:
        """`holding`: rows that hold pages and stay; `in_use`: adapters that they name."""
        self._state, self._view, self._cap = state, view, cap
        # By tenant_id: pages in use, and promised to those who run.
        self._pages = np.zeros(len(state.tenants), np.int64)
        self._idle = np.zeros(len(state.tenants), np.int64)
        names = {tenant: tenant_id for tenant_id, tenant in enumerate(state.tenants)}
        for row in holding:
            own = int(state.num_pages[row]) - blocks.num_held(row)
            self._pages[state.tenant_id[row]] += own
        for tenant, tenant_id in names.items():
            found = view.prefixes.pages_of(tenant)
            self._pages[tenant_id] += found.held
            self._idle[tenant_id] += found.idle
        # Adapters whose pages are counted as in use.
        self._counted = set(in_use)
        for adapter_id, seen in view.adapters.items():
            tenant_id = names.get(seen.tenant)
            if not seen.resident:
                self._counted.add(adapter_id)
            if tenant_id is not None:
                is_idle = adapter_id not in self._counted
                (self._idle if is_idle else self._pages)[tenant_id] += seen.num_pages

    def over_cap(self) -> dict[str, int]:
        """By name: idle pages of a tenant beyond what its cap leaves them."""
        excess = np.minimum(self._pages + self._idle - self._cap, self._idle)
        return {self._state.tenants[i]: int(excess[i]) for i in np.flatnonzero(excess > 0)}

    def promise(self, row: int, num_pages: int) -> None:
        self._pages[self._state.tenant_id[row]] += num_pages

    def are_held_back(
        self, rows: NDArray[np.int64], kv_pages: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which of these waiting rows could not come in, whatever room there were."""
        state = self._state
        pages = self._pages[state.tenant_id[rows]] + kv_pages
        is_counted = np.isin(state.adapter_id[rows], list(self._counted))
        pages += np.where(is_counted, 0, state.adapter_pages[rows])
        return pages > self._cap

    def can_hold(self, fact: Row, kv_pages: int) -> bool:
        """`kv_pages`: that nobody uses now."""
        pages = int(self._pages[self._state.tenant_id[fact.row]])
        return pages + kv_pages + self._missing_adapter(fact) <= self._cap

    def hold(self, fact: Row, kv_pages: int) -> None:
        """A newcomer, or (with no KV) an adapter on its way for one."""
        pages = kv_pages + self._missing_adapter(fact)
        self._pages[self._state.tenant_id[fact.row]] += pages
        self._counted.add(fact.adapter_id)

    def _missing_adapter(self, fact: Row) -> int:
        return 0 if fact.adapter_id in self._counted else fact.adapter_pages

    def can_keep(self, tenant: str, num_pages: int) -> bool:
        """Whether so many more would not have to go again first of all."""
        if tenant not in self._state.tenants:  # no request of it ever came: it has adapters only
            adapters = self._view.adapters.values()
            held = sum(seen.num_pages for seen in adapters if seen.tenant == tenant)
            return held + num_pages <= self._cap
        tenant_id = self._state.tenants.index(tenant)
        return int(self._pages[tenant_id] + self._idle[tenant_id]) + num_pages <= self._cap

    def behind_doors(
        self, rows: NDArray[np.int64], barring: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which of these, in line order, stand behind one of their own tenant that bars its door:
        it was passed for too long and waits for its tenant's pages alone.
        """
        tenant_ids, length = self._state.tenant_id[rows], len(rows)
        first = np.full(len(self._state.tenants), length, np.int64)
        at = np.flatnonzero(barring)[::-1]
        first[tenant_ids[at]] = at
        return np.arange(length) > first[tenant_ids]
