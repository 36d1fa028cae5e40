"""What the plots show, worked out before anything is drawn: points, bars and curves. Pure.

Runs of one policy at one rate are repeats of the same requests: a point is their mean, and its
interval theirs. Called by plots.py; apart from it, so that the numbers in a picture can be tested
without one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .figures import Figures, Group
from .intervals import Interval, mean_of_repeats
from .plot_style import SIMULATED
from .stamps import Run

MAX_CURVE_POINTS = 1000
Classes = Literal["rank", "popularity"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run at a nominal rate."""

    rate_per_s: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class Point:
    rate_per_s: float
    attainment: Interval
    goodput_per_s: Interval


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    num_requests: int  # of one run
    attainment: Interval


@dataclass(frozen=True, slots=True)
class Curve:
    """How the first tokens came: after `ttft_s` seconds `share` of all requests had theirs."""

    label: str
    ttft_s: tuple[float, ...]
    share: tuple[float, ...]  # ends below 1 where some got none


def label_of(policy: str, *, simulated: bool) -> str:
    return policy + (SIMULATED if simulated else "")


def points_of(cells: Sequence[Cell]) -> dict[str, list[Point]]:
    """Label -> points by rising rate."""
    repeats: dict[tuple[str, float], list[Figures]] = defaultdict(list)
    for cell in cells:
        repeats[_label(cell), cell.rate_per_s].append(cell.figures)
    found: dict[str, list[Point]] = defaultdict(list)
    for label, rate_per_s in sorted(repeats):
        runs = repeats[label, rate_per_s]
        share = mean_of_repeats(run.attainment for run in runs)
        goodput_per_s = mean_of_repeats(run.goodput_per_s for run in runs)
        found[label].append(Point(rate_per_s, share, goodput_per_s))
    return dict(found)


def bars_of(cells: Sequence[Cell], by: Classes) -> dict[str, list[Bar]]:
    """Label -> a bar for each class, in the order of the figures."""
    counts: dict[str, dict[str, list[Group]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups = cell.figures.by_rank if by == "rank" else cell.figures.by_popularity
        for group in groups:
            counts[_label(cell)][group.name].append(group)
    return {
        label: [_bar(name, groups) for name, groups in named.items()]
        for label, named in sorted(counts.items())
    }


def curve_of(runs: Sequence[Run]) -> Curve:
    """Of one policy's runs, requests counted together; thinned where there are very many."""
    (label,) = {label_of(run.policy, simulated=run.simulated) for run in runs}
    stamps = [one for run in runs for one in run.requests]
    came = np.sort([one.first_s - one.due_s for one in stamps if not math.isnan(one.first_s)])
    ranks = np.arange(1, len(came) + 1)
    if len(came) > MAX_CURVE_POINTS:
        keep = np.linspace(0, len(came) - 1, MAX_CURVE_POINTS).astype(int)
        came, ranks = came[keep], ranks[keep]
    return Curve(label, tuple(came.tolist()), tuple((ranks / len(stamps)).tolist()))


def _label(cell: Cell) -> str:
    return label_of(cell.figures.policy, simulated=cell.figures.simulated)


def _bar(name: str, groups: Sequence[Group]) -> Bar:
    num_requests = max(group.num_requests for group in groups)
    return Bar(name, num_requests, mean_of_repeats(group.attainment for group in groups))
