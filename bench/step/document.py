"""The result of a run of the step bench: ratios from milliseconds, the file, the table.

Pure. The three ratios that are quoted come first; those to the floor are of the engine's whole
loop. The runner's own time stands beside it, with the next step launched before the last one's
tokens are read and in a plain loop: what lies between is the engine's, or the launches'.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from ..machine import Machine
from .floors import Floor, StepLoad
from .kernel_times import KernelTimes
from .shapes import StepShape

# What is measured, in this order; `base_on` is a base-only step while adapters are attached.
WAYS = {
    "base": "base, no adapter attached",
    "lora": "every row with an adapter",
    "base_on": "base rows alone, adapters attached",
}


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One kind of step, repeated."""

    overlapped_ms: tuple[float, ...]
    plain_ms: tuple[float, ...]

    def __add__(self, other: StepTimes) -> StepTimes:
        return StepTimes(self.overlapped_ms + other.overlapped_ms, self.plain_ms + other.plain_ms)

    @property
    def ms(self) -> float:
        return statistics.median(self.overlapped_ms)


@dataclass(frozen=True, slots=True)
class Report:
    shape: StepShape
    load: StepLoad  # of the step with adapters
    device: str
    kernels_name: str  # asked for: auto, triton, cpu
    bytes_per_s: float  # of a copy, in the same run
    floors: Mapping[str, Floor]  # by way
    times: Mapping[str, StepTimes]  # by way, of the runner alone
    engine_ms: Mapping[str, tuple[float, ...]]  # by way, of the engine's steps; empty: not yet
    kernels: Mapping[str, KernelTimes]  # by way; empty on a CPU
    notes: tuple[str, ...]
    machine: Machine
    reserved_bytes: tuple[int, int]  # by torch on the device: before the first timed step, at end


def make_document(report: Report) -> dict[str, Any]:
    times, floors = report.times, report.floors
    over = {
        way: statistics.median(report.engine_ms[way]) / floors[way].ms(report.bytes_per_s)
        if way in report.engine_ms
        else None
        for way in ("base", "lora")
    }
    return {
        "bench": "step",
        "decode_step_vs_floor": over["base"],
        f"lora{len(report.load.ranks)}_step_vs_floor": over["lora"],
        "base_only_with_lora_on": times["base_on"].ms / times["base"].ms,
        "shape": report.shape.name,
        "device": report.device,
        "kernels_asked": report.kernels_name,
        "dtype": report.load.dtype,
        "batch": report.load.batch,
        "context": report.load.context,
        "ranks": list(report.load.ranks),
        "copy_gb_s": report.bytes_per_s / 1e9,
        "rows": [_row(report, way) for way in times],
        "kernels": {way: asdict(found) for way, found in report.kernels.items()},
        "notes": list(report.notes),
        "reserved_bytes_before": report.reserved_bytes[0],
        "reserved_bytes_after": report.reserved_bytes[1],
        "machine": asdict(report.machine),
    }


def _row(report: Report, way: str) -> dict[str, Any]:
    times, floor = report.times[way], report.floors[way]
    engine = report.engine_ms.get(way, ())
    return {
        "way": way,
        "what": WAYS[way],
        "engine_ms": statistics.median(engine) if engine else None,
        "ms": times.ms,
        "plain_ms": statistics.median(times.plain_ms),
        "floor_ms": floor.ms(report.bytes_per_s),
        "ratio": times.ms / floor.ms(report.bytes_per_s),
        **asdict(floor),
        "all_ms": [round(value, 4) for value in times.overlapped_ms],
        "all_engine_ms": [round(value, 4) for value in engine],
        "all_plain_ms": [round(value, 4) for value in times.plain_ms],
    }


def draw_rows(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="One decode step, medians in milliseconds")
    for name in ("step", "engine", "runner", "plain loop", "floor", "runner / floor"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for row in rows:
        table.add_row(
            str(row["what"]),
            "-" if row["engine_ms"] is None else f"{row['engine_ms']:.3f}",
            f"{row['ms']:.3f}",
            f"{row['plain_ms']:.3f}",
            f"{row['floor_ms']:.3f}",
            f"{row['ratio']:.2f}",
        )
    return table


def kernel_lines(kernels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the document's part of that name."""
    lines: list[str] = []
    for way, found in kernels.items():
        lines.append(
            f"{WAYS[way]}: {found['launches']:.0f} launches a step, {found['busy_ms']:.3f} ms busy "
            f"of {found['span_ms']:.3f} ({found['idle_share']:.0%} idle)"
        )
        lines += [
            f"  {row['share']:6.1%} {row['us']:9.1f} us {row['launches']:7.1f} x  {row['name']}"
            for row in found["top"][:12]
        ]
    return lines
