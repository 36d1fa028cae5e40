"""The result of `lorry bench coldstart` as its file holds it, the targets, and the last line. Pure.

Every `x_vs_y` is x over y. A target of a row counts only where waiting costs at least 1.3 times the
ideal; where it costs less, `auto` must lose nothing to the best single way, as everywhere. What was
not run is null. The README's part is made from this (readme_coldstart.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..machine import Machine
from ..slo.plain import plain
from .figures import MIN_WAIT_RATIO, RowFigures, rows_of
from .points import figures_by_point, single_cells
from .sizes import AUTO, BURST, LOAD, S3, WAIT, Row, Sizes
from .study import Study

S3_RATIO1 = Row(S3, 1.0, 1).name
# Row -> the most that `auto` may take, in mean times of the ideal.
TARGETS = {S3: 1.07, S3_RATIO1: 1.15, BURST: 1.10}
MAX_BYSTANDER = 1.05
MAX_OVER_BEST = 1.03


@dataclass(frozen=True, slots=True)
class Report:
    command: str
    is_quick: bool
    sizes: Sizes
    study: Study
    model: str
    setting: Mapping[str, Any]  # of the servers
    machine: Machine
    load_before: float  # of the machine, before the first server
    wall_s: float

    @property
    def rows(self) -> list[RowFigures]:
        return rows_of(self.study.cells)


def last_line(report: Report, rows: Sequence[RowFigures] | None = None) -> dict[str, Any]:
    """What the command ends with, and what the document begins with."""
    rows = report.rows if rows is None else rows
    beside = [row.bystander_ratio for row in rows if not math.isnan(row.bystander_ratio)]
    over = {row.name: over_best(row) for row in rows}
    known = {name: ratio for name, ratio in over.items() if not math.isnan(ratio)}
    worst = max(known, key=lambda name: known[name], default="")
    return plain(
        {
            "bench": "coldstart",
            "auto_vs_cached_mean_ttft": _by_row(rows, lambda row: row.ttft_ratio(AUTO)),
            "wait_vs_cached_mean_ttft": _by_row(rows, lambda row: row.ttft_ratio(WAIT)),
            "auto_vs_cached_p99_ttft": _by_row(rows, lambda row: row.p99_ratio(AUTO)),
            "bystander_tpot_ratio": max(beside, default=math.nan),
            "auto_vs_best_single": known.get(worst, math.nan),
            "auto_vs_best_single_worst": worst,
            "cached_vs_cached_mean_ttft": _by_row(rows, lambda row: row.spread),
            "chosen": {row.name: dict(chosen_of(row)) for row in rows},
            "p99_ttft_s": {
                row.name: {label: one.ttft.p99_s for label, one in row.by_label.items()}
                for row in rows
            },
            "link": link_of(report, rows),
            "quick": report.is_quick,
        }
    )


def _by_row(rows: Sequence[RowFigures], value: Callable[[RowFigures], float]) -> dict[str, float]:
    """The rows with targets are there also when they were not run."""
    return dict.fromkeys(TARGETS, math.nan) | {row.name: value(row) for row in rows}


def over_best(row: RowFigures) -> float:
    """`auto` over the best way that is always taken; NaN: none was run."""
    return row.ttft_ratio(AUTO, row.best_single)


def chosen_of(row: RowFigures) -> Mapping[str, int]:
    """By `auto`: way -> requests."""
    return Counter(row.by_label[AUTO].chosen) if AUTO in row.by_label else {}


def link_of(report: Report, rows: Sequence[RowFigures]) -> dict[str, Any]:
    """Of each ratio what was asked for; and what one load alone took, where that was seen."""
    prefill_s = report.study.probe.prefill_s
    return {
        "prefill_256_s": prefill_s,
        "by_ratio": [
            {
                "ratio": link.ratio,
                "emulated": link.bytes_per_s > 0,
                "bytes_per_s": link.bytes_per_s,
                "adapter_bytes": link.adapter_bytes,
                "load_s": link.adapter_bytes / link.bytes_per_s if link.bytes_per_s else None,
            }
            for link in report.study.links
        ],
        "waited_load_s": {
            row.name: row.by_label[WAIT].load_s for row in rows if WAIT in row.by_label
        },
    }


def misses(report: Report, rows: Sequence[RowFigures] | None = None) -> list[str]:
    """Targets that were missed; of a quick run none is judged."""
    if report.is_quick:
        return []
    found: list[str] = []
    for row in report.rows if rows is None else rows:
        found += [f"{row.name}: {told}" for told in _missed(row)]
    return found


def _missed(row: RowFigures) -> list[str]:
    found: list[str] = []
    ratio, limit = row.ttft_ratio(AUTO), TARGETS.get(row.name)
    if limit is not None and row.counts and not ratio <= limit:
        found.append(f"auto / cached mean TTFT is {ratio:.3f}, the target at most {limit:g}")
    over, most = over_best(row), MAX_OVER_BEST + _or_one(row.spread) - 1
    if over > most:
        found.append(
            f"auto / {row.best_single}, the best single way, is {over:.3f}, the target at most "
            f"{most:.3f}, the spread of two equal servers in it"
        )
    beside, limit = row.bystander_ratio, max(MAX_BYSTANDER, _or_one(row.bystander_spread))
    if beside > limit:
        found.append(
            f"TPOT of bystanders, auto / cached, is {beside:.3f}, the target at most {limit:.3f}"
        )
    return found


def _or_one(spread: float) -> float:
    """What was not measured excuses nothing."""
    return 1.0 if math.isnan(spread) else spread


def not_counted(rows: Sequence[RowFigures]) -> list[str]:
    """Rows with a target that says nothing here."""
    return [
        f"{row.name}: wait / cached is {row.ttft_ratio(WAIT):.3f}, below {MIN_WAIT_RATIO:g}, so "
        "the target of auto / cached does not count"
        for row in rows
        if row.name in TARGETS and not row.counts
    ]


def make_document(report: Report) -> dict[str, Any]:
    rows = report.rows
    return plain(
        {
            **last_line(report, rows),
            "misses": misses(report, rows),
            "not_counted": not_counted(rows),
            "failed": report.study.failures,
            "command": report.command,
            "model": report.model,
            "setting": report.setting,
            "load": {
                "share": LOAD,
                "capacity_per_s": report.study.probe.capacity_per_s,
                "num_s3": report.sizes.num_s3,
                "num_burst": report.sizes.num_burst,
            },
            "rows": [_row(row) for row in rows],
            "points": _points(report),
            "machine": report.machine,
            "load_average_before": report.load_before,
            "wall_s": report.wall_s,
        }
    )


def _row(row: RowFigures) -> dict[str, Any]:
    return {
        "name": row.name,
        "part": row.part,
        "ratio": row.ratio,
        "rounds": row.num_rounds,
        "counts": row.counts,
        "best_single": row.best_single,
        "auto_vs_best_single": over_best(row),
        "bystander_tpot_ratio": row.bystander_ratio,
        "cached_vs_cached_mean_ttft": row.spread,
        "cached_vs_cached_bystander_tpot": row.bystander_spread,
        "labels": [
            {**plain(one), "ttft_vs_cached": row.ttft_ratio(one.label)}
            for one in row.by_label.values()
        ],
    }


def _points(report: Report) -> list[dict[str, Any]]:
    cells = single_cells(report.study.cells)
    names = dict.fromkeys(cell.row.name for cell in cells)
    return [
        {"row": name, **plain(one)}
        for name in names
        for one in figures_by_point(
            [cell for cell in cells if cell.row.name == name], report.sizes.points
        )
    ]
