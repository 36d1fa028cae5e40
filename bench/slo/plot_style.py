"""How every plot of this folder looks: size, colours, title, and a file of the same bytes.

Colours are Okabe and Ito's, which those who see fewer of them tell apart; markers differ too, and
what was simulated is dashed and hollow. Owns the figure's life; knows no data. matplotlib is
imported inside, since it is slow and most benches draw nothing. Called by plots.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE_IN, DPI = (6.4, 4.0), 100  # inches
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
SIMULATED = " (simulated)"  # ends the label of what was


@dataclass(frozen=True, slots=True)
class Caption:
    """Where a picture's numbers come from; stands below every title."""

    model: str
    device: str
    commit: str

    @property
    def line(self) -> str:
        return f"{self.model}, {self.device}, commit {self.commit}"


@dataclass(frozen=True, slots=True)
class Look:
    """Of one series."""

    colour: str
    marker: str
    line: str  # matplotlib's word
    fill: str


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """By the order of the names; a simulated series looks like its live one, but hollow."""
    ordered = list(dict.fromkeys(labels))
    names = sorted({label.removesuffix(SIMULATED) for label in ordered})
    found: dict[str, Look] = {}
    for label in ordered:
        place, hollow = names.index(label.removesuffix(SIMULATED)), label.endswith(SIMULATED)
        colour = COLOURS[place % len(COLOURS)]
        marker = MARKERS[place % len(MARKERS)]
        found[label] = Look(colour, marker, "--" if hollow else "-", "white" if hollow else colour)
    return found


def draw(path: Path, title: str, caption: Caption, fill: Callable[[Any], None]) -> None:
    """`fill` gets the axes. Neither the user's style nor the date changes the file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(visible=True, axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        fill(axes)
        # Outside: within, it would cover bars and curves of some results.
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title, fontsize=11)
        axes.set_title(caption.line, fontsize=8, color=GREY)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})
