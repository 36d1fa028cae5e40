"""The engine's end of the seam, simulated: requests arrive when they are due, reports are heard.

Holds what is on its way to this engine, by the instant at which it gets there. Blocking is moving
the clock: to the next arrival, the next landing of a load, or the end of the engine's patience.
Given to the engine by replica.py, which also asks it what comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush

from ...server.seam import Command, Report, Submit
from .clock import SimClock
from .link import SimLink
from .stamping import StampBook


class SimEnd:
    """`submit_of` makes the command of a request, by its number, when it arrives."""

    def __init__(
        self,
        clock: SimClock,
        link: SimLink,
        book: StampBook,
        *,
        submit_of: Callable[[int, float], Submit],
    ) -> None:
        self._clock, self._link, self._book = clock, link, book
        self._submit_of = submit_of
        self._inbox: list[tuple[float, int]] = []  # (instant, request), a heap
        self.num_received = 0

    @property
    def num_coming(self) -> int:
        return len(self._inbox)

    def send_in(self, request: int, arrival_s: float) -> None:
        """From the front end: it gets here at that instant."""
        heappush(self._inbox, (arrival_s, request))

    def next_arrival_s(self) -> float:
        """inf: nothing more is on its way."""
        return self._inbox[0][0] if self._inbox else math.inf

    def turn_s(self, patience_s: float) -> float:
        """The instant at which an engine that blocks for so long gets on."""
        now_s = self._clock.now_s()
        if patience_s <= 0:
            return now_s
        event_s = min(self.next_arrival_s(), self._link.next_event_s())
        return max(now_s, min(event_s, now_s + patience_s))

    def receive(self, timeout_s: float) -> list[Command]:
        instant_s = self.turn_s(timeout_s)
        if math.isinf(instant_s):
            raise EOFError  # nobody will ever say anything again
        self._clock.reach(instant_s)
        commands: list[Command] = []
        while self._inbox and self._inbox[0][0] <= instant_s:
            arrival_s, request = heappop(self._inbox)
            commands.append(self._submit_of(request, arrival_s))
        self.num_received += len(commands)
        return commands

    def send(self, report: Report) -> None:
        self._book.hear(report, self._clock.now_s())

    def wake(self) -> None:
        """A load's landing ends the wait by its instant; there is nobody else to wake for."""
