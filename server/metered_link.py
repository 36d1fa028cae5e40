"""A link whose loads teach the cost model: bytes, bytes ordered before, and seconds.

Owns what is on its way. The seconds are the link's own, from order to landing: an engine looks
only between two steps, and would learn how long its steps are. Wraps the real link in
engine_process.py; residency and engine see a `Link`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .memory.link_records import LayerLanded, Link, LinkEvent, Loaded, LoadOrder
from .scheduling.cost_fit import CostFit


class _Ordered(NamedTuple):
    num_bytes: int
    queued_bytes: int  # of loads that were on their way when it was ordered


class MeteredLink:
    def __init__(self, link: Link, fit: CostFit) -> None:
        self._link, self._fit = link, fit
        self._orders: dict[int, _Ordered] = {}

    def start(self, order: LoadOrder) -> None:
        queued_bytes = sum(ordered.num_bytes for ordered in self._orders.values())
        self._orders[order.load_id] = _Ordered(order.card.weight_bytes, queued_bytes)
        self._link.start(order)

    def poll(self) -> Sequence[LinkEvent]:
        events = self._link.poll()
        for event in events:
            if isinstance(event, LayerLanded):
                continue
            ordered = self._orders.pop(event.load_id, None)  # None: the second end of one load
            if ordered and isinstance(event, Loaded) and event.seconds > 0.0:
                self._fit.load(ordered.num_bytes, event.seconds, queued_bytes=ordered.queued_bytes)
        return events

    def close(self) -> None:
        self._orders.clear()
        self._link.close()
