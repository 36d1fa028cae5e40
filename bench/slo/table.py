"""The run as it is printed: the workload and the bounds in sentences, the rows, the pairs.

Pure: records in, lines and a drawn table out. Called by command.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from ..workload.records import BASE, Workload
from .bounds import BoundsRule, MultipleBounds
from .intervals import Interval
from .pairs import line_of
from .rates import Capacity, mean_rate_per_s
from .report import LoadComparison, Row
from .stamps import Outcome

COLUMNS = (
    ("policy", "left"),
    ("load", "right"),
    ("req/s", "right"),
    ("attainment", "right"),
    ("goodput/s", "right"),
    ("TTFT s P50", "right"),
    ("P99", "right"),
    ("TPOT ms P50", "right"),
    ("P99", "right"),
    ("ref/time/fail", "right"),
    ("lag ms", "right"),
)


def workload_lines(workload: Workload, notes: Mapping[str, int]) -> Iterator[str]:
    """`notes`: what drawing it had to change, and how often."""
    prompts = sorted(one.num_prompt_tokens for one in workload.requests)
    answers = sorted(one.num_new_tokens for one in workload.requests)
    ranks = Counter(one.rank for one in workload.adapters)
    told = ", ".join(f"{count} of rank {rank}" for rank, count in sorted(ranks.items()))
    base = sum(one.adapter == BASE for one in workload.requests)
    asked = len({one.adapter for one in workload.requests} - {BASE})
    yield (
        f"workload {workload.name}, seed {workload.seed}: {len(workload.requests)} requests, "
        f"{mean_rate_per_s(workload):.3g}/s as drawn"
    )
    yield (
        f"adapters: {len(workload.adapters)} ({told}), {asked} asked for; {base} requests to "
        "the base"
    )
    yield f"prompt tokens: {_spread(prompts)}; new tokens: {_spread(answers)}"
    if changed := [f"{name.replace('_', ' ')}: {count}" for name, count in notes.items() if count]:
        yield ", ".join(changed)


def _spread(ordered: Sequence[int]) -> str:
    last = len(ordered) - 1
    return ", ".join(f"P{p} {ordered[round(last * p / 100)]}" for p in (1, 50, 99))


def bounds_line(rule: BoundsRule) -> str:
    if not isinstance(rule, MultipleBounds):
        return f"bounds: TTFT {rule.ttft_s:g} s, TPOT {rule.tpot_s * 1e3:g} ms, the same for all"
    ttft_ms = [cell.ttft_s * 1e3 for cell in rule.table.cells]
    tpot_ms = [cell.tpot_s * 1e3 for cell in rule.table.cells]
    num_runs = min(cell.num_runs for cell in rule.table.cells)
    return (
        f"bounds: TTFT {rule.ttft_x:g} x and TPOT {rule.tpot_x:g} x the unloaded figures, "
        f"{min(ttft_ms):.0f} to {max(ttft_ms):.0f} ms and {min(tpot_ms):.1f} to "
        f"{max(tpot_ms):.1f} ms by prompt length and rank (medians of {num_runs} solo runs)"
    )


def ceiling_line(capacity: Capacity) -> str:
    return (
        f"ceiling, a closed loop with {capacity.num_in_flight} requests always out: "
        f"{capacity.requests_per_s:.2f} requests/s, {capacity.tokens_per_s:.0f} new tokens/s "
        f"(over {capacity.num_counted} answers)"
    )


def draw_rows(rows: Sequence[Row]) -> Table:
    num_rounds = max((row.num_rounds for row in rows), default=0)
    table = Table(title=f"Attainment with its 95 % interval; means, number of rounds: {num_rounds}")
    for name, side in COLUMNS:
        table.add_column(name, justify="left" if side == "left" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row_cells(row))
    return table


def row_cells(row: Row) -> tuple[str, ...]:
    bad = (Outcome.REFUSED, Outcome.TIMEOUT, Outcome.FAILED)
    return (
        row.policy,
        row.offer.label,
        f"{row.offer.rate_per_s:.2f}",
        interval_text(row.attainment),
        f"{row.goodput_per_s.value:.2f}",
        number(row.ttft_p50_s, "{:.2f}"),
        number(row.ttft_p99_s, "{:.2f}"),
        number(row.tpot_p50_s * 1e3, "{:.1f}"),
        number(row.tpot_p99_s * 1e3, "{:.1f}"),
        "/".join(str(row.outcomes[kind.value]) for kind in bad),
        f"{row.lag_p99_ms:.1f}",
    )


def interval_text(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def comparison_lines(comparisons: Sequence[LoadComparison]) -> Iterator[str]:
    for one in comparisons:
        yield f"{one.label}: {line_of(one.comparison)}"
