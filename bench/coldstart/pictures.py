"""The PNGs of a run: times to first tokens by way, and the course of one cold start by way.

Owns the names, which the README's part uses too, and what each shows. Bars of a course are the
server's own durations laid behind the instant of sending; marks are tokens as they came to the
client. Called by command.py once a run is whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..slo.plot_points import curve_of
from ..slo.plot_style import COLOURS, GREY, Caption, draw
from ..slo.plots import plot_ttft_cdf
from ..slo.stamps import Run
from .document import Report
from .figures import cold_of
from .points import Course, course_of, single_cells
from .sizes import BURST, LABELS, S3, SHOWN_POINT
from .study import Cell

TTFT, BURST_TTFT, COURSE = "coldstart-ttft.png", "coldstart-burst.png", "coldstart-course.png"
PICTURES = (TTFT, BURST_TTFT, COURSE)
BAR, THIN, TICK = 0.34, 0.12, 0.08  # heights, in lines
WAITED, COMPUTED, BYSTANDERS = COLOURS[4], COLOURS[0], COLOURS[2]


def draw_pictures(folder: Path, report: Report) -> None:
    machine = report.machine
    caption = Caption(report.model.partition(";")[0], machine.gpu or machine.cpu, machine.commit)
    cells = report.study.cells
    for name, file in ((S3, TTFT), (BURST, BURST_TTFT)):
        if shown := [cell for cell in cells if cell.row.name == name]:
            title = f"Time to first token, {_told(shown[0])}"
            curves = [curve_of(runs) for runs in _cold_runs(shown)]
            plot_ttft_cdf(folder / file, curves, caption, title=title)
    if courses := courses_of(cells, report):
        told = f"rank {SHOWN_POINT.rank}, prompt of {SHOWN_POINT.num_prompt_tokens}"
        plot_courses(folder / COURSE, courses, caption, title=f"One cold start, {told}")


def _told(cell: Cell) -> str:
    row = cell.row
    ratio = f", load / prefill {row.ratio:g}" if row.ratio else ""
    num_cold = sum(1 for _ in cold_of(cell))
    return f"{row.part}{ratio}, {num_cold} adapters x {row.num_rounds} rounds"


def _cold_runs(cells: Sequence[Cell]) -> list[list[Run]]:
    """By label, without the bystanders."""
    labels = dict.fromkeys(cell.label for cell in cells)
    return [
        [
            Run(label, tuple(stamps for stamps, _ in cold_of(cell)))
            for cell in cells
            if cell.label == label
        ]
        for label in labels
    ]


def courses_of(cells: Sequence[Cell], report: Report) -> list[Course]:
    """Of the first round that has the point, a label each."""
    if SHOWN_POINT not in report.sizes.points:
        return []
    place = report.sizes.points.index(SHOWN_POINT)
    single = single_cells(cells)
    first = [cell for cell in single if (cell.row, cell.round_idx) == (single[0].row, 0)]
    ordered = sorted(first, key=lambda cell: LABELS.index(cell.label))
    return [course_of(cell, place) for cell in ordered]


def plot_courses(path: Path, courses: Sequence[Course], caption: Caption, *, title: str) -> None:
    end_s = 1.15 * max(course.came_s for course in courses if math.isfinite(course.came_s))

    def fill(axes: Any) -> None:
        for line, course in enumerate(courses):
            is_first_load = not any(math.isfinite(one.landed_s) for one in courses[:line])
            _draw_course(axes, line, course, end_s, is_first=line == 0, is_first_load=is_first_load)
        axes.set_yticks(range(len(courses)), [_name(course) for course in courses])
        axes.invert_yaxis()
        axes.set_xlim(-0.1 * end_s, end_s)
        axes.set_xlabel("s since the request was due")
        axes.grid(visible=False)

    draw(path, title, caption, fill)


def _name(course: Course) -> str:
    same = not course.way or course.way == course.label
    return course.label if same else f"{course.label}: {course.way}"


def _draw_course(
    axes: Any, line: int, course: Course, end_s: float, *, is_first: bool, is_first_load: bool
) -> None:
    def label(text: str) -> str | None:
        return text if is_first else None  # one entry of the legend for all lines

    def bar(begin_s: float, to_s: float, height: float, colour: str, name: str | None) -> None:
        axes.barh(line, to_s - begin_s, height, left=begin_s, color=colour, label=name)

    bar(course.sent_s, course.scheduled_s, BAR, WAITED, label("not yet scheduled"))
    bar(course.scheduled_s, course.first_s, BAR, COMPUTED, label("prompt"))
    if math.isfinite(course.landed_s):
        name = "load" if is_first_load else None
        at, wide_s = line - BAR / 2 - THIN, course.landed_s - course.sent_s
        axes.barh(at, wide_s, THIN, left=course.sent_s, color=GREY, label=name)
    shown = [at_s for at_s in course.bystander_s if -0.1 * end_s <= at_s <= end_s]
    low, high = line + BAR / 2 + TICK / 2, line + BAR / 2 + 2 * TICK
    axes.vlines(shown, low, high, color=BYSTANDERS, linewidth=0.8, label=label("others' tokens"))
    axes.plot([course.came_s], [line], "|", color="black", markersize=14)
