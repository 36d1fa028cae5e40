"""The result of a run of the cost bench: the file, and the table.

Pure. The figures that are quoted come first: they are of the load where ranks matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ..machine import Machine
from ..slo.plain import plain
from .judgement import Judgement, LawResult
from .laws import FULL


@dataclass(frozen=True, slots=True)
class Report:
    judgements: Mapping[str, Judgement]  # by load; the first one is quoted
    about: Mapping[str, Any]  # the loads' settings, or the files that were given
    machine: Machine


def make_document(report: Report) -> dict[str, Any]:
    first = next(iter(report.judgements.values()))
    full = _law(first, FULL)
    return plain(
        {
            "bench": "cost",
            "cost_model_r2": full.all_steps.r2,
            "cost_model_mape": full.all_steps.mape,
            "prompt_mape": full.prompt_steps.mape,
            "prompt_mape_padded": _law(first, "padded").prompt_steps.mape,
            "prompt_mape_counts": _law(first, "counts").prompt_steps.mape,
            "prompt_mape_none": _law(first, "none").prompt_steps.mape,
            "loads": report.judgements,
            "about": report.about,
            "machine": report.machine,
        }
    )


def _law(judgement: Judgement, name: str) -> LawResult:
    return next(law for law in judgement.laws if law.name == name)


def ceiling_line(name: str, found: Judgement) -> str:
    best, decode = found.ceiling, found.decode_ceiling
    return (
        f"{name}: fitted to the {found.num_judged} judged steps themselves, a linear model has "
        f"MAPE {best.mape:.1%} and R2 {best.r2:.3f}; on those that only decode {decode.mape:.1%} "
        f"and {decode.r2:.3f}"
    )


def draw_table(name: str, found: Judgement) -> Table:
    table = Table(
        title=f"{name}: fitted to {found.num_fit} steps of one trace, judged on {found.num_judged} "
        f"of another; online the server foretold these to {found.online.mape:.1%}; worse by: on "
        f"{found.kind} steps"
    )
    for column in ("knows of adapters", "MAPE", "R2", "decode MAPE", "prompt MAPE", "worse by"):
        table.add_column(column, justify="left" if column.startswith("knows") else "right")
    for law in found.laws:
        table.add_row(
            law.what,
            f"{law.all_steps.mape:.1%}",
            f"{law.all_steps.r2:.3f}",
            f"{law.decode_steps.mape:.1%}",
            f"{law.prompt_steps.mape:.1%}",
            "" if law.name == FULL else _interval(law),
        )
    return table


def _interval(law: LawResult) -> str:
    return f"{law.worse:+.1%} [{law.worse_low:+.1%}, {law.worse_high:+.1%}]"
