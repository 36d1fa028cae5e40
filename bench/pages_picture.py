"""A picture of the pool: one cell a page, one letter and colour an adapter, and its legend.

Works on runs of equal pages as GetStats returns them. The letters alone tell the story, so that
it can be read without colours. Knows no server. Printed by the demo.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

FREE, KV, ADAPTER, CACHED = "free", "kv", "adapter", "cached"
ADAPTER_SYMBOLS = string.ascii_uppercase + string.ascii_lowercase
# Adapters past the alphabet share this one.
LATE_SYMBOL = "+"
KV_SYMBOL = "#"
CACHED_SYMBOL = "="
FREE_SYMBOL = "."
KV_STYLE = "black on white"
CACHED_STYLE = "black on grey70"
FREE_STYLE = "bright_black"
ADAPTER_STYLES = tuple(
    f"black on {colour}"
    for colour in (
        "red",
        "green",
        "yellow",
        "bright_blue",
        "magenta",
        "cyan",
        "dark_orange",
        "spring_green2",
        "plum2",
        "light_goldenrod1",
        "deep_sky_blue1",
        "salmon1",
    )
)


@dataclass(frozen=True, slots=True)
class PageRun:
    """Neighbouring pages of one owner."""

    kind: str  # free, kv, adapter or cached
    count: int  # pages
    owner: str  # the adapter's name, or the number of a request


@dataclass(frozen=True, slots=True)
class Mark:
    """How the pages of one owner look."""

    symbol: str
    style: str


MARKS = {
    KV: Mark(KV_SYMBOL, KV_STYLE),
    CACHED: Mark(CACHED_SYMBOL, CACHED_STYLE),
    FREE: Mark(FREE_SYMBOL, FREE_STYLE),
}


def marks_of(runs: Iterable[PageRun]) -> dict[str, Mark]:
    """Adapter name -> mark, by the order of names, so that two pictures agree."""
    names = sorted({run.owner for run in runs if run.kind == ADAPTER})
    return {
        name: Mark(
            ADAPTER_SYMBOLS[idx] if idx < len(ADAPTER_SYMBOLS) else LATE_SYMBOL,
            ADAPTER_STYLES[idx % len(ADAPTER_STYLES)],
        )
        for idx, name in enumerate(names)
    }


def count_pages(runs: Iterable[PageRun]) -> Counter[tuple[str, str]]:
    """(kind, adapter's name or nothing) -> pages."""
    counts: Counter[tuple[str, str]] = Counter()
    for run in runs:
        counts[run.kind, run.owner if run.kind == ADAPTER else ""] += run.count
    return counts


def draw_grid(runs: Sequence[PageRun], width: int) -> Text:
    """The pages in the order of their numbers, `width` to a line."""
    marks = marks_of(runs)
    cells = [mark for run in runs for mark in [_mark(run, marks)] * run.count]
    grid = Text()
    for start in range(0, len(cells), width):
        if start:
            grid.append("\n")
        for cell in cells[start : start + width]:
            grid.append(cell.symbol, cell.style)
    return grid


def _mark(run: PageRun, marks: dict[str, Mark]) -> Mark:
    if run.kind == ADAPTER:
        return marks[run.owner]
    return MARKS[run.kind]


def draw_legend(runs: Sequence[PageRun]) -> Table:
    """A line for each adapter, one for KV, one for what is cached and one for free pages."""
    counts, marks = count_pages(runs), marks_of(runs)
    total = sum(counts.values())
    legend = Table(box=None, show_header=False, pad_edge=False)
    legend.add_column()
    legend.add_column()
    legend.add_column(justify="right")
    legend.add_column(justify="right")
    lines = [(mark, name, counts[ADAPTER, name]) for name, mark in marks.items()]
    lines += [
        (MARKS[KV], "KV of running requests", counts[KV, ""]),
        (MARKS[CACHED], "KV of ended ones, until room is needed", counts[CACHED, ""]),
        (MARKS[FREE], "free", counts[FREE, ""]),
    ]
    for mark, name, count in lines:
        share = f"{count / total:.0%}" if total else "-"
        legend.add_row(Text(mark.symbol, mark.style), name, f"{count} pages", share)
    return legend


def draw_pages(runs: Sequence[PageRun], width: int = 64) -> Group:
    """Grid and legend."""
    return Group(draw_grid(runs, width), Text(), draw_legend(runs))
