"""The link's books: which loads wait for the disk, which for the wire, and what is read ahead.

Owns the order. Reads go by order of start, which is the order of who waits; what is wanted next is
read when no order waits. Whoever is in host memory first crosses first; a load of which some layers
are there crosses with those, and while it waits for the disk, others cross. One adapter is read
once at a time, for all loads that wait for it. Knows no threads, files or pages; not for two
threads at once: link.py has the lock.
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
    image: HeldImage | None = None  # held for it; None: its cells are not known yet
    num_read: int = 0  # layers in host memory
    num_crossed: int = 0  # layers in the pool, as of the last time it was on the wire
    ready_s: float = 0.0  # instant from which the first layer that has not crossed could
    read_end_s: float = 0.0  # instant at which its whole image was in host memory
    disk_s: float = 0.0  # that reading its image took; 0: it was in host memory
    wire_s: float = 0.0  # on the wire so far
    error: Exception | None = None  # of its read, which failed while it was on the wire
    on_wire: bool = False
    is_given_up: bool = False  # cancelled, broken, or the link is closed: left at the next layer
    is_over: bool = False  # it will write no page any more

    @property
    def num_layers(self) -> int:
        assert self.image is not None, "how many there are stands in the image"
        return len(self.image.layout.landed_pages)

    @property
    def is_read(self) -> bool:
        return self.image is not None and self.num_read == self.num_layers


@dataclass(frozen=True, slots=True)
class Read:
    """One image to be read."""

    card: AdapterCard
    # Only if there is room without giving up one of these; None: an order waits for it.
    spare: frozenset[AdapterKey] | None = None


@dataclass(slots=True)
class UnderWay:
    """A read as far as it is."""

    loads: list[Load]  # that wait for the rest of it, first come first
    image: HeldImage | None = None  # None: its cells are not known yet
    num_read: int = 0  # layers in host memory


class LoadQueue:
    """`max_hints`: images read ahead at a time, so that an order need not wait for all readers."""

    def __init__(self, *, max_hints: int) -> None:
        self._max_hints = max_hints
        self._loads: dict[int, Load] = {}  # by load_id, all that are not over
        self._orders: dict[AdapterKey, list[Load]] = {}  # wait for a reader, first come first
        self._reading: dict[AdapterKey, UnderWay] = {}
        self._ready: list[Load] = []  # with a layer in host memory, first come first
        self._hints: deque[Read] = deque()
        self._num_hints = 0  # being read

    def under_way(self, key: AdapterKey) -> UnderWay | None:
        """None: nobody reads it."""
        return self._reading.get(key)

    def add(self, load: Load) -> None:
        """To the wire, with what is read of it; for the rest, to those who wait for it."""
        self._loads[load.order.load_id] = load
        if load.num_read:
            self._ready.append(load)
        if not load.is_read:
            key = load.order.card.key
            under_way = self._reading.get(key)
            waiting = under_way.loads if under_way else self._orders.setdefault(key, [])
            waiting.append(load)

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
            loads = self._orders.pop(key)
            self._reading[key] = UnderWay(loads)
            return Read(loads[0].order.card)
        while self._hints and self._num_hints < self._max_hints:
            read = self._hints.popleft()
            if read.card.key not in self._reading:
                self._reading[read.card.key] = UnderWay([])
                self._num_hints += 1
                return read
        return None

    def advance(self, read: Read, image: HeldImage, num_read: int, *, now_s: float) -> list[Load]:
        """So many layers are in host memory, of 0 their cells; the loads to which that is news.
        One without an image is given this one, and its share, by the caller.
        """
        under_way = self._reading[read.card.key]
        under_way.image, under_way.num_read = image, num_read
        told = [load for load in under_way.loads if load.image is None or load.num_read < num_read]
        for load in told:
            if load.num_crossed == load.num_read:
                load.ready_s = now_s
            if num_read and not load.num_read:
                self._ready.append(load)
            load.num_read = num_read
        return told

    def take_read(self, read: Read) -> list[Load]:
        """The read is over; who has waited for it to the end."""
        self._num_hints -= read.spare is not None
        return self._reading.pop(read.card.key).loads

    def fail_read(self, read: Read, error: Exception) -> list[Load]:
        """The loads that are over with it; one that is on the wire is told, and ends by itself."""
        over: list[Load] = []
        for load in self.take_read(read):
            load.error, load.is_given_up = error, True
            if not load.on_wire:
                self.end(load)
                over.append(load)
        return over

    def put_back(self, loads: Sequence[Load]) -> None:
        """What was read for them came to nothing: they are next."""
        if loads:
            self._orders = {loads[0].order.card.key: list(loads), **self._orders}

    def next_crossing(self) -> Load | None:
        """The first of which a layer has not crossed; on the wire from now on, until `crossed`."""
        for load in self._ready:
            if load.num_crossed < load.num_read and not load.on_wire:
                load.on_wire = True
                return load
        return None

    def crossed(self, load: Load, num_layers: int) -> None:
        """So many have, and the wire is free for others; it keeps its place."""
        load.num_crossed, load.on_wire = num_layers, False

    def end(self, load: Load) -> None:
        load.is_over = True
        self._loads.pop(load.order.load_id, None)
        if load in self._ready:
            self._ready.remove(load)
        key = load.order.card.key
        under_way = self._reading.get(key)
        for waiting in (self._orders.get(key, []), under_way.loads if under_way else []):
            if load in waiting:
                waiting.remove(load)
        if not self._orders.get(key, True):
            del self._orders[key]

    def cancel(self, load_id: int) -> Load | None:
        """The load, if it is over with that: its image, if it holds one, is the caller's to let go.

        One that crosses is told, and ends by itself.
        """
        load = self._loads.get(load_id)
        if load is None:
            return None
        load.is_given_up = True
        if load.on_wire:
            return None
        self.end(load)
        return load

    def clear(self) -> list[Load]:
        """All that are not crossing, as `cancel`; what crosses is told."""
        self._hints.clear()
        return [load for load_id in list(self._loads) if (load := self.cancel(load_id))]
