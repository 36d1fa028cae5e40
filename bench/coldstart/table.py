"""The run as it is printed: ceiling, rows, points. Pure; called by command.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from .figures import LabelFigures, RowFigures
from .points import PointFigures
from .sizes import CACHED

COLUMNS = (
    *("row", "server", "TTFT ms mean", "P50", "P99", "/ cached", "TPOT ms"),
    *("bystanders' TPOT ms", "ways", "foretold"),
)


def ceiling_lines(rows: Sequence[RowFigures]) -> Iterator[str]:
    """What every way is measured by: the same load with every adapter in the pool."""
    for row in rows:
        if CACHED in row.by_label:
            found = row.by_label[CACHED]
            yield (
                f"ceiling, {row.name}: every adapter cached, mean TTFT "
                f"{1e3 * found.ttft.mean_s:.1f} ms, P99 {1e3 * found.ttft.p99_s:.1f} ms; "
                f"two equal servers differ by {ratio(row.spread)}"
            )


def draw_rows(rows: Sequence[RowFigures]) -> Table:
    table = Table()
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 1 < place < len(COLUMNS) - 2 else "left")
    for row in rows:
        for one in row.by_label.values():
            table.add_row(*_cells(row, one), end_section=one.label == list(row.by_label)[-1])
    return table


def _cells(row: RowFigures, one: LabelFigures) -> tuple[str, ...]:
    return (
        row.name,
        one.label,
        *(ms(value) for value in (one.ttft.mean_s, one.ttft.p50_s, one.ttft.p99_s)),
        ratio(row.ttft_ratio(one.label)),
        ms(one.tpot_s),
        ms(one.bystander_tpot_s),
        ways(one.chosen),
        ratio(one.foretold),
    )


def draw_points(points: Sequence[PointFigures]) -> Table:
    """Mean TTFT by rank and prompt, a column a server."""
    labels = list(dict.fromkeys(one.label for one in points))
    table = Table(title="one cold request beside eight who decode: mean TTFT, ms")
    for name in ("rank", "prompt", *labels):
        table.add_column(name, justify="right")
    for point in dict.fromkeys(one.point for one in points):
        of_point = {one.label: one for one in points if one.point == point}
        cells = [ms(of_point[label].ttft_s) for label in labels]
        table.add_row(str(point.rank), str(point.num_prompt_tokens), *cells)
    return table


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if math.isfinite(seconds) else "-"


def ratio(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def ways(chosen: Mapping[str, int]) -> str:
    return ", ".join(f"{way} {count}" for way, count in chosen.items()) or "warm"
