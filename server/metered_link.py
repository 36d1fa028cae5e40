"""A link whose loads teach the cost model: bytes, and seconds on the wire and on the disk.

Owns what is on its way. The seconds are the link's own: an engine looks only between two steps,
and would learn how long its steps are. Those of the wire begin when it was free for the load, so
that no queue is in them; those of the disk are of loads whose image was not in host memory. Wraps
the real link in engine_process.py; residency and engine see a `Link`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters.host_tier import HeldImage
from ..adapters.key import AdapterCard
from .memory.link_records import Link, LinkEvent, Loaded, LoadFailed, LoadOrder, Opened
from .scheduling.cost_fit import CostFit


class MeteredLink:
    def __init__(self, link: Link, fit: CostFit) -> None:
        self._link, self._fit = link, fit
        self._num_bytes: dict[int, int] = {}  # of the weights of each load under way

    def start(self, order: LoadOrder) -> Opened | None:
        self._num_bytes[order.load_id] = order.card.weight_bytes
        return self._link.start(order)

    def cancel(self, load_id: int) -> None:
        self._link.cancel(load_id)

    def want(self, cards: Sequence[AdapterCard]) -> None:
        self._link.want(cards)

    def poll(self) -> Sequence[LinkEvent]:
        events = self._link.poll()
        for event in events:
            if not isinstance(event, Loaded | LoadFailed):
                continue
            num_bytes = self._num_bytes.pop(event.load_id, 0)  # 0: the second end of one load
            if num_bytes and isinstance(event, Loaded):
                if event.wire_s > 0.0:
                    self._fit.load(num_bytes, event.wire_s)
                if event.disk_s > 0.0:
                    self._fit.read(num_bytes, event.disk_s)
        return events

    def let_go(self, image: HeldImage) -> None:
        self._link.let_go(image)

    def close(self) -> None:
        self._num_bytes.clear()
        self._link.close()
