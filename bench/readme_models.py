"""The README's tables of models: what is held against PEFT, with what came of it, and what is
refused.

Drawn from exactness/cases.py and refused.py, and from the result of `make exact`. A case that has
no result says so. Same code and result, same text. Called by readme.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .exactness.cases import CASES, Case
from .exactness.refused import REFUSED
from .readme_tables import ReadmeError, as_code, make_table

RESULT_PATH = Path(__file__).resolve().parent / "results" / "exactness.json"
NOT_MEASURED = "not measured"


def render_models(result_path: Path = RESULT_PATH) -> str:
    """Served architectures, then a line on where the figures come from."""
    try:
        document: dict[str, Any] = (
            json.loads(result_path.read_text(encoding="utf-8")) if result_path.exists() else {}
        )
        found = {str(entry["case"]): entry for entry in document.get("cases", ())}
        rows = [_row(case, found.get(case.label)) for case in CASES]
        source = _source(document) if document else "`make exact` has not been run here."
    except (ValueError, KeyError, TypeError) as error:
        raise ReadmeError(f"{result_path.name} is no result of make exact: {error!r}") from error
    headings = ("architecture", "what it has", "head size", "tokens as PEFT's", "bf16", "fp16")
    return f"{make_table(headings, rows)}\n\n{source}"


def render_refused_models() -> str:
    """What is refused, each with its reason and a word of the message."""
    return make_table(
        ("refused", "because", "the message names"),
        [(case.label, case.why, as_code(case.words[0])) for case in REFUSED],
    )


def _row(case: Case, entry: Mapping[str, Any] | None) -> tuple[str, ...]:
    facts = as_code(case.label), case.shows
    if entry is None:
        return (*facts, *[NOT_MEASURED] * 4)
    if entry["failures"]:
        return (*facts, str(entry["head_dim"]), "**no**", "", "")
    runs: list[Mapping[str, Any]] = list(entry["tokens"].values())
    ties = sum(int(run["ties"]) for run in runs)
    tokens = f"all {sum(int(run['tokens']) for run in runs):,}"
    return (
        *facts,
        str(entry["head_dim"]),
        tokens + (f", {ties} ties" if ties else ""),
        *(_errors(entry["rounding"][name]) for name in ("bfloat16", "float16")),
    )


def _errors(found: Mapping[str, Any]) -> str:
    worst = max(float(share["ratio"]) for share in found["adapters"].values())
    return f"{found['ratio']:.2f} ({worst:.2f})"


def _source(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("transformers", "peft"))
    runs = [run for entry in document["cases"] for run in entry["tokens"].values()]
    weakest = min((float(run["least_changed"]) for run in runs), default=0.0)
    return (
        f"`make exact`, commit `{machine['commit']}`, {packages}: {len(document['settings'])} runs "
        "a case through a whole engine, four adapters of ranks 1 to 64 beside the base; the "
        f"adapter that changes least changes {weakest:.0%} of the base's tokens. The last columns "
        "are errors of logits against PEFT in float32 at the median place, the worst adapter's in "
        "brackets; 1.00 is as large as PEFT's own in that precision."
    )
