"""Which names stay in the pool: remembered here, because an engine forgets when it dies.

Owns the pinned names, how many pages each takes, and which version the engine that is up has been
told of. A pin follows its name: `handed_out` tells the engine of every version, in every life,
before anybody is served from it. Knows no store and no gRPC. Called by registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...adapters.key import AdapterCard, AdapterKey

Place = tuple[str, str]  # tenant and name


@dataclass(slots=True)
class Pin:
    num_pages: int  # of the version last seen
    told: AdapterKey | None  # what the engine that is up was told to keep; None: nothing yet


class Pins:
    """`tell` tells the engine to keep an adapter and returns whether one was up to hear it."""

    def __init__(self, tell: Callable[[AdapterCard], bool]) -> None:
        self._tell = tell
        self._pins: dict[Place, Pin] = {}  # names that exist, so as many as there are at most

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self._pins)

    def __contains__(self, place: Place) -> bool:
        return place in self._pins

    def pages_with(self, card: AdapterCard) -> int:
        """What the pins of its tenant would take together with this one."""
        tenant, name = card.key.tenant, card.key.name
        others = (
            pin.num_pages
            for (owner, pinned), pin in self._pins.items()
            if owner == tenant and pinned != name
        )
        return card.num_pages + sum(others)

    def add(self, card: AdapterCard) -> None:
        """The caller tells the engine, and waits for the answer."""
        self._pins[card.key.tenant, card.key.name] = Pin(card.num_pages, card.key)

    def remove(self, place: Place) -> None:
        """The caller tells the engine, unless the name is no more."""
        self._pins.pop(place, None)

    def handed_out(self, card: AdapterCard) -> None:
        pin = self._pins.get((card.key.tenant, card.key.name))
        if pin is not None and pin.told != card.key and self._tell(card):
            pin.num_pages, pin.told = card.num_pages, card.key

    def engine_lost(self) -> None:
        for pin in self._pins.values():
            pin.told = None
