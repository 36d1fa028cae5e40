"""One simulated replica: the real engine, its simulated surroundings, and its turns.

Takes the engine's turns one by one, or leaps over those that are alike. Each replica has a clock
of its own; simulate.py sees to it that they keep abreast where requests are handed out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ...server.engine import Engine
from ...server.scheduling.prefix_view import NO_PREFIXES
from ...server.scheduling.records import BASE_ID
from ...server.scheduling.replica_view import ReplicaView, look_at
from .leap import Leaper
from .parts import Door, SimParts
from .stamping import StampBook


class Replica:
    def __init__(self, parts: SimParts, book: StampBook, *, leaps: bool) -> None:
        self.parts, self.engine = parts, Engine(parts.engine)
        self._leaper, self._leaps = Leaper(parts, self.engine, book), leaps
        self._patience_s = math.inf  # how long the engine sleeps unless something comes

    @property
    def num_leapt(self) -> int:
        return self._leaper.num_leapt

    def run_until(self, instant_s: float) -> None:
        """Takes every turn that begins before then; the last one's step may end after it."""
        while self.parts.end.turn_s(self._patience_s) < instant_s:
            if not self._leaps:
                self._patience_s = self.engine.step(self._patience_s)
            elif self._patience_s > 0 or not self._leaper.leap(instant_s):
                self._take_turn()

    def view(self, door: Door, number: int) -> ReplicaView:
        """What a router may know; adapters under their numbers at the door."""
        parts, names = self.parts, self.parts.residency

        def renamed(handles: Iterable[int]) -> frozenset[int]:
            return frozenset(
                BASE_ID if handle == BASE_ID else door.number_of(names.key_of(handle).name)
                for handle in handles
            )

        seen = look_at(
            parts.state,
            names.view(parts.engine.gate.tokens_per_page, NO_PREFIXES),
            replica_id=number,
        )
        return replace(
            seen,
            resident=renamed(seen.resident),
            queue_adapters=renamed(seen.queue_adapters),
            decode_adapters=renamed(seen.decode_adapters),
        )

    def _take_turn(self) -> None:
        began_s = self.parts.end.turn_s(self._patience_s)
        self._leaper.note_turn()
        self._patience_s = self.engine.step(self._patience_s)
        self._leaper.note_turn_taken(began_s)
