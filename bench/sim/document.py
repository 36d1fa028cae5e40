"""The result of `lorry bench sim` as the file, the last line and the exit code hold it. Pure.

A part that was not run leaves its figures null and says why: no figure is ever left out in
silence. Every figure that the README shows is in here; raw stamps lie beside it in files of their
own. Called by command.py; readme_sim.py reads what it makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..machine import Machine
from ..slo.figures import figures
from ..slo.plain import plain
from ..slo.stamp_file import workload_digest
from ..slo.stamps import Run
from ..workload.records import Workload
from . import agreement, scale, slora
from .agreement import Agreement, PolicyAgreement, furthest
from .scale import ScaleReport
from .slora import MAX_DIFFERENCE, Reproduced
from .versus import OWN_BOUNDS, LiveReport

PARTS = ("slora", "live", "scale")
# What the last line holds, in this order.
FIGURES = (
    "sim_vs_live_goodput",
    "sim_vs_live_ttft",
    "cost_model_r2",
    "cost_model_mape",
    "requests_per_s_simulated",
    "slora_attainment_fcfs",
    "slora_attainment_early_abort",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What the parts gave; None: not run, and `not_run` says why."""

    slora: Sequence[Reproduced] | None
    live: LiveReport | None
    scale: ScaleReport | None
    not_run: Mapping[str, str]  # part -> why
    machine: Machine
    is_quick: bool = False  # claims nothing
    took_s: Mapping[str, float] = field(default_factory=dict[str, float])  # by part
    load_before: float = 0.0  # load average of the last minute
    failed: Sequence[str] = ()  # parts that were wanted and have no figures, each with why


def failures(report: Report) -> list[str]:
    """What failed, and what was claimed and did not come out; nothing that was left out is here."""
    found = list(report.failed)
    if report.slora is not None:
        found += slora.failures(report.slora)
    if report.live is not None:
        found += agreement.failures(report.live.agreements, report.live.conclusion)
    if report.scale is not None:
        found += scale.failures(report.scale)
    return found


def headline(report: Report) -> dict[str, float | None]:
    """The figures that are quoted, by name; null: not run."""
    found: dict[str, float | None] = dict.fromkeys(FIGURES)
    if (live := report.live) is not None:
        found["sim_vs_live_goodput"] = furthest([one.goodput_per_s for one in live.agreements])
        found["sim_vs_live_ttft"] = furthest([one.ttft_s for one in live.agreements])
        found["cost_model_r2"] = live.accuracy.r2
        found["cost_model_mape"] = live.accuracy.mape
    if report.scale is not None:
        found["requests_per_s_simulated"] = report.scale.requests_per_s_simulated
    for one in report.slora or ():
        if one.is_quoted:
            name = one.published.served.name.lower()
            found[f"slora_attainment_{name}"] = one.attainment
    return found


def last_line(report: Report) -> dict[str, Any]:
    wrong = failures(report)
    return plain({**headline(report), "not_run": report.not_run, "failures": wrong})


def make_document(report: Report) -> dict[str, Any]:
    return plain(
        {
            "bench": "sim",
            "quick": report.is_quick,
            **headline(report),
            "failures": failures(report),
            "not_run": report.not_run,
            "slora": None if report.slora is None else _slora(report.slora),
            "live": None if report.live is None else _live(report.live),
            "scale": report.scale,
            "took_s": report.took_s,
            "load_average_before": report.load_before,
            "machine": asdict(report.machine),
        }
    )


def _slora(done: Sequence[Reproduced]) -> dict[str, Any]:
    rows = [
        {
            **asdict(one),
            "difference": one.difference,
            "quoted": one.is_quoted,
            "set_the_profile": one.set_the_profile,
        }
        for one in done
    ]
    return {"profile": "a100-13b", "allowed": MAX_DIFFERENCE, "runs": rows}


def _live(report: LiveReport) -> dict[str, Any]:
    live = report.live
    cells = (*live.fit_cells, *live.judged_cells)
    return {
        "policies": {one.policy: _policy(one) for one in report.agreements},
        "better": {
            "live": report.conclusion.live_winner,
            "simulated": report.conclusion.simulated_winner,
            "same": report.conclusion.same,
            "simulated_difference": report.conclusion.simulated_difference,
            "pairs": report.conclusion.live,
        },
        "cost_model": {
            "fitted_on": report.accuracy_fit,
            "judged_on": report.accuracy,
            "fit": report.fitted,
        },
        "front_end": report.front_end,
        "solos": live.solos,
        "offered": live.offered,
        "workloads": {"fit": _workload(live.fit), "judged": _workload(live.judged)},
        "server": live.facts,
        "profile": report.profile,
        "send_lag": [
            {"policy": cell.policy, "round": cell.round_idx, **asdict(cell.lag)} for cell in cells
        ],
        "runs": [
            *(_figures("fit", one.run, live.fit) for one in live.fit_cells),
            *(_figures("fit", run, live.fit) for run in report.simulated_fit),
            *(_figures("judged", one.run, live.judged) for one in live.judged_cells),
            *(_figures("judged", run, live.judged) for run in report.simulated),
        ],
    }


def _figures(role: str, run: Run, workload: Workload) -> dict[str, Any]:
    return {"workload": role, "figures": figures(run, workload, OWN_BOUNDS)}


def _policy(one: PolicyAgreement) -> dict[str, Any]:
    return {
        "num_requests": one.num_requests,
        "num_compared": one.num_compared,
        "goodput_per_s": _agreement(one.goodput_per_s),
        "ttft_s": _agreement(one.ttft_s),
        "attainment": _agreement(one.attainment),
    }


def _agreement(one: Agreement) -> dict[str, Any]:
    return {**asdict(one), "ratio": one.ratio, "allowed": one.allowed, "holds": one.holds}


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "digest": workload_digest(workload),
        "num_requests": len(workload.requests),
        "span_s": workload.span_s,
        "ranks": sorted({adapter.rank for adapter in workload.adapters}),
        "num_adapters": len(workload.adapters),
        "recipe": workload.recipe,
    }
