"""Builders of the memory tests: plans by their numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.server.scheduling.records import PlannedLoad, PlannedRun, StepPlan


def load_plan(*loads: tuple[int, int], evict: Sequence[int] = ()) -> StepPlan:
    """`loads`: (adapter_id, num_pages)."""
    return StepPlan(evictions=tuple(evict), loads=tuple(PlannedLoad(*load) for load in loads))


def run_plan(*runs: tuple[int, int], expire: Sequence[int] = (), preempt: Sequence[int] = ()):
    """`runs`: (row, num_new_pages)."""
    planned = tuple(PlannedRun(row, 0, 1, num_new_pages) for row, num_new_pages in runs)
    return StepPlan(expired=tuple(expire), preemptions=tuple(preempt), runs=planned)
