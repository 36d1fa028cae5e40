"""The real link at a pace of its own, so that an episode of the fuzzer is its seed's alone.

Bytes move through the real link's threads and the real host tier, but only when they are due: what
a load brings comes, and is said, at a poll drawn beforehand, and until then its pages hold what
they held. Some loads are made to fail, some orders to be cancelled too late. Used by
fuzz_episode.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..adapters.errors import AdapterError
from ..adapters.host_tier import HeldImage, HostTier
from ..adapters.key import AdapterCard, AdapterKey
from ..server.execution.link import PoolLink
from ..server.memory.link_records import (
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)

ANSWER_WITHIN_S = 30.0
CANCEL_SHARE = 0.75  # of the orders that are cancelled: the others are as good as there


class LoadLost(Exception):
    """The link has not answered an order."""


@dataclass(slots=True)
class _Due:
    poll: int  # the number of the one that tells of it
    order: LoadOrder
    is_broken: bool
    is_cancelled: bool = False


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
        self._host_tier, self._pool_PE, self._rng = host_tier, pool_PE, rng
        self._max_polls, self._fail_share = max_polls, fail_share
        self._woken = threading.Semaphore(0)
        self._real = PoolLink(host_tier, pool_PE, self._woken.release)
        self._polls = 0
        self._due: dict[int, _Due] = {}  # by load_id
        self.num_broken = self.num_cancelled = self.num_read_ahead = 0

    @property
    def num_underway(self) -> int:
        return len(self._due)

    def start(self, order: LoadOrder) -> Opened | None:
        is_broken = self._rng.random() < self._fail_share
        self.num_broken += is_broken
        poll = self._polls + self._rng.randint(1, self._max_polls)
        self._due[order.load_id] = _Due(poll, order, is_broken)
        return None

    def cancel(self, load_id: int) -> None:
        due = self._due.get(load_id)
        if due is not None and self._rng.random() < CANCEL_SHARE:
            self.num_cancelled += not due.is_cancelled
            due.is_cancelled = True

    def want(self, cards: Sequence[AdapterCard]) -> None:
        """Reads some of them before it returns: a thread would do so at a time of its own."""
        count = self._rng.randint(0, len(cards))
        spare = set[AdapterKey]()
        for card in cards[:count]:
            try:
                image = self._host_tier.read_ahead(card, spare)
            except AdapterError:
                continue  # its file is gone; a load would tell
            spare.add(card.key)
            if image is not None:
                self._host_tier.let_go(image)
                self.num_read_ahead += 1

    def poll(self) -> list[LinkEvent]:
        self._polls += 1
        ready = sorted(
            (due for due in self._due.values() if due.poll <= self._polls),
            key=lambda due: (due.poll, due.order.load_id),
        )
        events: list[LinkEvent] = []
        for due in ready:
            del self._due[due.order.load_id]
            events += self._carry(due)
        return events

    def let_go(self, image: HeldImage) -> None:
        """None is told open: a step would wait for layers that come when they are polled for."""

    def close(self) -> None:
        self._real.close()

    def _carry(self, due: _Due) -> list[LinkEvent]:
        """All that the real link says of it."""
        order = due.order
        if due.is_cancelled:
            return [LoadFailed(order.load_id, LoadCancelled(f"{order.card.key}"))]
        if due.is_broken:
            self._host_tier.forget(order.card.key)
            order = replace(order, card=replace(order.card, image_path=Path("made to fail")))
        self._real.start(order)
        events: list[LinkEvent] = []
        while not (events and isinstance(events[-1], Loaded | LoadFailed)):
            if not self._woken.acquire(timeout=ANSWER_WITHIN_S):
                raise LoadLost(f"load {order.load_id} has no answer after {ANSWER_WITHIN_S} s")
            events += self._real.poll()
        return events
