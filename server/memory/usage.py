"""The usage book: what has been asked of each adapter, also of those that are not in the pool.

Owns a use (economy.py) and counters for each adapter, and the order by heat. Bounded: the coldest
is forgotten, so that memory follows what is asked for and not what is registered. Does not know
pages, places or the link. Kept by residency: a request names an adapter, a load ends, an adapter
is deleted; read for worths, for what to fetch ahead, and for statistics.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...adapters.key import AdapterCard, AdapterKey
from .economy import Economy, Use

MAX_ADAPTERS = 10_000


@dataclass(frozen=True, slots=True)
class AdapterUsage:
    """One adapter, since it entered the book."""

    card: AdapterCard
    use: Use
    num_requests: int = 0
    num_pool_hits: int = 0  # of those, when it was in the pool already
    num_loads: int = 0  # into the pool
    num_reads: int = 0  # of those, from disk
    load_s: float = 0.0  # of all its loads, from order to landing

    @property
    def mean_load_s(self) -> float:
        """nan: there was none."""
        return self.load_s / self.num_loads if self.num_loads else math.nan


def _nobody(key: AdapterKey) -> bool:
    del key
    return False


class UsageBook:
    def __init__(self, economy: Economy, *, max_adapters: int = MAX_ADAPTERS) -> None:
        if max_adapters < 1:
            raise ValueError(f"max_adapters is {max_adapters}; it must be at least 1")
        self._economy, self._max_adapters = economy, max_adapters
        self._held: dict[AdapterKey, AdapterUsage] = {}
        # (heat, key), the coldest first: changed by a memmove at each request, and read lazily.
        self._order: list[tuple[float, AdapterKey]] = []

    def __len__(self) -> int:
        return len(self._held)

    def of(self, key: AdapterKey) -> AdapterUsage | None:
        """None: it was never asked for, or so seldom that it was forgotten."""
        return self._held.get(key)

    def asked(self, card: AdapterCard, now_s: float, *, in_pool: bool) -> AdapterUsage:
        """A request names it."""
        usage = self._held.get(card.key)
        use = self._economy.touched(usage.use if usage else None, now_s)
        before = usage or AdapterUsage(card, use)
        after = replace(
            before,
            card=card,
            num_requests=before.num_requests + 1,
            num_pool_hits=before.num_pool_hits + in_pool,
        )
        return self._write(after, use)

    def wanted(self, card: AdapterCard, now_s: float) -> AdapterUsage:
        """Somebody would have it near, and no request names it: a use all the same."""
        usage = self._held.get(card.key)
        use = self._economy.touched(usage.use if usage else None, now_s)
        return self._write(usage or AdapterUsage(card, use), use)

    def rested(self, key: AdapterKey, now_s: float) -> AdapterUsage | None:
        """The last request that named it has ended."""
        usage = self._held.get(key)
        return usage and self._write(usage, self._economy.rested(usage.use, now_s))

    def loaded(self, key: AdapterKey, *, seconds: float, read_s: float) -> None:
        """It has landed in the pool; `read_s` above 0: from disk."""
        usage = self._held.get(key)
        if usage is not None:
            self._held[key] = replace(
                usage,
                num_loads=usage.num_loads + 1,
                num_reads=usage.num_reads + (read_s > 0),
                load_s=usage.load_s + seconds,
            )

    def forget(self, key: AdapterKey) -> None:
        """It was deleted or replaced."""
        usage = self._held.pop(key, None)
        if usage is not None:
            self._strike(usage)

    def hottest(
        self, num: int, *, skip: Callable[[AdapterKey], bool] = _nobody
    ) -> tuple[AdapterUsage, ...]:
        """So many at most, the most wanted first, without those that are skipped."""
        found: list[AdapterUsage] = []
        for _, key in reversed(self._order):
            if len(found) >= num:
                break
            if not skip(key):
                found.append(self._held[key])
        return tuple(found)

    def _write(self, usage: AdapterUsage, use: Use) -> AdapterUsage:
        """Enters it with this use; the coldest goes when there are too many."""
        key = usage.card.key
        before = self._held.get(key)
        if before is not None:
            self._strike(before)
        elif len(self._held) >= self._max_adapters:
            del self._held[self._order.pop(0)[1]]
        after = self._held[key] = replace(usage, use=use)
        insort(self._order, (use.heat, key))
        return after

    def _strike(self, usage: AdapterUsage) -> None:
        place = bisect_left(self._order, (usage.use.heat, usage.card.key))
        del self._order[place]
