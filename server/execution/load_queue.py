"""The link's books: which loads wait for the disk, which for the wire, and what is read ahead.

Owns the order. Reads go by order of start, which is the order of who waits; what is wanted next is
read when no order waits. Whoever is in host memory first crosses first. One adapter is read once
at a time, for all loads that wait for it. Knows no threads, files or pages; not for two threads at
once: link.py has the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ...adapters.host_tier import HeldImage
from ...adapters.key import AdapterCard, AdapterKey
from ..memory.link_records import LoadOrder


@dataclass(slots=True, eq=False)
class Load:
    """One order on its way."""

    order: LoadOrder
    ordered_s: float  # instant
    freed: torch.cuda.Event | None = None  # the point of the stream where its pages were let go
    image: HeldImage | None = None  # held for it; None: not in host memory yet
    ready_s: float = 0.0  # instant from which it could cross
    disk_s: float = 0.0  # that reading its image took; 0: it was in host memory
    is_given_up: bool = False  # cancelled, or the link is closed: to be left at the next layer
    is_over: bool = False  # it will write no page any more


@dataclass(frozen=True, slots=True)
class Read:
    """One image to be read."""

    card: AdapterCard
    # Only if there is room without giving up one of these; None: an order waits for it.
    spare: frozenset[AdapterKey] | None = None


class LoadQueue:
    """`max_hints`: images read ahead at a time, so that an order need not wait for all readers."""

    def __init__(self, *, max_hints: int) -> None:
        self._max_hints = max_hints
        self._loads: dict[int, Load] = {}  # by load_id, all that are not over
        self._orders: dict[AdapterKey, list[Load]] = {}  # wait for a reader, first come first
        self._reading: dict[AdapterKey, list[Load]] = {}  # wait for a read under way
        self._ready: deque[Load] = deque()  # wait for the wire
        self._hints: deque[Read] = deque()
        self._num_hints = 0  # being read

    def add(self, load: Load) -> None:
        """To the wire, when it holds its image; else to those who wait for it."""
        self._loads[load.order.load_id] = load
        if load.image is not None:
            self._ready.append(load)
            return
        key = load.order.card.key
        waiting = self._reading if key in self._reading else self._orders
        waiting.setdefault(key, []).append(load)

    def want(self, cards: Sequence[AdapterCard], here: Collection[AdapterKey]) -> None:
        """Read those that are not `here`, in this order, in place of what was wanted before."""
        keys = [card.key for card in cards]
        self._hints = deque(
            Read(card, frozenset(keys[:count]))
            for count, card in enumerate(cards)
            if card.key not in here
        )

    def next_read(self) -> Read | None:
        """Which is under way from now on, until `take_read`."""
        if self._orders:
            key = next(iter(self._orders))
            loads = self._reading[key] = self._orders.pop(key)
            return Read(loads[0].order.card)
        while self._hints and self._num_hints < self._max_hints:
            read = self._hints.popleft()
            if read.card.key not in self._reading:
                self._reading[read.card.key] = []
                self._num_hints += 1
                return read
        return None

    def take_read(self, read: Read) -> list[Load]:
        """The read is over; who has waited for it."""
        self._num_hints -= read.spare is not None
        return self._reading.pop(read.card.key)

    def put_back(self, loads: Sequence[Load]) -> None:
        """What was read for them came to nothing: they are next."""
        if loads:
            self._orders = {loads[0].order.card.key: list(loads), **self._orders}

    def next_crossing(self) -> Load | None:
        """Its image is held, and let go by whoever takes it."""
        return self._ready.popleft() if self._ready else None

    def end(self, load: Load) -> None:
        load.is_over = True
        self._loads.pop(load.order.load_id, None)

    def cancel(self, load_id: int) -> Load | None:
        """The load, if it is over with that: its image, if it holds one, is the caller's to let go.

        One that crosses is told, and ends by itself.
        """
        load = self._loads.get(load_id)
        if load is None:
            return None
        load.is_given_up = True
        if load.image is not None:
            if load not in self._ready:
                return None
            self._ready.remove(load)
        else:
            key = load.order.card.key
            for waiting in (self._orders, self._reading):
                if load in waiting.get(key, ()):
                    waiting[key].remove(load)
            if not self._orders.get(key, True):
                del self._orders[key]
        self.end(load)
        return load

    def clear(self) -> list[Load]:
        """All that are not crossing, as `cancel`; what crosses is told."""
        self._hints.clear()
        return [load for load_id in list(self._loads) if (load := self.cancel(load_id))]
