"""The README's GPU figures, drawn from bench/results/gpu.json, the file of a `make gpu`.

Owns the rows: every figure that is promised beside its target, measured or not. Where there is no
file, all of them read "not measured". Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gpu.report import FIGURES
from .readme_results import NOT_MEASURED, RESULTS_DIR, render_result
from .readme_tables import make_table

GPU_PATH = RESULTS_DIR / "gpu.json"


def render_gpu(path: Path = GPU_PATH) -> str:
    """Figures beside their targets; below them what was proved, and on what."""
    return render_result(path, "make gpu", _draw, absent=_figures({}))


def _draw(document: Mapping[str, Any]) -> str:
    return "\n".join([_figures(document), "", *_facts(document)])


def _figures(document: Mapping[str, Any]) -> str:
    return make_table(
        ("figure", "measured", "target"),
        ((figure.name, _number(document.get(figure.name)), figure.target) for figure in FIGURES),
    )


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"


def _facts(document: Mapping[str, Any]) -> list[str]:
    machine, parts = document["machine"], document["parts"]
    versions = ", ".join(f"{name} {text}" for name, text in machine["packages"].items())
    told = "; ".join(f"{part['name']} {part['status']} ({part['seconds']:.0f} s)" for part in parts)
    return [
        f"- Parts: {told}.",
        f"- {machine['gpu']}, driver {document['driver']}, Python {machine['python']}, {versions}.",
        f"- Command: `make gpu`. Commit: {machine['commit'] or 'not told'}.",
    ]
