"""One row of the result: one way at one case; without milliseconds it says why.

Pure: numbers in, numbers out. What follows from rows is in figures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cases import Case, factor_bytes, must_move_bytes


@dataclass(frozen=True, slots=True)
class Row:
    op: str
    case: str
    impl: str
    peer: str = ""  # whose kernels, where they are somebody else's
    is_tuned: bool = False  # a peer, with tables tuned for this case on this device
    ms: float | None = None  # of one layer, all its groups
    # With the layer's share, over the layers of the model, of what is prepared once a step.
    ms_with_prepare: float | None = None
    gb_s: float | None = None  # bytes that must move, over ms
    fraction_of_peak: float | None = None  # of the copy bandwidth measured in the same run
    factor_fraction: float | None = None  # the same of true-rank factors alone, rows not counted
    prepare_ms: float | None = None  # of a step, for all layers, until the device is done with it
    how: str = ""  # graph, eager or cpu
    num_layers: int = 0  # cycled over
    is_cold: bool = False  # they outgrow the cache
    max_error: float | None = None  # of a row, against the reference
    not_measured: str = ""  # why ms is missing
    failed: bool = False  # it is missing because the result was wrong or the way broke


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a row's time is held against."""

    element_bytes: int
    peak_gb_s: float
    cache_bytes: int


def make_row(
    case: Case,
    impl: str,
    bounds: Bounds,
    *,
    step_ms: float,
    prepare_ms: float,
    num_layers: int,
    how: str,
    max_error: float,
    peer: str = "",
    is_tuned: bool = False,
) -> Row:
    """`step_ms` is of `num_layers` layers."""
    ms = step_ms / num_layers
    moved = must_move_bytes(case, bounds.element_bytes)
    peak_bytes = bounds.peak_gb_s * 1e6 * ms
    return Row(
        op="lora",
        case=case.name,
        impl=impl,
        peer=peer,
        is_tuned=is_tuned,
        ms=ms,
        ms_with_prepare=ms + prepare_ms / case.layer.model_layers,
        gb_s=moved / ms / 1e6,
        fraction_of_peak=moved / peak_bytes,
        factor_fraction=factor_bytes(case, bounds.element_bytes) / peak_bytes,
        prepare_ms=prepare_ms,
        how=how,
        num_layers=num_layers,
        is_cold=num_layers * moved >= 2 * bounds.cache_bytes,
        max_error=max_error,
    )


def failures(rows: Sequence[Row]) -> list[str]:
    """What is wrong with our own code: it fails the run. A peer's failure is its row's affair."""
    return [
        f"{row.impl} at {row.case}: {row.not_measured}"
        for row in rows
        if row.failed and not row.peer
    ]
