"""The result of a run as the file and the table hold it.

Pure: a report in, plain JSON and a drawn table out. The file repeats every round, so that other
figures can be made of it later; the README's table is made from it (readme_throughput.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..machine import Machine
from .ceiling import Ceiling
from .figures import GOALS, MIN_CHOSEN, MIN_DIFFERING, SameWork, failures, ratios
from .rounds import Row
from .split import PARTS, StepSplit
from .workload import Place, Workload


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run measured."""

    workload: Workload
    place: Place  # of every row
    rows: tuple[Row, ...]
    work: SameWork
    ceiling: Ceiling
    splits: Mapping[str, Mapping[str, StepSplit]]  # by load, then by kind of step; empty: left out
    machine: Machine
    load_before: float  # load average of the last minute: what else the machine was doing


def make_document(report: Report) -> dict[str, Any]:
    """The figures that are quoted come first: `base_tok_s`, `lora_tok_s` and one for each peer."""
    tok_s = {row.way.key: row.median_tok_s for row in report.rows}
    found = ratios(tok_s)
    shares = {row.way.key: row.server_share for row in report.rows if row.way.is_peer}
    return {
        "bench": "throughput",
        **{f"{key}_tok_s": value for key, value in tok_s.items()},
        "ratios": found,
        "targets": {goal.name: _goal(goal.target, goal.stretch) for goal in GOALS if goal.target},
        "ceiling": asdict(report.ceiling),
        "rows": [_row(row) for row in report.rows],
        "same_work": {
            **asdict(report.work),
            "needed": {"lora_differing": MIN_DIFFERING, "chosen_share": MIN_CHOSEN},
            "failures": failures(report.work, shares),
        },
        "step_split": {
            load: {kind: asdict(split) for kind, split in kinds.items()}
            for load, kinds in report.splits.items()
        },
        "step_parts": PARTS,
        "server_share_of_a_core_while_peers_run": shares,
        "workload": asdict(report.workload),
        "device": report.place.device,
        "dtype": report.place.dtype,
        "threads": report.place.num_threads,
        "load_average_before": report.load_before,
        "machine": asdict(report.machine),
    }


def draw_rows(rows: Sequence[Row]) -> Table:
    table = Table(title="Tokens per second, medians of the rounds")
    for name in ("row", "tokens/s", "rounds", "how"):
        table.add_column(name, justify="right" if name == "tokens/s" else "left")
    for row in rows:
        rounds = " ".join(f"{value:.0f}" for value in row.tok_s)
        table.add_row(row.way.label, f"{row.median_tok_s:.0f}", rounds, row.way.note)
    return table


def _goal(target: float, stretch: float) -> dict[str, float]:
    return {"target": target, "stretch": stretch} if stretch else {"target": target}


def _row(row: Row) -> dict[str, Any]:
    return {
        "key": row.way.key,
        "name": row.way.label,
        "how": row.way.note,
        "median_tok_s": row.median_tok_s,
        "tok_s": list(row.tok_s),
        "warm_up_tok_s": row.warm_up_tok_s,
    }
