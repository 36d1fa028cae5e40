"""The simulated host tier and the disk below it: what is held, and when a read will have ended.

One disk, one read after the other and none broken off: what a load waits for comes before what is
only wanted next, each in its order. Moves on only when it is told the time, and then through every
instant at which a read ended, so that it makes no difference how often it is told. Called by the
simulated link.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ...adapters.host_tier import HostTierStats
from ...adapters.key import AdapterCard, AdapterKey


class SimHostTier:
    """Which images the host would hold: the least recently used go first."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[AdapterKey, int] = OrderedDict()  # bytes of each
        self._num_bytes = self._peak_bytes = 0
        self._hits = self._misses = 0

    def contains(self, key: AdapterKey) -> bool:
        return key in self._kept

    def fetch(self, card: AdapterCard) -> bool:
        """A load asks for it: whether it is there."""
        if card.key in self._kept:
            self._kept.move_to_end(card.key)
            self._hits += 1
            return True
        self._misses += 1
        return False

    def keep(self, key: AdapterKey, image_bytes: int) -> None:
        """It has been read; kept unless it alone is more than the tier holds."""
        if image_bytes > self._capacity_bytes:
            return
        self.forget(key)
        self._kept[key] = image_bytes
        self._num_bytes += image_bytes
        while self._num_bytes > self._capacity_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1]
        self._peak_bytes = max(self._peak_bytes, self._num_bytes)

    def forget(self, key: AdapterKey) -> None:
        self._num_bytes -= self._kept.pop(key, 0)

    def stats(self) -> HostTierStats:
        return HostTierStats(
            bytes=self._num_bytes,
            capacity_bytes=self._capacity_bytes,
            items=len(self._kept),
            hits=self._hits,
            misses=self._misses,
            peak_bytes=self._peak_bytes,
        )


@dataclass(frozen=True, slots=True)
class _Read:
    key: AdapterKey
    image_bytes: int


class SimDisk:
    def __init__(self, host_tier: SimHostTier, bytes_per_s: float) -> None:
        self._host_tier, self._bytes_per_s = host_tier, bytes_per_s
        self._now_s = 0.0
        self._reading: _Read | None = None
        self._ends_s = 0.0  # of the read under way
        self._ordered: list[_Read] = []
        self._hinted: list[_Read] = []

    def advance(self, now_s: float) -> None:
        """To this instant; never back."""
        while self._reading is not None and self._ends_s <= now_s:
            self._host_tier.keep(self._reading.key, self._reading.image_bytes)
            self._now_s, self._reading = self._ends_s, None
            self._begin()
        self._now_s = max(self._now_s, now_s)

    def order(self, key: AdapterKey, image_bytes: int) -> None:
        """A load waits for it; one read serves all who wait."""
        if self._is_reading(key) or any(read.key == key for read in self._ordered):
            return
        self._ordered.append(_Read(key, image_bytes))
        self._begin()

    def call_off(self, key: AdapterKey) -> None:
        """Nobody waits for it any more; a read under way goes on."""
        self._ordered = [read for read in self._ordered if read.key != key]

    def hint(self, wanted: Sequence[tuple[AdapterKey, int]]) -> None:
        """Worth reading when no load waits, in this order; in place of what was before."""
        self._hinted = [_Read(*one) for one in wanted]
        self._begin()

    def end_s(self, key: AdapterKey) -> float:
        """When the read of what a load waits for will have ended."""
        ends_s = self._ends_s
        if self._is_reading(key):
            return ends_s
        for read in self._ordered:
            ends_s += read.image_bytes / self._bytes_per_s
            if read.key == key:
                return ends_s
        return math.inf

    def _is_reading(self, key: AdapterKey) -> bool:
        return self._reading is not None and self._reading.key == key

    def _begin(self) -> None:
        """The next read, if the disk is free."""
        if self._reading is not None:
            return
        while self._hinted and self._host_tier.contains(self._hinted[0].key):
            self._hinted.pop(0)
        queue = self._ordered or self._hinted
        if queue:
            self._reading = queue.pop(0)
            self._ends_s = self._now_s + self._reading.image_bytes / self._bytes_per_s
