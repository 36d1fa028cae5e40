"""The engine's counters over all its lives: they never fall, whoever died.

Owns what engines before this one had counted when they last said so, and the requests that
ended with them. What an engine counted after its last answer is lost: the watchdog asks every
few seconds. Called by `engine_client.py`.
"""

from __future__ import annotations

import dataclasses

from ..seam import EngineStats

# The pool's size is a total too, but not one that grows with every life.
NAMES = tuple(
    field.name
    for field in dataclasses.fields(EngineStats)
    if field.name.endswith("_total") and field.name != "pages_total"
)


class Totals:
    def __init__(self) -> None:
        self._before = dict.fromkeys(NAMES, 0)  # of the lives that have ended
        self._last: EngineStats | None = None  # of this life, as the engine counts

    def heard(self, stats: EngineStats) -> EngineStats:
        """The same record with its counters over all lives."""
        self._last = stats
        sums = {name: getattr(stats, name) + before for name, before in self._before.items()}
        return dataclasses.replace(stats, **sums)

    def engine_lost(self, num_killed: int) -> None:
        """`num_killed`: requests that were open and nobody else has counted."""
        if self._last is not None:
            for name in NAMES:
                self._before[name] += getattr(self._last, name)
            self._last = None
        self._before["requests_failed_total"] += num_killed
