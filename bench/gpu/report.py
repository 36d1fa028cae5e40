"""The one file and the short table of a `make gpu`.

Pure: outcomes in, plain JSON and a drawn table out. The figures that are promised come first, null
where they were not measured, and null as well where what they time was not proved right in the
same run: a fast wrong step has no speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .parts import Part
from .run import FAILED, PASSED, TIMED_OUT, Outcome

# Parts without which a figure of kernels alone counts for nothing, and one of whole steps.
KERNELS_RIGHT = ("kernels",)
STEPS_RIGHT = ("kernels", "execution", "peft", "demo")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the promise, and which part's file has it under the same name."""

    name: str
    part: str
    target: str  # as the table shows it
    needs: tuple[str, ...]  # parts that must have passed


FIGURES = (
    Figure("decode_step_vs_floor", "step", "at most 1.25, first 1.5", STEPS_RIGHT),
    Figure("lora64_step_vs_floor", "step", "at most 1.3", STEPS_RIGHT),
    Figure("base_only_with_lora_on", "step", "1.00", STEPS_RIGHT),
    Figure("lora_bandwidth_fraction", "kernel-bench", "at least 0.70", KERNELS_RIGHT),
    Figure(
        "mixed_rank_vs_best_peer",
        "kernel-bench",
        "at least 1.5, or 85 % of the bound",
        KERNELS_RIGHT,
    ),
    Figure("mixed_rank_bandwidth_fraction", "kernel-bench", "0.85 where not 1.5", KERNELS_RIGHT),
    Figure("mixed_rank_prefill_vs_best_peer", "kernel-bench", "at least 1.5", KERNELS_RIGHT),
    Figure("same_rank_vs_best_peer", "kernel-bench", "at least 1.0", KERNELS_RIGHT),
)


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    passed = {outcome.part.name: outcome for outcome in outcomes if outcome.status == PASSED}
    return {
        figure.name: _number(passed.get(figure.part), figure.name)
        if passed.keys() >= set(figure.needs)
        else None
        for figure in FIGURES
    }


def _number(outcome: Outcome | None, name: str) -> float | None:
    if outcome is None or outcome.document is None:
        return None
    value = outcome.document.get(name)
    return float(value) if isinstance(value, int | float) else None


def make_document(
    outcomes: Sequence[Outcome],
    parts: Sequence[Part],
    machine: Mapping[str, Any],
    *,
    driver: str,
    seconds: float,
) -> dict[str, Any]:
    """`results` holds what each part wrote, so that this file is all there is to keep.

    `parts`: all that there are, run or not.
    """
    return {
        "bench": "gpu",
        **figures_of(outcomes),
        "correct": is_correct(outcomes, parts),
        "seconds": round(seconds, 1),
        "parts": [
            {
                "name": outcome.part.name,
                "shows": outcome.part.shows,
                "proves": outcome.part.proves,
                "status": outcome.status,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 1),
                "budget_s": round(outcome.budget_s, 1),
                # Of a part that passed its own file says all.
                "last_lines": [] if outcome.status == PASSED else list(outcome.last_lines),
            }
            for outcome in outcomes
        ],
        "driver": driver,
        "machine": dict(machine),
        "results": {outcome.part.name: outcome.document for outcome in outcomes},
    }


def is_correct(outcomes: Sequence[Outcome], parts: Sequence[Part]) -> bool | None:
    """Whether every part that proves something did; None: not all were run, and none failed."""
    statuses = {outcome.part.name: outcome.status for outcome in outcomes}
    found = [statuses.get(part.name) for part in parts if part.proves]
    if FAILED in found or TIMED_OUT in found:
        return False
    return True if all(status == PASSED for status in found) else None


def all_proved(outcomes: Sequence[Outcome]) -> bool:
    """Whether each part that was to prove something did."""
    return all(outcome.status == PASSED for outcome in outcomes if outcome.part.proves)


def draw_parts(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="make gpu")
    for name in ("part", "shows", "", "s"):
        table.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
    for outcome in outcomes:
        colour = "green" if outcome.status == PASSED else "red"
        verdict = outcome.status + (f": {outcome.reason}" if outcome.reason else "")
        table.add_row(
            outcome.part.name,
            outcome.part.shows,
            f"[{colour}]{verdict}[/{colour}]",
            f"{outcome.seconds:.0f}",
        )
    return table


def draw_figures(figures: Mapping[str, float | None]) -> Table:
    table = Table()
    for name in ("figure", "measured", "target"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for figure in FIGURES:
        value = figures[figure.name]
        table.add_row(
            figure.name, "not measured" if value is None else f"{value:.3f}", figure.target
        )
    return table
