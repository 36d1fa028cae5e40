"""What the planner sees of adapters: who holds pages, and what each is worth.

Owns the views, renewed at every change of an entry, since the planner looks at each step and they
change seldom; and the two worths, of one that is here and of one that is wished for. Knows no
pages and no link. Used by residency.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ...adapters.key import AdapterCard
from ..scheduling.records import AdapterView
from .economy import Economy
from .residency_records import Entry, Place
from .usage import AdapterUsage

# A popular adapter comes back over what is worth so many times less, were it here.
WISH_MARGIN = 2.0


def any_price(card: AdapterCard) -> float:
    """Of who has no cost model: the bytes, at a gigabyte a second."""
    return card.weight_bytes / 1e9


class Shown:
    """`reload_s`: how long an adapter would take to come back, `cross_s`: if it were in host
    memory.
    """

    def __init__(
        self,
        economy: Economy,
        *,
        reload_s: Callable[[AdapterCard], float],
        cross_s: Callable[[AdapterCard], float],
    ) -> None:
        self._economy, self._reload_s, self._cross_s = economy, reload_s, cross_s
        self.placed: dict[int, AdapterView] = {}  # those not ABSENT
        self.lacked: set[int] = set()  # ABSENT with users

    def show(
        self, adapter_id: int, entry: Entry, usage: AdapterUsage | None, *, pinned: bool
    ) -> None:
        """As it is now: after every change of what `AdapterView` holds."""
        if entry.place is Place.ABSENT:
            self.placed.pop(adapter_id, None)
            (self.lacked.add if entry.num_users else self.lacked.discard)(adapter_id)
            return
        self.lacked.discard(adapter_id)
        self.placed[adapter_id] = AdapterView(
            num_pages=entry.card.num_pages,
            resident=entry.place is Place.RESIDENT,
            last_used_s=entry.last_used_s,
            worth=self._worth_of(usage) if usage else -math.inf,
            pinned=pinned,
            tenant=entry.card.key.tenant,
        )

    def wish_worth(self, usage: AdapterUsage) -> float:
        """As if it had just been brought, and less a margin: what goes for it is wished for from
        then on, and must not come back for it. What is read from disk is worth more only until it
        is here, and prices move a little with every load.
        """
        return self._worth(usage, self._cross_s(usage.card) / WISH_MARGIN)

    def _worth_of(self, usage: AdapterUsage) -> float:
        return self._worth(usage, self._reload_s(usage.card))

    def _worth(self, usage: AdapterUsage, seconds: float) -> float:
        num_pages = usage.card.num_pages
        return self._economy.adapter_worth(usage.use, num_pages=num_pages, reload_s=seconds)
