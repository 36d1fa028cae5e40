"""The real link at a pace of its own, so that an episode of the fuzzer is its seed's alone.

Bytes move through the real link's threads and the real host tier; only the telling waits: what
a load has brought is said at a poll drawn beforehand, and some loads are made to fail. Used by
fuzz_episode.py.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict

from torch import Tensor

from ..adapters.errors import AdapterLoadFailed
from ..adapters.host_tier import HostImage, HostTier
from ..adapters.key import AdapterCard, AdapterKey
from ..server.execution.link import PoolLink
from ..server.memory.link_records import LinkEvent, Loaded, LoadFailed, LoadOrder

ANSWER_WITHIN_S = 30.0


class LoadLost(Exception):
    """The link has not answered an order."""


class PacedLink:
    """A `Link`; each load is told of 1 to `max_polls` polls after its order."""

    def __init__(
        self,
        host_tier: HostTier,
        pool_PE: Tensor,
        rng: random.Random,
        *,
        max_polls: int,
        fail_share: float,
    ) -> None:
        self._host_tier, self._rng = host_tier, rng
        self._max_polls, self._fail_share = max_polls, fail_share
        self._woken = threading.Semaphore(0)
        self._real = PoolLink(self, pool_PE, self._woken.release)
        self._broken: set[AdapterKey] = set()  # whose load under way is to fail
        self._polls = 0
        self._due: list[tuple[int, int]] = []  # poll number, load_id
        self._brought: defaultdict[int, list[LinkEvent]] = defaultdict(list)
        self._over: set[int] = set()  # load ids whose last event is among those brought
        self.num_broken = 0

    @property
    def num_underway(self) -> int:
        return len(self._due)

    def fetch(self, card: AdapterCard) -> HostImage:
        """The host tier as the real link sees it."""
        if card.key in self._broken:
            raise AdapterLoadFailed(f"{card.key} was made to fail", name=card.key.name)
        return self._host_tier.fetch(card)

    def start(self, order: LoadOrder) -> None:
        # One load of a key at a time: the thread that looks is this order's.
        self._broken.discard(order.card.key)
        if self._rng.random() < self._fail_share:
            self._broken.add(order.card.key)
            self.num_broken += 1
        self._due.append((self._polls + self._rng.randint(1, self._max_polls), order.load_id))
        self._real.start(order)

    def poll(self) -> list[LinkEvent]:
        self._polls += 1
        due = sorted(entry for entry in self._due if entry[0] <= self._polls)
        self._due = [entry for entry in self._due if entry[0] > self._polls]
        events: list[LinkEvent] = []
        for _, load_id in due:
            self._await(load_id)
            events += self._brought.pop(load_id)
            self._over.discard(load_id)
        return events

    def close(self) -> None:
        self._real.close()

    def _await(self, load_id: int) -> None:
        while load_id not in self._over:
            if not self._woken.acquire(timeout=ANSWER_WITHIN_S):
                raise LoadLost(f"load {load_id} has no answer after {ANSWER_WITHIN_S} s")
            for event in self._real.poll():
                self._brought[event.load_id].append(event)
                if isinstance(event, Loaded | LoadFailed):
                    self._over.add(event.load_id)
