"""The result of `lorry bench scale` as its file holds it, the targets, and the last line. Pure.

A ratio is of medians over the rounds; beside it stands what two equal rows differed by in the same
run (the A/A spread). The README's table is made from this (readme_scale.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..machine import Machine
from ..slo.plain import plain
from . import active, crossing, registered
from .sizes import Sizes

MIN_REGISTERED, MAX_START_S = 0.97, 1.0
MIN_ACTIVE = 0.90  # S-LoRA kept 0.945
MAX_STEP = 1.10


@dataclass(frozen=True, slots=True)
class Parts:
    """What was measured, in this order."""

    registered: registered.Registered
    active: active.Active  # all images in host memory
    short: active.Active  # a part of them
    crossing: crossing.Crossing


@dataclass(frozen=True, slots=True)
class Report:
    command: str
    is_quick: bool
    sizes: Sizes
    model: str
    setting: Mapping[str, Any]  # flags, pool, adapters
    parts: Parts
    machine: Machine
    load_before: float  # of the machine, before the first server
    wall_s: float


def ratio(rows: Mapping[str, Sequence[float]], over: str, under: Sequence[str]) -> float:
    """Median of one row over that of all figures of others."""
    base = [figure for row in under for figure in rows[row]]
    return statistics.median(rows[over]) / statistics.median(base)


def spread(rows: Mapping[str, Sequence[float]], one: str, other: str) -> tuple[float, float]:
    """The least and the largest ratio of two equal rows, round by round, whoever is above."""
    found = [a / b for a, b in zip(rows[one], rows[other], strict=True)]
    found += [1 / one_found for one_found in found]
    return min(found), max(found)


def figures(report: Report) -> dict[str, Any]:
    """The last line; names say how many adapters there were, be the run quick or full."""
    sizes, found = report.sizes, report.parts.registered
    starts = {row: statistics.median(all_s) for row, all_s in found.start_s.items()}
    many, few = f"{sizes.num_registered}", (registered.FEW, registered.AGAIN)
    few_active = (active.FEW, active.AGAIN)
    line: dict[str, Any] = {
        "bench": "scale",
        f"throughput_{many}_vs_5": ratio(found.tokens_per_s, registered.MANY, few),
        "throughput_a_vs_a": spread(found.tokens_per_s, *few),
        f"startup_{many}_extra_s": starts[registered.MANY] - starts[registered.FEW],
    }
    for name, one in (("", report.parts.active), ("_short_host", report.parts.short)):
        key = f"throughput_{sizes.num_active}_active{name}_vs_5"
        line[key] = ratio(one.tokens_per_s, active.MANY, few_active)
        line[f"throughput_active{name}_a_vs_a"] = spread(one.tokens_per_s, *few_active)
    line |= crossing_figures(report.parts.crossing)
    line["host_bytes_peak"] = report.parts.active.host_bytes_peak
    return line


def misses(report: Report) -> list[str]:
    """Targets that were missed; of a quick run none is judged."""
    if report.is_quick:
        return []
    line, sizes = figures(report), report.sizes
    found: list[str] = []
    key = f"throughput_{sizes.num_registered}_vs_5"
    if line[key] < min(MIN_REGISTERED, line["throughput_a_vs_a"][0]):
        low = line["throughput_a_vs_a"][0]
        found.append(
            f"{key} is {line[key]:.3f}, below {MIN_REGISTERED} and the A/A spread's {low:.3f}"
        )
    key = f"startup_{sizes.num_registered}_extra_s"
    if line[key] > MAX_START_S:
        found.append(f"{key} is {line[key]:.2f}, above {MAX_START_S}")
    key = f"throughput_{sizes.num_active}_active_vs_5"
    if line[key] < MIN_ACTIVE:
        found.append(f"{key} is {line[key]:.3f}, below {MIN_ACTIVE}")
    return [*found, *crossing_misses(line)]


def crossing_figures(found: crossing.Crossing) -> dict[str, Any]:
    """Of the part that can be run alone."""
    return {
        "load_vs_quiet_p95_step": ratio(found.p95_step_s, crossing.LOADING, (crossing.QUIET,)),
        "load_on_its_way_share": found.loading_share,
    }


def crossing_misses(line: Mapping[str, Any]) -> list[str]:
    key = "load_vs_quiet_p95_step"
    return [f"{key} is {line[key]:.3f}, above {MAX_STEP}"] if line[key] > MAX_STEP else []


def make_document(report: Report) -> dict[str, Any]:
    return plain(
        {
            **figures(report),
            "misses": misses(report),
            "quick": report.is_quick,
            "command": report.command,
            "model": report.model,
            "setting": report.setting,
            "sizes": report.sizes,
            "registered": report.parts.registered,
            "active": report.parts.active,
            "active_short_host": report.parts.short,
            "crossing": report.parts.crossing,
            "machine": report.machine,
            "load_average_before": report.load_before,
            "wall_s": report.wall_s,
        }
    )
