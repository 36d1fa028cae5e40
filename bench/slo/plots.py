"""The pictures of a bench: attainment and goodput against load, TTFT, attainment by class.

One PNG a function, of points that plot_points.py has worked out, in the style of plot_style.py.
Error bars are Wilson's. Knows no server and no file of results. Called by `lorry bench slo` and
`lorry bench sim` when they have their figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .intervals import Interval
from .plot_points import Bar, Cell, Classes, Curve, bars_of, points_of
from .plot_style import GREY, Caption, Look, draw, looks_of

ATTAINMENT = "attainment (share that met both bounds)"
LOAD = "offered load (requests/s)"
OVERLAID = 0.75  # opacity: one policy's line may lie on another's
BARS_WIDTH = 0.8  # of the distance between two classes


def plot_attainment(path: Path, cells: Sequence[Cell], caption: Caption) -> None:
    def fill(axes: Any) -> None:
        series = points_of(cells)
        for label, look in looks_of(series).items():
            points = series[label]
            rates = [point.rate_per_s for point in points]
            _line(axes, label, look, rates, [point.attainment for point in points])
        _attainment_axis(axes)
        _load_axis(axes)

    draw(path, "SLO attainment against load", caption, fill)


def plot_goodput(path: Path, cells: Sequence[Cell], caption: Caption) -> None:
    """With the line that a server would follow which always keeps every bound."""

    def fill(axes: Any) -> None:
        series = points_of(cells)
        most = max(cell.rate_per_s for cell in cells)
        axes.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle=":", label="offered")
        for label, look in looks_of(series).items():
            points = series[label]
            rates = [point.rate_per_s for point in points]
            _line(axes, label, look, rates, [point.goodput_per_s for point in points])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("goodput (requests/s that met both bounds)")
        _load_axis(axes)

    draw(path, "Goodput against load", caption, fill)


def plot_ttft_cdf(
    path: Path, curves: Sequence[Curve], caption: Caption, *, title: str = "Time to first token"
) -> None:
    """A curve that ends below 1 belongs to a policy that gave some requests no token."""

    def fill(axes: Any) -> None:
        looks = looks_of(curve.label for curve in curves)
        for curve in curves:
            look = looks[curve.label]
            axes.step(
                curve.ttft_s,
                curve.share,
                where="post",
                label=curve.label,
                color=look.colour,
                linestyle=look.line,
                linewidth=1.6,
                alpha=OVERLAID,
            )
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("time from due to first token (s, logarithmic)")
        axes.set_ylabel("share of all requests")

    draw(path, title, caption, fill)


def plot_classes(
    path: Path, cells: Sequence[Cell], caption: Caption, *, by: Classes, load: str
) -> None:
    """`load`: what the cells have in common, as the title says it."""

    def fill(axes: Any) -> None:
        series = bars_of(cells, by)
        names = list(dict.fromkeys(bar.name for bars in series.values() for bar in bars))
        width = BARS_WIDTH / len(series)
        for place, (label, look) in enumerate(looks_of(series).items()):
            shift = (place - (len(series) - 1) / 2) * width
            _bars(
                axes,
                label,
                look,
                series[label],
                [names.index(b.name) for b in series[label]],
                shift=shift,
                width=width,
            )
        axes.set_xticks(range(len(names)), [_with_count(name, series) for name in names])
        axes.set_xlabel("adapter's rank" if by == "rank" else "adapter's popularity")
        _attainment_axis(axes)

    draw(path, f"SLO attainment by {by}, {load}", caption, fill)


def _line(
    axes: Any, label: str, look: Look, x: Sequence[float], points: Sequence[Interval]
) -> None:
    axes.errorbar(
        x,
        [point.value for point in points],
        yerr=_errors(points),
        label=label,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markerfacecolor=look.fill,
        markersize=6,
        linewidth=1.6,
        capsize=3,
        alpha=OVERLAID,
    )


def _bars(
    axes: Any,
    label: str,
    look: Look,
    bars: Sequence[Bar],
    places: Sequence[int],
    *,
    shift: float,
    width: float,
) -> None:
    shares = [bar.attainment for bar in bars]
    axes.bar(
        [place + shift for place in places],
        [share.value for share in shares],
        width * 0.92,
        yerr=_errors(shares),
        label=label,
        color=look.fill,
        edgecolor=look.colour,
        linewidth=1.2,
        capsize=3,
        error_kw={"elinewidth": 1, "ecolor": "#333333"},
    )


def _errors(points: Sequence[Interval]) -> list[list[float]]:
    """Lengths below and above, as matplotlib takes them."""
    return [
        [point.value - point.low for point in points],
        [point.high - point.value for point in points],
    ]


def _attainment_axis(axes: Any) -> None:
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(ATTAINMENT)


def _load_axis(axes: Any) -> None:
    axes.set_xlim(left=0)
    axes.set_xlabel(LOAD)


def _with_count(name: str, series: dict[str, list[Bar]]) -> str:
    """Few requests are few, and the axis says so."""
    counts = {bar.num_requests for bars in series.values() for bar in bars if bar.name == name}
    least, most = min(counts, default=math.nan), max(counts, default=math.nan)
    return f"{name}\nn = {least}" + (f" to {most}" if most != least else "")
