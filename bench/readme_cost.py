"""The README's part on the cost model, drawn from bench/results/cost-cpu.json (`lorry bench cost`).

Owns what of it is shown: each load's laws on steps they were not fitted to, and where that was
measured. Where there is no file it reads "not measured". Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .cost.laws import FULL
from .readme_results import RESULTS_DIR, render_result
from .readme_tables import make_table

COST_PATH = RESULTS_DIR / "cost-cpu.json"
COLUMNS = (
    "load",
    "what is known of adapters",
    "MAPE",
    "R2",
    "decode MAPE",
    "prompt MAPE",
    "worse by",
)


def render_cost(path: Path = COST_PATH) -> str:
    return render_result(path, "lorry bench cost", _draw)


def _draw(document: Mapping[str, Any]) -> str:
    rows = [row for name, load in document["loads"].items() for row in _rows(name, load)]
    return f"{make_table(COLUMNS, rows)}\n\n{_facts(document)}"


def _rows(name: str, load: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for law in load["laws"]:
        worse = f"{100 * law['worse']:+.1f} % [{100 * law['worse_low']:+.1f}, "
        worse += f"{100 * law['worse_high']:+.1f}], {load['kind']}"
        yield (
            name,
            law["what"],
            f"{100 * law['all_steps']['mape']:.1f} %",
            f"{law['all_steps']['r2']:.3f}",
            f"{100 * law['decode_steps']['mape']:.1f} %",
            f"{100 * law['prompt_steps']['mape']:.1f} %",
            "" if law["name"] == FULL else worse,
        )


def _facts(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    sizes = ", ".join(
        f"*{name}* fitted to {load['num_fit']} steps, judged on {load['num_judged']} of another "
        "trace"
        for name, load in document["loads"].items()
    )
    return "\n".join(
        [
            f"- {sizes}.",
            f"- {machine['cpu']}, {machine['num_cores']} cores; {machine['os']}, Python "
            f"{machine['python']}.",
            f"- Command: `lorry bench cost`. Commit: `{machine['commit']}`.",
        ]
    )
