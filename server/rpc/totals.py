"""The engine's counters over all its lives: they never fall, whoever died.

Owns what engines before this one had counted when they last said so, and the requests that
ended with them. What an engine counted after its last answer is lost: the watchdog asks every
few seconds. Called by `engine_client.py`.
"""

from __future__ import annotations

import dataclasses

from ..seam import ColdStats, EngineStats, MemoryStats

# The pool's size is a total too, but not one that grows with every life.
NAMES = tuple(
    field.name
    for field in dataclasses.fields(EngineStats)
    if field.name.endswith("_total") and field.name != "pages_total"
)
# Of memory's record, whose other fields say how it is now.
MEMORY_NAMES = (
    "prefix_lookup_tokens",
    "prefix_hit_tokens",
    "prefix_evictions",
    "preempted_tokens_kept",
    "host_hits",
    "host_misses",
    "prefetches",
    "loads_cancelled",
    "requests_with_adapter",
    "pool_hits",
)
# Of the record of cold starts.
COLD_NAMES = ("wait", "stream", "assist", "lost_rows", "helper_restarts")


class Totals:
    def __init__(self) -> None:
        self._before: dict[str, int] = dict.fromkeys(NAMES, 0)  # of the lives that have ended
        self._memory_before: dict[str, int] = dict.fromkeys(MEMORY_NAMES, 0)
        self._cold_before: dict[str, int] = dict.fromkeys(COLD_NAMES, 0)
        self._last: EngineStats | None = None  # of this life, as the engine counts

    def heard(self, stats: EngineStats) -> EngineStats:
        """The same record with its counters over all lives."""
        self._last = stats
        memory = dataclasses.replace(stats.memory, **_sums(stats.memory, self._memory_before))
        cold = dataclasses.replace(stats.cold, **_sums(stats.cold, self._cold_before))
        return dataclasses.replace(stats, memory=memory, cold=cold, **_sums(stats, self._before))

    def engine_lost(self, num_killed: int) -> None:
        """`num_killed`: requests that were open and nobody else has counted."""
        if self._last is not None:
            self._before = _sums(self._last, self._before)
            self._memory_before = _sums(self._last.memory, self._memory_before)
            self._cold_before = _sums(self._last.cold, self._cold_before)
            self._last = None
        self._before["requests_failed_total"] += num_killed


def _sums(record: EngineStats | MemoryStats | ColdStats, before: dict[str, int]) -> dict[str, int]:
    return {name: getattr(record, name) + count for name, count in before.items()}
