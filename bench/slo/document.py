"""The result of a run as its file holds it, and the one line that the command ends with.

Pure: a report in, plain JSON out. Owns the names of the files below the result's folder. Raw
stamps lie beside it, so that other figures can be made later; the README's table is made from
the rows (readme_slo.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..workload.file import digest_of
from ..workload.records import BASE, Workload
from .bounds import BoundsRule, MultipleBounds
from .cells import Cell, Offer
from .plain import plain
from .rates import mean_rate_per_s
from .report import LoadComparison, Report, Row, make_comparisons, make_rows
from .stamp_file import SUFFIX


def stamps_path(folder: Path, cell: Cell, offer: Offer) -> Path:
    """`fcfs-1.2x-round1.jsonl.gz`"""
    load = offer.label.replace("/", "-per-")
    return folder / f"{cell.turn.policy}-{load}-round{cell.turn.round_idx + 1}{SUFFIX}"


def make_document(report: Report, *, folder: Path) -> dict[str, Any]:
    """`folder`: where the raw stamps are."""
    rows = make_rows(report)
    return {
        **make_line(report, rows),
        "command": report.command,
        "model": report.model,
        "workload": _workload(report.workload),
        "bounds": _bounds(report.rule),
        "comparisons": [_comparison(one) for one in make_comparisons(rows)],
        "cells": [_cell(report, cell, folder) for cell in report.cells],
        "figures": [
            {
                "policy": row.policy,
                "load": row.offer.label,
                "round": idx + 1,
                "figures": plain(one),
            }
            for row in rows
            for idx, one in enumerate(row.rounds)
        ],
        "servers_on": asdict(report.place),
        "server_flags": list(report.flags),
        "load_average_before": report.load_before,
        "machine": asdict(report.machine),
    }


def make_line(report: Report, rows: tuple[Row, ...]) -> dict[str, Any]:
    """The figures that are quoted, without what they are made of."""
    return {
        "bench": "slo",
        "quick": report.is_quick,
        "policies": list(report.policies),
        "num_requests": len(report.workload.requests),
        "num_rounds": max((row.num_rounds for row in rows), default=0),
        "capacity": plain(report.capacity),
        "rows": [_row(row) for row in rows],
        "failures": list(report.failures),
        "wall_s": round(report.wall_s, 1),
        "commit": report.machine.commit,
    }


def _row(row: Row) -> dict[str, Any]:
    return plain(
        {
            "policy": row.policy,
            "load": row.offer.label,
            "rate_per_s": row.offer.rate_per_s,
            "attainment": row.attainment,
            "goodput_per_s": row.goodput_per_s,
            "ttft_p50_s": row.ttft_p50_s,
            "ttft_p99_s": row.ttft_p99_s,
            "tpot_p50_s": row.tpot_p50_s,
            "tpot_p99_s": row.tpot_p99_s,
            "tokens_per_s": row.tokens_per_s,
            "outcomes": row.outcomes,
            "send_lag_p99_ms": row.lag_p99_ms,
        }
    )


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "seed": workload.seed,
        "recipe": workload.recipe,
        "digest": digest_of(workload),
        "num_requests": len(workload.requests),
        "rate_per_s_as_drawn": mean_rate_per_s(workload),
        "num_adapters": len(workload.adapters),
        "num_asked_for": len({one.adapter for one in workload.requests} - {BASE}),
        "num_to_base": sum(one.adapter == BASE for one in workload.requests),
        "ranks": dict(sorted(Counter(one.rank for one in workload.adapters).items())),
        "mean_prompt_tokens": _mean([one.num_prompt_tokens for one in workload.requests]),
        "mean_new_tokens": _mean([one.num_new_tokens for one in workload.requests]),
    }


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)


def _bounds(rule: BoundsRule) -> dict[str, Any]:
    if isinstance(rule, MultipleBounds):
        return {
            "kind": "multiples of unloaded",
            "ttft_x": rule.ttft_x,
            "tpot_x": rule.tpot_x,
            "unloaded": plain(rule.table.cells),
        }
    return {"kind": "fixed", "ttft_s": rule.ttft_s, "tpot_s": rule.tpot_s}


def _comparison(one: LoadComparison) -> dict[str, Any]:
    return {"load": one.label, **plain(one.comparison)}


def _cell(report: Report, cell: Cell, folder: Path) -> dict[str, Any]:
    offer = report.offers[cell.turn.offer_idx]
    return {
        "policy": cell.turn.policy,
        "load": offer.label,
        "rate_per_s": offer.rate_per_s,
        "round": cell.turn.round_idx + 1,
        "stamps": stamps_path(folder, cell, offer).name,
        "send_lag": plain(cell.lag),
        "late_tries": plain(cell.late),
        "server_counters": cell.counters,
        "failures": list(cell.failures),
    }
