"""The part `single` point by point: cold requests by rank and prompt, and one start's course.

Pure. A point is a rank and a prompt length; its figures are means over the rounds. The course of
one cold start is drawn from the server's own durations, laid behind the instant at which the client
sent the request, and from the instants at which tokens came to its bystanders. Called by
document.py and pictures.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ..slo.stamps import RequestStamps
from .figures import bystanders_of, cold_of, mean_tpot_s, ttft_s
from .sizes import NUM_BYSTANDERS, SINGLE, Point
from .study import Cell


@dataclass(frozen=True, slots=True)
class PointFigures:
    point: Point
    label: str
    ttft_s: float  # mean over the rounds, as the next
    tpot_s: float
    bystander_tpot_s: float
    ways: tuple[str, ...]  # one a round; empty: it was warm


@dataclass(frozen=True, slots=True)
class Course:
    """One cold start; instants count from when the request was due."""

    label: str
    way: str  # empty: it was warm
    sent_s: float
    scheduled_s: float  # by the server's durations, from `sent_s`
    first_s: float  # the first token, by the same
    came_s: float  # the first token at the client
    landed_s: float  # end of the load, begun when the request came; NaN: there was none
    bystander_s: tuple[float, ...]  # tokens of the eight, in order


def single_cells(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.row.part == SINGLE]


def figures_by_point(cells: Sequence[Cell], points: Sequence[Point]) -> list[PointFigures]:
    """Of one row; points in their order, labels in that of the cells."""
    labels = dict.fromkeys(cell.label for cell in cells)
    return [
        _point(point, place, label, [cell for cell in cells if cell.label == label])
        for place, point in enumerate(points)
        for label in labels
    ]


def _point(point: Point, place: int, label: str, cells: Sequence[Cell]) -> PointFigures:
    found = [list(cold_of(cell))[place] for cell in cells]
    beside = [stamps for cell in cells for stamps in _beside(cell, place)]
    return PointFigures(
        point,
        label,
        ttft_s=fmean(ttft_s(stamps) for stamps, _ in found),
        tpot_s=mean_tpot_s(stamps for stamps, _ in found),
        bystander_tpot_s=mean_tpot_s(beside),
        ways=tuple(told.way for _, told in found if told.way),
    )


def _beside(cell: Cell, place: int) -> list[RequestStamps]:
    return bystanders_of(cell)[place * NUM_BYSTANDERS : (place + 1) * NUM_BYSTANDERS]


def course_of(cell: Cell, place: int) -> Course:
    """Of the cold request with that number."""
    stamps, told = list(cold_of(cell))[place]
    name = cell.workload.requests[stamps.index].adapter
    due_s = stamps.due_s
    sent_s = stamps.sent_s - due_s
    tokens = sorted(at_s - due_s for one in _beside(cell, place) for at_s in one.piece_s)
    return Course(
        cell.label,
        told.way,
        sent_s,
        scheduled_s=sent_s + told.queue_s,
        first_s=sent_s + told.queue_s + told.prefill_s,
        came_s=ttft_s(stamps),
        landed_s=sent_s + cell.loads_s[name] if name in cell.loads_s else math.nan,
        bystander_s=tuple(tokens),
    )
