"""Wishes: what is worth having near although nobody waits for it.

Owns pins (an adapter that is to stay in the pool), what somebody asked to have brought, and whom
the last load of failed: that one is not wished for again until somebody asks. Popularity is read
off the usage book. Does not know pages, slots or loads; the planner decides whether there is room.
Told by the engine (commands) and by residency, which shows the absent ones to the planner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ...adapters.key import AdapterCard, AdapterKey
from .usage import AdapterUsage, UsageBook

# A plan looks at these few of each kind and tenant; the next ones move up when one of them is on
# its way. What one tenant's cap, or a full pool, never lets in would else hide all others.
MAX_SHOWN = 4
# Into host memory, unfulfilled; a newer one pushes the oldest out.
MAX_HOST_WISHES = 256


class Wanted(NamedTuple):
    card: AdapterCard
    worth: float  # inf: somebody said so


class Wishes:
    def __init__(
        self,
        book: UsageBook,
        *,
        worth: Callable[[AdapterUsage], float],
        changed: Callable[[AdapterKey], None],
        by_popularity: bool,
    ) -> None:
        self._book, self._worth, self._by_popularity = book, worth, by_popularity
        self._changed = changed
        # In the order they were said; a card is its key's newest.
        self._pinned: dict[AdapterKey, AdapterCard] = {}
        self._asked: dict[AdapterKey, AdapterCard] = {}  # into the pool, once
        self._host: dict[AdapterKey, AdapterCard] = {}  # into host memory, once
        self._failed: set[AdapterKey] = set()

    # Commands

    def ask(self, card: AdapterCard, now_s: float) -> None:
        """Bring it into the pool although nobody waits for it; that counts as a use."""
        self._book.wanted(card, now_s)
        self._failed.discard(card.key)
        self._asked[card.key] = card
        self._changed(card.key)

    def ask_for_host(self, card: AdapterCard) -> None:
        """Bring it into host memory, through the link's `want`."""
        self._host[card.key] = card
        if len(self._host) > MAX_HOST_WISHES:
            del self._host[next(iter(self._host))]

    def pin(self, card: AdapterCard) -> None:
        """It comes into the pool and stays there, while requests can get on beside it."""
        self._failed.discard(card.key)
        self._pinned[card.key] = card
        self._changed(card.key)

    def unpin(self, key: AdapterKey) -> None:
        self._pinned.pop(key, None)
        self._changed(key)

    # News

    def arrived(self, key: AdapterKey) -> None:
        self._asked.pop(key, None)
        self._host.pop(key, None)
        self._failed.discard(key)

    def failed(self, key: AdapterKey) -> None:
        """It could not be loaded: to try again at every step would help nobody."""
        self._asked.pop(key, None)
        self._failed.add(key)

    def forget(self, key: AdapterKey) -> None:
        """Deleted or replaced."""
        self.arrived(key)
        self._pinned.pop(key, None)

    # What is asked of them

    def is_pinned(self, key: AdapterKey) -> bool:
        return key in self._pinned

    def for_host(self, is_there: Callable[[AdapterKey], bool]) -> tuple[AdapterCard, ...]:
        """Wanted in host memory, oldest first; those that are there are wished for no more."""
        for key in [key for key in self._host if is_there(key)]:
            del self._host[key]
        return tuple(self._host.values())

    def shown(self, is_near: Callable[[AdapterKey], bool]) -> list[Wanted]:
        """Most wanted first, without those that are near; who is was brought as asked."""
        for key in [key for key in self._asked if is_near(key)]:
            del self._asked[key]
        found: dict[AdapterKey, Wanted] = {}

        def skip(key: AdapterKey) -> bool:
            return key in self._failed or key in found or is_near(key)

        for said in (self._pinned, self._asked):
            num_shown = Counter[str]()
            for key, card in said.items():
                if num_shown[key.tenant] < MAX_SHOWN and not skip(key):
                    num_shown[key.tenant] += 1
                    found[key] = Wanted(card, math.inf)
        if self._by_popularity:
            for usage in self._book.hottest(MAX_SHOWN, skip=skip):
                found[usage.card.key] = Wanted(usage.card, self._worth(usage))
        return list(found.values())
