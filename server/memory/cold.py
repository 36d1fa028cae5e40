"""Loads that may be used while they are under way: what residency knows of them for the planner.

Owns the forecast and fills the planner's `ColdView`. Does not choose how anyone starts
(scheduling/cold_start.py does) and knows no users. Told by residency of each order,
opening and end; its places and marks are residency's entries, read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...adapters.key import AdapterCard, AdapterKey
from ..scheduling.cost_model import NO_MODEL, CostModel
from ..scheduling.starts import NO_COLD_VIEW, ColdView, OnItsWay
from .forecast import LoadForecast
from .link_records import Link, Loaded, LoadFailed, Opened
from .pool import AdapterOwner, Pool
from .residency_records import Entry, Opening, Place


def _nowhere(key: AdapterKey) -> bool:
    del key
    return False


def _nobody(card: AdapterCard) -> bool:
    del card
    return False


def _all_calls(card: AdapterCard) -> float:
    del card
    return 1.0


def _no_model() -> CostModel:
    return NO_MODEL


@dataclass(frozen=True, slots=True)
class ColdFacts:
    """What others know. A server that always waits has none of it."""

    model: Callable[[], CostModel] = _no_model  # the newest one
    in_host: Callable[[AdapterKey], bool] = _nowhere  # the whole image is in host memory
    # Helpers may compute this adapter as soon as it is open: it changes no head, and one is up now.
    can_help: Callable[[AdapterCard], bool] = _nobody
    # Of the hand-overs that a step can have, those that this adapter needs.
    calls_share: Callable[[AdapterCard], float] = _all_calls
    num_readers: int = 2  # of the link


class ColdLoads:
    """A `ColdView`. `entries`, `loads`: residency's, by adapter_id, and adapter_id by load_id.
    Without facts nobody is told that a load is open.
    """

    def __init__(
        self,
        facts: ColdFacts | None,
        entries: Mapping[int, Entry],
        loads: Mapping[int, int],
        *,
        pool: Pool,
        link: Link,
    ) -> None:
        self._tells, self._facts = facts is not None, facts or ColdFacts()
        self._entries, self._loads, self._pool, self._link = entries, loads, pool, link
        self._forecast = LoadForecast(self._facts.model, num_readers=self._facts.num_readers)
        self._openings: dict[int, Opening] = {}  # by load_id, that nobody has heard of yet

    @property
    def view(self) -> ColdView:
        return self if self._tells else NO_COLD_VIEW

    def ordered(self, entry: Entry, now_s: float) -> None:
        if self._tells:
            card = entry.card
            entry.can_help = self._facts.can_help(card)
            read = not self._facts.in_host(card.key)
            self._forecast.order(entry.load_id, card.weight_bytes, now_s, read=read)

    def open(self, event: Opened, now_s: float) -> None:
        """Of a load that is over, or where nobody wants to know, its image is let go at once."""
        adapter_id = self._loads.get(event.load_id)
        if adapter_id is None or not self._tells:
            self._link.let_go(event.image)
            return
        entry = self._entries[adapter_id]
        entry.can_help &= not event.image.is_loose  # helpers see the slab alone
        self._forecast.opened(event.load_id, now_s)
        pages = self._pool.pages_of(AdapterOwner(adapter_id))
        self._openings[event.load_id] = Opening(adapter_id, entry.slot, pages, event.image)

    def over(self, event: Loaded | LoadFailed, now_s: float) -> None:
        """Whoever has not heard that it was open will not."""
        opening = self._openings.pop(event.load_id, None)
        if opening is not None:
            self._link.let_go(opening.image)
        seconds = event.seconds if isinstance(event, Loaded) else 0.0
        self._forecast.over(event.load_id, now_s, seconds=seconds)

    def take_openings(self) -> tuple[Opening, ...]:
        """For the engine; from now on it may be planned with them."""
        openings = tuple(self._openings.values())
        self._openings.clear()
        for opening in openings:
            self._entries[opening.adapter_id].is_open = True
        return openings

    def on_its_way(self, adapter_id: int, num_bytes: int, now_s: float) -> OnItsWay:
        """Of one that is LOADING; of one that is ABSENT what would be, were it ordered now."""
        entry = self._entries[adapter_id]
        if entry.place is Place.LOADING:
            is_open = entry.is_open and not entry.given_up
            can_help = is_open and entry.can_help and self._facts.can_help(entry.card)
            foretold = self._forecast.landing(entry.load_id, now_s)
        elif entry.place is Place.ABSENT:
            is_open = self._facts.in_host(entry.card.key)
            can_help = is_open and self._facts.can_help(entry.card)
            foretold = self._forecast.would(num_bytes, now_s, read=not is_open)
        else:
            return OnItsWay(now_s, now_s, now_s, is_open=True, can_help=False)
        return OnItsWay(
            landed_s=foretold.landed_s,
            begun_s=foretold.begun_s,
            held_s=foretold.held_s,
            is_open=is_open,
            can_help=can_help,
            calls_share=self._facts.calls_share(entry.card) if can_help else 1.0,
        )
