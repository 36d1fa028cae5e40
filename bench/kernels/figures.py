"""The figures that are quoted, from the rows of a run; null unless every case of theirs counts.

Each is the worst of its cases (those of `--quick`), so that no case hides another. A comparison
counts only where both peers stand beside us with tuned tables, and all rows come from a recorded
graph and from memory. Pure: rows in, numbers and reasons out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .cases import QUICK, RANKS, pick_cases
from .rivals.folder import PEERS
from .rows import Row

OURS = "triton"
HEADLINE = tuple(f"llama-8b/decode-T64-D64-{name}" for name in RANKS)
_CASES = pick_cases(QUICK)
MIXED_DECODE = tuple(c.name for c in _CASES if c.phase == "decode" and c.ranks_name == "mixed")
# figure -> its cases
COMPARED: Mapping[str, tuple[str, ...]] = {
    "mixed_rank_vs_best_peer": MIXED_DECODE,
    "mixed_rank_prefill_vs_best_peer": tuple(
        c.name for c in _CASES if c.phase == "prefill" and c.ranks_name == "mixed"
    ),
    "same_rank_vs_best_peer": tuple(c.name for c in _CASES if c.ranks_name != "mixed"),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside the fastest way of all peers at one case; over 1: we are faster."""

    case: str
    ratio: float | None = None  # what is prepared for a step counted
    ratio_without_prepare: float | None = None
    best_peer: str = ""  # the way of the first ratio
    why_not: str = ""  # why it does not count; empty: it does


def figures_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures by name, then the comparison of every case that they are made of."""
    compared = {
        case: compare(case, rows) for case in dict.fromkeys(sum(COMPARED.values(), start=()))
    }
    found: dict[str, Any] = {
        # Bytes of the true ranks alone, as the target has it.
        "lora_bandwidth_fraction": _worst(row.factor_fraction for row in _cold(rows, HEADLINE)),
        # Of all bytes that must move: the bound of a decode step's mixed cases.
        "mixed_rank_bandwidth_fraction": _worst(
            row.fraction_of_peak for row in _cold(rows, MIXED_DECODE)
        ),
    }
    for name, cases in COMPARED.items():
        counted = [compared[case] for case in cases]
        whole = all(not comparison.why_not for comparison in counted)
        found[name] = _worst(c.ratio for c in counted) if whole else None
        found[f"{name}_without_prepare"] = (
            _worst(c.ratio_without_prepare for c in counted) if whole else None
        )
    return {**found, "versus_peers": [asdict(comparison) for comparison in compared.values()]}


def compare(case: str, rows: Sequence[Row]) -> Comparison:
    """The ratios are there as soon as a peer is, whether or not they count."""
    measured = [row for row in rows if row.case == case and row.ms is not None]
    ours = next((row for row in measured if row.impl == OURS), None)
    theirs = [row for row in measured if row.peer]
    why_not = _why_not(ours, theirs)
    if ours is None or not theirs:
        return Comparison(case, why_not=why_not)
    best = min(theirs, key=lambda row: row.ms_with_prepare or 0.0)
    return Comparison(
        case,
        ratio=(best.ms_with_prepare or 0.0) / (ours.ms_with_prepare or 1.0),
        ratio_without_prepare=min(row.ms or 0.0 for row in theirs) / (ours.ms or 1.0),
        best_peer=best.impl,
        why_not=why_not,
    )


def _why_not(ours: Row | None, theirs: Sequence[Row]) -> str:
    if ours is None:
        return f"{OURS} was not measured"
    for peer in PEERS:
        mine = [row for row in theirs if row.peer == peer.name]
        if not any(row.is_tuned for row in mine):
            return f"{peer.name} was {'not tuned for it' if mine else 'not measured'}"
    for row in (ours, *theirs):
        if row.how != "graph":
            return f"{row.impl} was not recorded: {row.how}"
        if not row.is_cold:
            return "its layers fit into the cache"
    return ""


def _cold(rows: Iterable[Row], cases: Collection[str]) -> list[Row]:
    """Our rows of these cases; empty unless all are there, and from memory."""
    found = {row.case: row for row in rows if row.impl == OURS and row.case in cases}
    whole = len(found) == len(cases) and all(row.is_cold for row in found.values())
    return list(found.values()) if whole else []


def _worst(values: Iterable[float | None]) -> float | None:
    """The smallest; None where one is missing, or all are."""
    known = list(values)
    return min((v for v in known if v is not None), default=None) if None not in known else None
