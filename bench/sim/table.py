"""What `lorry bench sim` prints: tables and lines of a report. Pure; called by command.py."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..slo.pairs import line_of
from .agreement import Agreement, PolicyAgreement
from .scale import ScaleReport
from .slora import MAX_DIFFERENCE, Reproduced
from .versus import LiveReport


def draw_slora(done: Sequence[Reproduced]) -> Table:
    table = Table(title="S-LoRA's runs, A100-80GB, Llama-13B, 400 adapters: published | simulated")
    for name in ("policy", "req/s", "cv", "attainment", "answered/s", "mean TTFT, s", "aborted"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    table.add_column("")
    for one in done:
        said = one.published
        table.add_row(
            said.served.value,
            f"{said.rate_per_s:g}",
            f"{said.cv:g}",
            f"{said.attainment:.2f} | {one.attainment:.2f}",
            f"{said.throughput_per_s:.2f} | {one.throughput_per_s:.2f}",
            f"{said.mean_first_s:.2f} | {one.mean_first_s:.2f}",
            f"{said.num_aborted} | {one.num_aborted}",
            remark(one),
        )
    return table


def remark(one: Reproduced) -> str:
    if one.set_the_profile:
        return "set the profile"
    said = f"{'within' if one.holds else 'MISSED'} {MAX_DIFFERENCE:g}"
    return f"{said}, quoted" if one.is_quoted else said


def draw_live(agreements: Sequence[PolicyAgreement]) -> Table:
    table = Table(title="Workload B, on which nothing was fitted: simulated / live")
    for name in ("policy", "figure", "live rounds", "simulated", "ratio", "may miss 1 by", ""):
        table.add_column(name, justify="left" if name in ("policy", "figure", "") else "right")
    for one in agreements:
        told = f"mean TTFT, s, of {one.num_compared} of {one.num_requests}"
        table.add_row(
            one.policy, "goodput, req/s", *_cells(one.goodput_per_s), _held(one.goodput_per_s)
        )
        table.add_row(one.policy, told, *_cells(one.ttft_s), _held(one.ttft_s))
        table.add_row(one.policy, "attainment", *_cells(one.attainment), "")
    return table


def live_lines(report: LiveReport) -> list[str]:
    seen, known = report.accuracy, report.accuracy_fit
    found = report.conclusion
    return [
        f"Cost model on {seen.num_steps} steps of B, unseen: R^2 {seen.r2:.3f}, "
        f"MAPE {100 * seen.mape:.1f} % (on {known.num_steps} steps of A, which it was fitted on: "
        f"{known.r2:.3f}, {100 * known.mape:.1f} %)",
        f"Front end: {1000 * report.front_end.base_s:.1f} ms and "
        f"{1e6 * report.front_end.per_token_s:.1f} us a prompt token",
        f"Live, {line_of(found.live)}",
        f"Better policy: {found.live_winner or 'neither'} live, "
        f"{found.simulated_winner or 'neither'} simulated "
        f"({found.simulated_difference:+.2f} req/s)",
    ]


def scale_lines(report: ScaleReport) -> list[str]:
    return [
        f"Speed: {report.requests} requests over {report.adapters} adapters in "
        f"{report.wall_s:.1f} s, {report.requests_per_s_simulated:.0f} requests/s"
    ]


def _cells(one: Agreement) -> tuple[str, str, str, str]:
    rounds = " ".join(f"{value:.3f}" for value in one.live)
    return rounds, f"{one.simulated:.3f}", f"{one.ratio:.3f}", f"{one.allowed:.3f}"


def _held(one: Agreement) -> str:
    return "holds" if one.holds else "MISSED"
