"""The PNGs of a run: which figures each shows, and under which name.

Owns the names, which the README's part uses too. Plots of a single load show the first above
capacity. Called by command.py once a run is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .offers import shown_offer
from .plot_points import Cell as Point
from .plot_points import curve_of
from .plot_style import Caption
from .plots import plot_attainment, plot_classes, plot_goodput, plot_ttft_cdf
from .report import Report, Row

ATTAINMENT, GOODPUT, TTFT = "slo-attainment.png", "slo-goodput.png", "slo-ttft.png"
BY_RANK, BY_POPULARITY = "slo-rank.png", "slo-popularity.png"
PICTURES = (ATTAINMENT, GOODPUT, TTFT, BY_RANK, BY_POPULARITY)


def caption_of(report: Report) -> Caption:
    machine = report.machine
    device = machine.gpu if report.place.device.startswith("cuda") else machine.cpu
    return Caption(report.model.partition(";")[0], device or report.place.device, machine.commit)


def draw_pictures(folder: Path, report: Report, rows: Sequence[Row]) -> None:
    caption = caption_of(report)
    points = [Point(row.offer.rate_per_s, one) for row in rows for one in row.rounds]
    plot_attainment(folder / ATTAINMENT, points, caption)
    plot_goodput(folder / GOODPUT, points, caption)
    shown = shown_offer(report.offers, capacity_per_s=report.capacity.requests_per_s)
    load = f"{shown.label}, {shown.rate_per_s:.2f} requests/s"
    at_load = [
        Point(row.offer.rate_per_s, one)
        for row in rows
        if row.offer.label == shown.label
        for one in row.rounds
    ]
    plot_classes(folder / BY_RANK, at_load, caption, by="rank", load=load)
    plot_classes(folder / BY_POPULARITY, at_load, caption, by="popularity", load=load)
    runs = {
        policy: [
            cell.run
            for cell in report.cells
            if cell.turn.policy == policy and report.offers[cell.turn.offer_idx] is shown
        ]
        for policy in report.policies
    }
    curves = [curve_of(of_policy) for of_policy in runs.values() if of_policy]
    plot_ttft_cdf(folder / TTFT, curves, caption, title=f"Time to first token, {load}")
