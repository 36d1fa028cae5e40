"""The parts of a bench, one after the other: a part that fails stops no other.

Owns what each part took, which were not run and which failed, with the reason. Does not know what
a part measures. Made by the commands of `lorry bench sim` and `lorry bench memory`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Made = TypeVar("Made")


class Attempts:
    """`ends`: the errors that end a part alone; any other is a bug, and ends the bench."""

    def __init__(
        self,
        parts: Sequence[str],
        *,
        wanted: Sequence[str],
        ends: tuple[type[Exception], ...],
        tell: Callable[[str], None],
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ends, self._tell, self._now_s = ends, tell, now_s
        self.took_s: dict[str, float] = {}
        self.not_run = {part: "left out by --only" for part in parts if part not in wanted}
        self.failed: list[str] = []  # a line each, the part's name first

    def attempt(self, part: str, make: Callable[[], Made]) -> Made | None:
        """None: it was not wanted, or has failed."""
        if part in self.not_run:
            return None
        began_s = self._now_s()
        try:
            return make()
        except self._ends as failure:
            self.failed.append(f"{part}: {failure}")
            self.not_run[part] = f"failed: {failure}"
            return None
        finally:
            self.took_s[part] = self._now_s() - began_s
            self._tell(f"{part}: {self.took_s[part]:.0f} s")
