"""The one place that reads the time.

A `Clock` is handed to whoever needs an instant, so that tests own the time. Instants are
`now_s`, seconds of one process's monotonic clock; they never cross a process: durations do.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds of a monotonic clock with an arbitrary zero."""

    def now_s(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


def unix_now_s() -> float:
    """Wall-clock seconds since 1970, for records that people read."""
    return time.time()
