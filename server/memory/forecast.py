"""When loads will have landed: the link's queue, foretold.

Owns what is on its way, in the order of the orders, and what the link does with it: readers bring
images from disk, side by side; one wire carries them, one after the other, whoever may cross first
in front. Seconds come from the cost model as it is now. Corrected whenever a load turns out to be
open, or over; one that is late is foretold to take as long again as it is late. Knows no adapters
and no clock. Asked by residency (cold.py) for the planner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import NamedTuple

from ..scheduling.cost_model import CostModel


class Landing(NamedTuple):
    """Of one load; instants."""

    begun_s: float  # the wire is free for it, and its first pages are in host memory
    landed_s: float  # it is in the pool
    held_s: float  # it is in host memory


@dataclass(slots=True)
class _Order:
    num_bytes: int
    ordered_s: float  # instant
    read: bool  # it was not in host memory
    opened_s: float = math.inf  # instant; its file is being read since, or before


class LoadForecast:
    """`num_readers`: images read at a time."""

    def __init__(self, model: Callable[[], CostModel], *, num_readers: int = 2) -> None:
        self._model, self._num_readers = model, num_readers
        self._orders: dict[int, _Order] = {}  # by load_id
        self._wire_free_s = -math.inf  # instant at which the last load was over
        self._asked_s = math.nan  # instant of what is kept below
        self._landings: dict[int, Landing] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def order(self, load_id: int, num_bytes: int, now_s: float, *, read: bool) -> None:
        """`read`: from disk."""
        self._orders[load_id] = _Order(num_bytes, now_s, read)
        self._changed()

    def opened(self, load_id: int, now_s: float) -> None:
        """Its file is open: reading has begun."""
        order = self._orders.get(load_id)
        if order is not None and order.read:
            order.opened_s = min(order.opened_s, now_s)
            self._changed()

    def over(self, load_id: int, now_s: float, *, seconds: float = 0.0) -> None:
        """It has landed, or will not; `seconds` after its order, where somebody measured that."""
        order = self._orders.pop(load_id, None)
        if order is None:
            return
        ended_s = min(order.ordered_s + seconds, now_s) if seconds > 0.0 else now_s
        self._wire_free_s = max(self._wire_free_s, ended_s)
        self._changed()

    def landing(self, load_id: int, now_s: float) -> Landing:
        """Of one that was ordered and is not over."""
        return self._all(now_s)[load_id]

    def would(self, num_bytes: int, now_s: float, *, read: bool) -> Landing:
        """Of one that were ordered now, behind all that is on its way."""
        landings = self._all(now_s)
        wire_s = max([now_s, *(landing.landed_s for landing in landings.values())])
        model, begun_s, held_s = self._model(), now_s, now_s
        if read:
            begun_s = self._readers(now_s, model)[0]
            held_s = begun_s + model.read_s_per_byte * num_bytes
        return _cross(num_bytes, max(wire_s, begun_s), held_s, model)

    def _changed(self) -> None:
        self._asked_s = math.nan

    def _all(self, now_s: float) -> dict[int, Landing]:
        if self._asked_s != now_s:
            self._asked_s, self._landings = now_s, self._foretell(now_s)
        return self._landings

    def _foretell(self, now_s: float) -> dict[int, Landing]:
        model, readers = self._model(), [-math.inf] * self._num_readers
        coming = [
            (*self._reading(order, readers, model, now_s), load_id, order)
            for load_id, order in self._orders.items()
        ]
        landings: dict[int, Landing] = {}
        wire_s = self._wire_free_s
        # First come, first carried: load ids rise, so equal instants keep the order of the orders.
        for ready_s, held_s, load_id, order in sorted(coming, key=lambda one: (one[0], one[2])):
            landing = _cross(order.num_bytes, max(wire_s, ready_s), held_s, model)
            landing = landing._replace(landed_s=_not_yet(landing.landed_s, now_s))
            landings[load_id], wire_s = landing, landing.landed_s
        return landings

    def _reading(
        self, order: _Order, readers: list[float], model: CostModel, now_s: float
    ) -> tuple[float, float]:
        """Instants: its first pages are in host memory, and its last."""
        if not order.read:
            return order.ordered_s, order.ordered_s
        began_s = order.opened_s
        if began_s == math.inf:  # not yet
            began_s = max(order.ordered_s, readers[0], now_s)
        held_s = _not_yet(began_s + model.read_s_per_byte * order.num_bytes, now_s)
        heapreplace(readers, held_s)
        return began_s, held_s

    def _readers(self, now_s: float, model: CostModel) -> list[float]:
        """A heap of instants at which readers are free; none before now."""
        readers = [-math.inf] * self._num_readers
        for order in self._orders.values():
            self._reading(order, readers, model, now_s)
        readers = [max(free_s, now_s) for free_s in readers]
        heapify(readers)
        return readers


def _cross(num_bytes: int, begun_s: float, held_s: float, model: CostModel) -> Landing:
    """Its layers follow each other from the disk: it has landed no sooner than it was read."""
    landed_s = max(begun_s + model.load_time_s(num_bytes), held_s)
    return Landing(begun_s, landed_s, held_s)


def _not_yet(foretold_s: float, now_s: float) -> float:
    """It should have happened and has not: nobody knows why, and it may take as long again."""
    return foretold_s if foretold_s >= now_s else now_s + (now_s - foretold_s)
