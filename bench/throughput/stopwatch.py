"""Where a step's time goes: parts that nest, each charged only for what is its own.

Owns the parts open at this moment and the seconds charged to each; whoever opens an inner part
stops the outer one's clock, so that all parts together are the time of the outermost. Knows no
engine and no model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """`now_s` is read at every edge; on a GPU it waits for the device first."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._open: list[str] = []
        self._since_s = 0.0  # when the innermost open part began to be charged
        self._spent_s: dict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any], *, then: str = "") -> Any:
        """`function`, charged to `part`; afterwards what is around it is charged to `then`."""

        def run(*args: Any, **options: Any) -> Any:
            self.enter(part)
            try:
                return function(*args, **options)
            finally:
                self.leave(then)

        return run

    def enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def leave(self, then: str = "") -> None:
        self._charge()
        self._open.pop()
        if then and self._open:
            self._open[-1] = then

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        taken = dict(self._spent_s)
        self._spent_s.clear()
        return taken

    def _charge(self) -> None:
        now_s = self._now_s()
        if self._open:
            self._spent_s[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s
