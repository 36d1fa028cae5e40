"""The simulated link: when a load that was ordered now will have landed.

A load reads its file when the host tier does not hold it, spends `load_s` on being a load at all,
then crosses the wire. Reads share one disk (host.py) and copies one wire, each one after the other;
whoever is ready first crosses first. As many loads overlap as the planner orders (`max_loads`). No
layer landings: nothing in the planner asks for them. Polled by the engine, asked for the next event
by the replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...adapters.host_tier import HeldImage
from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard
from ...server.memory.link_records import (
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from ...server.scheduling.cost_model import CostModel
from .clock import SimClock
from .host import SimDisk, SimHostTier


@dataclass(slots=True)
class _Load:
    order: LoadOrder
    ordered_s: float
    read_end_s: float  # instant at which the host has it
    crosses_s: float = math.inf  # it begins to
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
        self._page_bytes = page_bytes
        self._disk = SimDisk(host_tier, disk_bytes_per_s)
        self._loads: list[_Load] = []  # under way, by the instant at which they are ready
        self._cancelled: list[int] = []  # to be told at the next poll
        self._wire_free_s = 0.0  # once all that have landed were across
        self.num_started = 0
        self.num_cancelled = 0

    def start(self, order: LoadOrder) -> Opened | None:
        now_s = self._now_s()
        load = _Load(order, now_s, now_s)
        if not self._host_tier.fetch(order.card):
            load.read_end_s = math.inf
            self._disk.order(order.card.key, self._image_bytes(order.card))
        self._loads.append(load)
        self.num_started += 1
        self._time_crossings(now_s)
        return None

    def cancel(self, load_id: int) -> None:
        """Whoever crosses already does so to the end."""
        now_s = self._now_s()
        for load in self._loads:
            if load.order.load_id == load_id and load.crosses_s > now_s:
                self._loads.remove(load)
                self._disk.call_off(load.order.card.key)
                self._cancelled.append(load_id)
                self.num_cancelled += 1
                self._time_crossings(now_s)
                return

    def want(self, cards: Sequence[AdapterCard]) -> None:
        self._now_s()
        self._disk.hint([(card.key, self._image_bytes(card)) for card in cards])

    def poll(self) -> list[LinkEvent]:
        now_s, events = self._now_s(), list[LinkEvent]()
        events += [LoadFailed(load_id, LoadCancelled()) for load_id in self._cancelled]
        self._cancelled.clear()
        while self._loads and self._loads[0].landed_s <= now_s:
            load = self._loads.pop(0)
            self._wire_free_s = load.landed_s
            events.append(
                Loaded(
                    load.order.load_id,
                    self._layout(load.order),
                    seconds=load.landed_s - load.ordered_s,
                    read_s=load.read_end_s - load.ordered_s,
                )
            )
        return events

    def next_event_s(self) -> float:
        """inf: nothing is on its way."""
        if self._cancelled:
            return self._clock.now_s()
        return self._loads[0].landed_s if self._loads else math.inf

    def let_go(self, image: HeldImage) -> None:
        """None is told open: there are no bytes."""

    def close(self) -> None:
        self._loads.clear()

    def _now_s(self) -> float:
        """By which the disk has got on as well."""
        now_s = self._clock.now_s()
        self._disk.advance(now_s)
        return now_s

    def _time_crossings(self, now_s: float) -> None:
        """Whoever began to cross was ready before anyone who was ordered since: he keeps his."""
        for load in self._loads:
            if load.read_end_s > now_s:
                load.read_end_s = self._disk.end_s(load.order.card.key)
        self._loads.sort(key=lambda load: load.read_end_s)
        free_s = self._wire_free_s
        for load in self._loads:
            load.crosses_s = max(free_s, load.read_end_s + self._cost.load_s)
            # Whole pages cross; the cost model is fitted, and speaks, in bytes of weights.
            weight_bytes = load.order.card.weight_bytes
            free_s = load.landed_s = load.crosses_s + weight_bytes * self._cost.load_s_per_byte

    def _image_bytes(self, card: AdapterCard) -> int:
        return card.num_pages * self._page_bytes

    def _layout(self, order: LoadOrder) -> ImageLayout:
        """Where its numbers lie concerns nobody here: how many bytes they are does."""
        return ImageLayout(
            num_pages=len(order.pages),
            tile_cols=1,
            sites=(),
            landed_pages=(len(order.pages),),
            used_elements=order.card.weight_bytes,  # an element is a byte here
        )
