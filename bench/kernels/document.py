"""The result of a run as the file and the table hold it. Pure: rows in, JSON and a table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..machine import Machine
from .figures import figures_of
from .rows import Row, failures


@dataclass(frozen=True, slots=True)
class Report:
    device: str
    dtype: str
    peak_gb_s: float  # copy bandwidth, read and written
    cache_bytes: int
    rows: tuple[Row, ...]
    not_measured: Mapping[str, str]  # way or case -> why it has no row
    ways: Mapping[str, str]  # way -> what it is
    versions: Mapping[str, str]  # of the peers' files
    machine: Machine
    wall_s: float
    is_whole: bool  # the run came to its end; else this is what it had by then


def make_document(report: Report) -> dict[str, Any]:
    """The figures that are quoted come first."""
    return {
        "bench": "kernels",
        **figures_of(report.rows),
        "is_whole": report.is_whole,
        "failures": failures(report.rows),
        "device": report.device,
        "dtype": report.dtype,
        "copy_gb_s": report.peak_gb_s,
        "cache_bytes": report.cache_bytes,
        "wall_s": report.wall_s,
        "not_measured": dict(report.not_measured),
        "ways": dict(report.ways),
        "peer_versions": dict(report.versions),
        "machine": asdict(report.machine),
        "rows": [asdict(row) for row in report.rows],
    }


def draw_rows(rows: Sequence[Row]) -> Table:
    table = Table(title="LoRA of one layer (all linears), medians; bytes are those that must move")
    for name in ("case", "impl", "ms", "GB/s", "of peak", "factors", "prepare ms", "how"):
        table.add_column(name, justify="left" if name in ("case", "impl", "how") else "right")
    last = ""
    for row in rows:
        case, last = ("" if row.case == last else row.case), row.case
        if row.ms is None:
            table.add_row(case, row.impl, *5 * ["-"], row.not_measured)
            continue
        table.add_row(
            case,
            row.impl,
            f"{row.ms:.4f}",
            f"{row.gb_s or 0:.1f}",
            f"{row.fraction_of_peak or 0:.0%}",
            f"{row.factor_fraction or 0:.0%}",
            f"{row.prepare_ms or 0:.3f}",
            row.how if row.is_cold else f"{row.how}, cache not cold",
        )
    return table
