"""What the comparison leaves in a folder beside its result: raw stamps of every run, pictures.

Owns the names: `B-fcfs-live-1.jsonl.gz` and the server's steps meanwhile beside it as
`.steps.csv.gz`, `B-fcfs-simulated.jsonl.gz`, `B.workload.jsonl.gz`, `ttft.png`. Called by
command.py.
"""

from __future__ import annotations

from pathlib import Path

from ..cost.step_logs import write_step_log
from ..machine import Machine
from ..slo.figures import figures
from ..slo.plot_points import Cell, curve_of
from ..slo.plot_style import Caption
from ..slo.plots import plot_classes, plot_ttft_cdf
from ..slo.stamp_file import SUFFIX, write_stamps
from ..workload.file import write_workload
from .versus import OWN_BOUNDS, LiveReport

TTFT, BY_RANK = "ttft.png", "attainment-rank.png"


def write_raw(report: LiveReport, folder: Path, machine: Machine) -> None:
    live = report.live
    folder.mkdir(parents=True, exist_ok=True)
    for name, workload, cells, simulated in (
        ("A", live.fit, live.fit_cells, report.simulated_fit),
        ("B", live.judged, live.judged_cells, report.simulated),
    ):
        write_workload(workload, folder / f"{name}.workload{SUFFIX}")
        for cell in cells:
            stem = f"{name}-{cell.policy}-live-{cell.round_idx + 1}"
            write_stamps(folder / f"{stem}{SUFFIX}", cell.run, workload, machine=machine)
            write_step_log(folder / f"{stem}.steps.csv.gz", cell.steps)
        for run in simulated:
            path = folder / f"{name}-{run.policy}-simulated{SUFFIX}"
            write_stamps(path, run, workload, machine=machine)


def draw_plots(report: LiveReport, folder: Path, machine: Machine) -> None:
    """Of B: first tokens, and attainment by rank, live and simulated."""
    live = report.live
    runs = [cell.run for cell in live.judged_cells]
    by_label = [[run for run in runs if run.policy == one.policy] for one in report.simulated]
    model = live.facts.model.partition(";")[0]  # as much of it as a line holds
    caption = Caption(model, live.facts.device, machine.commit)
    rate_per_s = len(live.judged.requests) / live.judged.span_s
    cells = [
        Cell(rate_per_s, figures(run, live.judged, OWN_BOUNDS))
        for run in (*runs, *report.simulated)
    ]
    curves = [curve_of(same) for same in (*by_label, *([run] for run in report.simulated))]
    plot_ttft_cdf(folder / TTFT, curves, caption, title="Time to first token, live and simulated")
    load = f"{rate_per_s:.1f} requests/s, live and simulated"
    plot_classes(folder / BY_RANK, cells, caption, by="rank", load=load)
