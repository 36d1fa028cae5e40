"""Times steps; the clock is the host's.

Owns two ways of running the same step over and over: one after the other, as the plain loop
does, and with the next one launched before the last one's tokens are read, as the overlapped
loop does. Does not know what is in a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...server.execution.batch import StepResult, StepRow
from ...server.execution.flight import Flight
from ...server.execution.runner import Runner


class BrokenStep(Exception):
    """A step that is timed is not right: its time means nothing."""


def plain_ms(runner: Runner, rows: Sequence[StepRow], num_steps: int) -> list[float]:
    """Each step from its rows to its tokens on the host."""
    times_ms: list[float] = []
    for _ in range(num_steps):
        start_s = time.perf_counter()
        result = runner.run(rows)
        times_ms.append(1e3 * (time.perf_counter() - start_s))
        _check(result, rows)
    return times_ms


def overlapped_ms(runner: Runner, rows: Sequence[StepRow], num_steps: int) -> list[float]:
    """From one step's tokens to the next one's, a step always being under way."""
    times_ms: list[float] = []
    flight: Flight = runner.launch(rows)
    last_s = time.perf_counter()
    for _ in range(num_steps):
        following = runner.launch(rows)
        _check(flight.wait(), rows)
        now_s = time.perf_counter()
        times_ms.append(1e3 * (now_s - last_s))
        flight, last_s = following, now_s
    _check(flight.wait(), rows)
    return times_ms[1:]  # the first one's start had nothing to hide behind


def _check(result: StepResult, rows: Sequence[StepRow]) -> None:
    if len(result.tokens) != len(rows):
        raise BrokenStep(
            f"{len(result.tokens)} tokens for {len(rows)} rows, {len(result.not_finite)} not finite"
        )
