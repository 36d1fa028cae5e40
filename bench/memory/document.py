"""The result of `lorry bench memory` as its file holds it, the targets, and the last line. Pure.

A figure of a part that was not run is null, and the part's reason is told. Of ratios the worst of
the kinds is quoted; simulated and live stand apart, and `economy_vs_...` alone is the worse of the
two. The README's tables are made from this (readme_memory.py).
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..machine import Machine
from ..slo.plain import plain
from .live import LiveStudy
from .rows import (
    ECONOMY,
    EVICTIONS,
    MemoryCell,
    Versus,
    Worst,
    compare_all,
    hit_rates,
    ttft_of,
    worst_mean,
    worst_p99,
)
from .waste import Footprint
from .workloads import LIVE

MAX_WASTE = 0.05
MIN_KV_ROOM = 0.98
MAX_MEAN_RATIO = 0.90  # at least 10 % better
MAX_P99_RATIO = 1.00  # not worse
HALVES = ("simulated", "live")
QUOTED = ("economy_vs_lru_mean_ttft", "economy_vs_split_mean_ttft", "economy_vs_lru_p99_ttft")


@dataclass(frozen=True, slots=True)
class Report:
    command: str
    is_quick: bool
    waste: Sequence[Footprint] | None  # None: not run
    simulated: Sequence[MemoryCell] | None
    live: LiveStudy | None
    not_run: Mapping[str, str]  # part -> why
    failed: tuple[str, ...]  # parts that were to run and gave no result, with the reason
    setting: Mapping[str, Any]  # of the live servers
    machine: Machine
    load_before: float  # of the machine, before the first part
    took_s: Mapping[str, float]  # by part

    @property
    def halves(self) -> dict[str, Sequence[MemoryCell]]:
        """Cells of both halves that were run."""
        found = {"simulated": self.simulated, "live": self.live and self.live.cells}
        return {name: cells for name, cells in found.items() if cells is not None}


def waste_fraction(footprints: Sequence[Footprint]) -> float:
    return max(one.waste for one in footprints)


def kv_room_vs_closed_form(footprints: Sequence[Footprint]) -> float:
    return min(one.room_vs_closed_form for one in footprints)


def quoted_ratios(cells: Sequence[MemoryCell]) -> dict[str, Worst]:
    """By the names of QUOTED."""
    found = compare_all(cells)
    worst = (worst_mean(found, "lru"), worst_mean(found, "split"), worst_p99(found, "lru"))
    return dict(zip(QUOTED, worst, strict=True))


def last_line(report: Report) -> dict[str, Any]:
    """What the command ends with, and what the document begins with."""
    halves = {name: quoted_ratios(cells) for name, cells in report.halves.items()}
    line: dict[str, Any] = {
        "bench": "memory",
        "waste_fraction": waste_fraction(report.waste) if report.waste else None,
        "kv_room_vs_closed_form": kv_room_vs_closed_form(report.waste) if report.waste else None,
    }
    for name in QUOTED:
        found = [halves[half][name].ratio for half in HALVES if half in halves]
        line[name] = math.nan if any(map(math.isnan, found)) else max(found, default=math.nan)
    for half in HALVES:
        for name in QUOTED:
            worst = halves[half][name] if half in halves else Worst(math.nan, "")
            line[f"{half}_{name}"] = worst.ratio
            line[f"{half}_{name}_worst"] = worst.kind
    line["not_run"] = report.not_run
    line["quick"] = report.is_quick
    return plain(line)


def misses(report: Report) -> list[str]:
    """Targets that were measured and not met."""
    found: list[str] = []
    if report.waste:
        waste, room = waste_fraction(report.waste), kv_room_vs_closed_form(report.waste)
        if waste > MAX_WASTE:
            found.append(f"waste_fraction is {waste:.4f}, the target at most {MAX_WASTE:g}")
        if room < MIN_KV_ROOM:
            found.append(
                f"kv_room_vs_closed_form is {room:.4f}, the target at least {MIN_KV_ROOM:g}"
            )
    limits = (MAX_MEAN_RATIO, MAX_MEAN_RATIO, MAX_P99_RATIO)
    for half, cells in report.halves.items():
        for (name, worst), limit in zip(quoted_ratios(cells).items(), limits, strict=True):
            if not worst.ratio <= limit:  # what was not measured is not met either
                found.append(
                    f"{half}, {worst.kind}: {name} is {worst.ratio:.3f}, "
                    f"the target at most {limit:g}"
                )
    return found


def make_document(report: Report) -> dict[str, Any]:
    return {
        **last_line(report),
        "misses": misses(report),
        "failed": list(report.failed),
        "command": report.command,
        "layouts": [_layout(one) for one in report.waste or ()],
        "halves": {name: _half(cells) for name, cells in report.halves.items()},
        "again": _again(report.live) if report.live else [],
        "live_setting": plain(report.setting),
        "live_scale": plain(LIVE),  # its requests are as many as `plan` says
        "machine": plain(report.machine),
        "load_before": report.load_before,
        "took_s": plain(report.took_s),
    }


def _layout(one: Footprint) -> dict[str, Any]:
    return plain(
        {
            "model": one.model,
            "targets": one.targets,
            "page_bytes": one.page_bytes,
            "tokens_per_page": one.tokens_per_page,
            "waste": one.waste,
            "kv_room_vs_closed_form": one.room_vs_closed_form,
            "by_rank": [
                {"rank": of.rank, "pages": of.num_pages, "waste": of.waste} for of in one.by_rank
            ],
            "rooms": [
                {
                    "pool_bytes": room.pool_bytes,
                    "kv_tokens": room.paged_tokens,
                    "kv_tokens_padded": room.padded_tokens,
                    "vs_padded": room.against_padded,
                }
                for room in one.rooms
            ],
        }
    )


def _half(cells: Sequence[MemoryCell]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    return plain(
        {
            "comparisons": [_versus(one) for one in compare_all(cells)],
            "orders": [
                _order(kind, eviction, [c for c in cells if (c.kind, c.eviction) == key])
                for kind in kinds
                for eviction in EVICTIONS
                for key in [(kind, eviction)]
            ],
            "cells": [_cell(cell) for cell in cells],
        }
    )


def _versus(one: Versus) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "a": ECONOMY,
        "b": one.baseline,
        "mean_ttft": one.mean_ratio,
        "p99_ttft": one.p99_ratio,
        "mean_ttft_by_seed": one.by_seed,
    }


def _order(kind: str, eviction: str, cells: Sequence[MemoryCell]) -> dict[str, Any]:
    found, hits = ttft_of(cells), hit_rates(cells)
    return {
        "kind": kind,
        "eviction": eviction,
        "seeds": [cell.seed for cell in cells],
        "ttft_mean_s": found.mean_s,
        "ttft_p50_s": found.p50_s,
        "ttft_p99_s": found.p99_s,
        "prefix_hit_rate": hits.prefix,
        "adapter_hit_rate": hits.adapter,
        "loads": sum(cell.counts.loads for cell in cells),
        "preemptions": sum(cell.counts.preemptions for cell in cells),
    }


def _cell(cell: MemoryCell) -> dict[str, Any]:
    found = ttft_of([cell])
    return {
        "kind": cell.kind,
        "seed": cell.seed,
        "eviction": cell.eviction,
        "rate_per_s": cell.rate_per_s,
        "pool_pages": cell.pool_pages,
        "requests": len(cell.ttft_s),
        "ttft_mean_s": found.mean_s,
        "ttft_p50_s": found.p50_s,
        "ttft_p99_s": found.p99_s,
        "counts": cell.counts,
    }


def _again(live: LiveStudy) -> list[dict[str, Any]]:
    """The baseline against itself: what two servers under one order differ by."""
    first = {(cell.kind, cell.seed, cell.eviction): cell for cell in live.cells}
    found: list[dict[str, Any]] = []
    for second in live.again:
        pair = ttft_of([second]), ttft_of([first[second.kind, second.seed, second.eviction]])
        found.append(
            {
                "kind": second.kind,
                "seed": second.seed,
                "eviction": second.eviction,
                "mean_ttft": pair[0].mean_s / pair[1].mean_s,
                "p99_ttft": pair[0].p99_s / pair[1].p99_s,
            }
        )
    return plain(found)


def write(report: Report, result: Path, raw: Path) -> None:
    """The document, and every request's TTFT beside it."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(make_document(report), indent=1) + "\n")
    again = report.live.again if report.live else ()
    with gzip.open(raw, "wt", encoding="utf-8", compresslevel=9) as file:
        for half, cells in (*report.halves.items(), ("again", again)):
            for cell in cells:
                row = {"half": half, **_cell(cell), "ttft_s": [round(t, 6) for t in cell.ttft_s]}
                file.write(json.dumps(plain(row)) + "\n")
