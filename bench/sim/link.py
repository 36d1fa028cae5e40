"""The simulated link and host tier: when a load that was ordered now will have landed.

A load reads its file when the host tier does not hold it, spends `load_s` on being a load at all,
then crosses the wire. Reads share one disk and copies one wire, each one after the other; whoever
is ready first crosses first. The real link (server/execution/link.py) copies from two threads,
which share the wire: two loads there end closer together, the last of them at the same instant.
As many loads overlap as the planner orders (`max_loads`), which is as many as the link has
threads. No layer landings: nothing in the planner asks for them. Polled by the engine, asked for
the next event by the replica.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from ...adapters.host_tier import HostTierStats
from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard, AdapterKey
from ...server.memory.link_records import LinkEvent, Loaded, LoadOrder
from ...server.scheduling.cost_model import CostModel
from .clock import SimClock


class SimHostTier:
    """Which images the host would hold: the least recently used go first."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[AdapterKey, int] = OrderedDict()  # bytes of each
        self._num_bytes = 0
        self._hits = self._misses = 0

    def fetch(self, card: AdapterCard, image_bytes: int) -> bool:
        """Whether it was there; it is afterwards, unless it alone is more than the tier holds."""
        if card.key in self._kept:
            self._kept.move_to_end(card.key)
            self._hits += 1
            return True
        self._misses += 1
        if image_bytes <= self._capacity_bytes:
            self._kept[card.key] = image_bytes
            self._num_bytes += image_bytes
            while self._num_bytes > self._capacity_bytes:
                self._num_bytes -= self._kept.popitem(last=False)[1]
        return False

    def forget(self, key: AdapterKey) -> None:
        self._num_bytes -= self._kept.pop(key, 0)

    def stats(self) -> HostTierStats:
        return HostTierStats(
            bytes=self._num_bytes,
            capacity_bytes=self._capacity_bytes,
            items=len(self._kept),
            hits=self._hits,
            misses=self._misses,
        )


@dataclass(slots=True)
class _Load:
    order: LoadOrder
    num_bytes: int  # of its weights
    ready_s: float  # instant at which it may cross
    landed_s: float = math.inf


class SimLink:
    """A `Link` whose loads land at instants of the simulated clock."""

    def __init__(
        self,
        clock: SimClock,
        host_tier: SimHostTier,
        cost: CostModel,
        *,
        page_bytes: int,
        disk_bytes_per_s: float,
    ) -> None:
        self._clock, self._host_tier, self._cost = clock, host_tier, cost
        self._page_bytes, self._disk_bytes_per_s = page_bytes, disk_bytes_per_s
        self._loads: list[_Load] = []  # under way, by the instant at which they are ready
        self._disk_free_s = 0.0
        self._wire_free_s = 0.0  # once all that have landed were across
        self.num_started = 0

    def start(self, order: LoadOrder) -> None:
        image_bytes = len(order.pages) * self._page_bytes
        read_s = self._clock.now_s()
        if not self._host_tier.fetch(order.card, image_bytes):
            read_s = max(self._disk_free_s, read_s) + image_bytes / self._disk_bytes_per_s
            self._disk_free_s = read_s
        # Whole pages cross; the cost model is fitted, and speaks, in bytes of weights.
        num_bytes = order.card.weight_bytes
        self._loads.append(_Load(order, num_bytes, read_s + self._cost.load_s))
        self._loads.sort(key=lambda load: load.ready_s)
        self.num_started += 1
        self._time_crossings()

    def poll(self) -> list[LinkEvent]:
        now_s, events = self._clock.now_s(), list[LinkEvent]()
        while self._loads and self._loads[0].landed_s <= now_s:
            load = self._loads.pop(0)
            self._wire_free_s = load.landed_s
            events.append(Loaded(load.order.load_id, self._layout(load.order)))
        return events

    def next_event_s(self) -> float:
        """inf: nothing is on its way."""
        return self._loads[0].landed_s if self._loads else math.inf

    def close(self) -> None:
        self._loads.clear()

    def _time_crossings(self) -> None:
        """Whoever began to cross was ready before anyone who was ordered since: he keeps his."""
        free_s = self._wire_free_s
        for load in self._loads:
            free_s = max(free_s, load.ready_s) + load.num_bytes * self._cost.load_s_per_byte
            load.landed_s = free_s

    def _layout(self, order: LoadOrder) -> ImageLayout:
        """Where its numbers lie concerns nobody here: how many bytes they are does."""
        return ImageLayout(
            num_pages=len(order.pages),
            tile_cols=1,
            sites=(),
            landed_pages=(len(order.pages),),
            used_elements=order.card.weight_bytes,  # an element is a byte here
        )
