"""The simulated clock: time moves when the simulator says so, and only forward.

One for each replica. Handed to the engine in place of the machine's clock (server/clock.py);
moved by the runner for the length of a step, and by the engine's end while nothing runs.
"""

from __future__ import annotations


class SimClock:
    def __init__(self) -> None:
        self.time_s = 0.0  # from the start of the run

    def now_s(self) -> float:
        return self.time_s

    def pass_s(self, seconds: float) -> None:
        self.time_s += seconds

    def reach(self, instant_s: float) -> None:
        """An instant that has passed already changes nothing."""
        self.time_s = max(self.time_s, instant_s)
