"""News of adapters: what the link has brought, what could not be brought, and who has gone.

Keeps the runner's slots and the host tier in step with what residency holds, holds the images of
slots whose pages are on their way, and ends the requests of an adapter that will not come. Decides
neither loads nor evictions (the plan does).
Called by engine.py, at the start of a step and whenever an adapter may have departed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from ..adapters.host_tier import HeldImage
from ..adapters.key import AdapterCard, AdapterKey
from .engine_parts import EngineParts
from .errors import InternalError
from .intake import unfit_adapter
from .lives import Lives
from .memory.residency_records import Arrived, Broken, Opening, Place
from .outbox import Outbox
from .reuse import Reuse
from .seam import AdapterResidency, Prefetch, Released, ResidencyAnswer
from .stats import Counters

# Adapters of the line that the link hears of before they are ordered.
MAX_AHEAD = 16

_log = logging.getLogger(__name__)


class AdapterNews:
    def __init__(
        self,
        parts: EngineParts,
        *,
        lives: Lives,
        counters: Counters,
        outbox: Outbox,
        reuse: Reuse,
    ) -> None:
        self._state, self._residency, self._link = parts.state, parts.residency, parts.link
        self._runner, self._host_tier = parts.runner, parts.host_tier
        self._attach_cold = parts.cold.attach
        self._lives, self._counters, self._outbox = lives, counters, outbox
        self._reuse, self._gate = reuse, parts.gate
        self._ahead: tuple[AdapterKey, ...] = ()  # what the link was told last
        self._held: dict[int, HeldImage] = {}  # by slot that is attached cold: its image

    def take_in(self, now_s: float) -> None:
        """What the link has brought since the last step."""
        news = self._residency.drain(self._link.poll(), now_s)
        self.detach_departed()
        for item in news:
            match item:
                case Opening():
                    self._open(item)
                case Arrived():
                    self._attach(item, now_s)
                case Broken(adapter_id=adapter_id, error=error):
                    self._give_up(adapter_id, error)

    def open(self, openings: Iterable[Opening]) -> None:
        """Of a plan's loads, those that may be used at once; after the departed were detached."""
        for opening in openings:
            self._open(opening)

    def is_open(self, slot: int) -> bool:
        """Whether rows may run on a slot whose pages are on their way."""
        return slot in self._held

    def close(self) -> None:
        """The engine ends: no helper reads an image any more."""
        for slot in tuple(self._held):
            self._detach(slot)

    def forget(self, key: AdapterKey) -> None:
        """Deleted or replaced: it goes with its last user."""
        self._reuse.forget(key)
        self._residency.doom(key)
        self.detach_departed()

    def prefetch(self, wish: Prefetch, now_s: float) -> None:
        """Somebody would have it near, or stay; one that could never run is left where it is. To
        take a pin away moves nothing.
        """
        card, wishes = wish.card, self._residency.wishes
        fits = card.num_pages <= self._gate.max_adapter_pages
        if wish.pinned is False:
            wishes.unpin(card.key)
        elif fits and unfit_adapter(card, self._gate) is None:
            if wish.pinned:
                wishes.pin(card)
            if wish.to_pool:
                wishes.ask(card, now_s)
            else:
                wishes.ask_for_host(card)
        self.tell_residency(wish.query_id, (card.key,))

    def tell_residency(self, query_id: int, keys: Sequence[AdapterKey]) -> None:
        self._outbox.put(ResidencyAnswer(query_id, tuple(self._met(key) for key in keys)))

    def look_ahead(self) -> None:
        """Tells the link whose images will be ordered next, when that has changed."""
        cards = [*self._absent_in_line(), *self._residency.wishes.for_host(self._in_host)]
        ahead = tuple(card.key for card in cards)
        if ahead != self._ahead:
            self._ahead = ahead
            self._link.want(cards)

    def _absent_in_line(self) -> list[AdapterCard]:
        adapter_ids = self._state.absent_adapters(MAX_AHEAD)
        cards = [self._residency.absent_card(adapter_id) for adapter_id in adapter_ids]
        return [card for card in cards if card is not None]

    def _in_host(self, key: AdapterKey) -> bool:
        return self._host_tier.contains(key)

    def _met(self, key: AdapterKey) -> AdapterResidency:
        met = self._residency.met(key)
        place = met.place.value
        if met.place is Place.ABSENT:
            place = "host" if self._in_host(key) else "disk"
        elif met.place is Place.RESIDENT:
            place = "pool"
        usage = met.usage
        return AdapterResidency(
            key=key,
            place=place,
            pinned=met.pinned,
            num_pages=met.num_pages,
            num_users=met.num_users,
            num_requests=usage.num_requests if usage else 0,
            num_pool_hits=usage.num_pool_hits if usage else 0,
            num_loads=usage.num_loads if usage else 0,
            num_reads=usage.num_reads if usage else 0,
            load_s=usage.mean_load_s if usage else math.nan,
        )

    def detach_departed(self) -> None:
        for gone in self._residency.take_departed():
            if gone.slot >= 0:
                self._detach(gone.slot)
            if gone.released:
                self._host_tier.forget(gone.key)
                self._outbox.put(Released(gone.key))

    def _detach(self, slot: int) -> None:
        self._runner.detach(slot)
        self._let_go(slot)

    def _let_go(self, slot: int) -> None:
        image = self._held.pop(slot, None)
        if image is not None:
            self._link.let_go(image)

    def _open(self, opening: Opening) -> None:
        try:
            self._attach_cold(opening.slot, opening.image, opening.pages)
        except ValueError as error:  # a bug, and those who wait for it to arrive hear of it then
            _log.warning("an adapter on its way cannot be used before it is there: %s", error)
            self._link.let_go(opening.image)
            self._residency.shut(opening.adapter_id)
            return
        self._held[opening.slot] = opening.image

    def _attach(self, arrived: Arrived, now_s: float) -> None:
        adapter_id = arrived.adapter_id
        try:
            self._runner.attach(arrived.slot, arrived.layout, arrived.pages)
        except ValueError as error:  # a bug, and still one adapter's alone
            self._residency.expel(adapter_id)
            self._give_up(adapter_id, InternalError(str(error)))
            return
        self._let_go(arrived.slot)
        self._counters.adapter_loads += 1
        self._state.adapter_arrived(adapter_id, now_s)

    def _give_up(self, adapter_id: int, error: Exception) -> None:
        _log.warning("an adapter could not be loaded: %s", error)
        self._lives.end_those_of(adapter_id, error)
