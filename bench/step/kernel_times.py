"""Where a step's time goes on a GPU: kernels by name, launches, and how long nothing ran.

Pure: what the profiler saw of some steps in, means per step out. Does not know the profiler
(profiler.py asks it). The next one who makes the step faster reads this table first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NAME = 110  # letters of a kernel's name; templates go on for pages
NUM_TOP = 25


@dataclass(frozen=True, slots=True)
class KernelSpan:
    """One run of one kernel, copy or fill on the device."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class KernelRow:
    name: str
    launches: float  # per step
    us: float  # per step
    share: float  # of the time that something ran


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Means over the steps; the profiler makes each a little longer."""

    num_steps: int
    launches: float  # per step
    busy_ms: float  # per step, counting overlapping kernels once
    span_ms: float  # per step, from the first kernel's start to the last one's end
    idle_share: float  # of the span
    top: tuple[KernelRow, ...]


def digest(spans: Sequence[KernelSpan], num_steps: int) -> KernelTimes | None:
    """None where nothing was seen."""
    if not spans:
        return None
    by_name: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        by_name[span.name[:MAX_NAME]].append(span.end_us - span.start_us)
    total_us = sum(map(sum, by_name.values()))
    rows = [
        KernelRow(name, len(times) / num_steps, sum(times) / num_steps, sum(times) / total_us)
        for name, times in by_name.items()
    ]
    rows.sort(key=lambda row: -row.us)
    span_us = max(span.end_us for span in spans) - min(span.start_us for span in spans)
    busy_us = _covered_us(spans)
    return KernelTimes(
        num_steps=num_steps,
        launches=len(spans) / num_steps,
        busy_ms=busy_us / num_steps / 1e3,
        span_ms=span_us / num_steps / 1e3,
        idle_share=1 - busy_us / span_us,
        top=tuple(rows[:NUM_TOP]),
    )


def _covered_us(spans: Sequence[KernelSpan]) -> float:
    """Length of the union of all spans."""
    covered_us, reached_us = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start_us):
        covered_us += max(0.0, span.end_us - max(span.start_us, reached_us))
        reached_us = max(reached_us, span.end_us)
    return covered_us
