"""What `lorry bench memory` prints: the ceiling of each part, then tables. Pure; called by
command.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from ..slo.table import number
from .live import LiveStudy
from .rows import EVICTIONS, MemoryCell, compare_all, hit_rates, ttft_of
from .waste import Footprint


def waste_lines(found: Sequence[Footprint]) -> Iterator[str]:
    yield (
        "ceiling of the waste: 0, every element of a page a weight; of the KV room: the closed "
        "form, pool less weights"
    )
    worst = max(found, key=lambda one: one.waste)
    least = min(found, key=lambda one: one.room_vs_closed_form)
    yield (
        f"waste, an adapter of each rank from 4 to 128: at most {worst.waste:.2%} "
        f"({worst.model}, {worst.targets})"
    )
    yield (
        f"KV room / closed form: at least {least.room_vs_closed_form:.4f} "
        f"({least.model}, {least.targets})"
    )


def draw_waste(found: Sequence[Footprint]) -> Table:
    table = Table(
        title="Adapters in pages: waste by layout; KV room in pools of 2 to 11 x the slots"
    )
    for name in (
        "model",
        "targets",
        "page KiB",
        "waste",
        "worst rank",
        "/ closed form",
        "/ padded",
    ):
        table.add_column(name, justify="left" if name in ("model", "targets") else "right")
    for one in found:
        worst = one.worst_rank
        rooms = [room.against_padded or 0.0 for room in one.rooms]
        table.add_row(
            one.model,
            one.targets,
            f"{one.page_bytes / 1024:.0f}",
            f"{one.waste:.2%}",
            f"{worst.waste:.1%} (r{worst.rank})",
            f"{one.room_vs_closed_form:.4f}",
            f"{max(rooms):.2f} to {min(rooms):.2f}",
        )
    return table


def draw_half(name: str, cells: Sequence[MemoryCell]) -> Table:
    num_seeds = len({cell.seed for cell in cells})
    table = Table(
        title=f"{name}: pool of half the working set, {num_seeds} seeds together; TTFT in ms"
    )
    columns = ("workload", "order", "mean", "P50", "P99", "prefix hits", "adapter hits", "loads")
    for column in (*columns, "preempted", "economy / this: mean", "P99"):
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    ratios = {(one.kind, one.baseline): one for one in compare_all(cells)}
    for kind in dict.fromkeys(cell.kind for cell in cells):
        for eviction in EVICTIONS:
            of = [cell for cell in cells if (cell.kind, cell.eviction) == (kind, eviction)]
            found, hits = ttft_of(of), hit_rates(of)
            versus = ratios.get((kind, eviction))
            table.add_row(
                kind,
                eviction,
                *(f"{1e3 * value:.1f}" for value in (found.mean_s, found.p50_s, found.p99_s)),
                number(hits.prefix, "{:.2f}"),
                number(hits.adapter, "{:.2f}"),
                str(sum(cell.counts.loads for cell in of)),
                str(sum(cell.counts.preemptions for cell in of)),
                "" if versus is None else number(versus.mean_ratio, "{:.3f}"),
                "" if versus is None else number(versus.p99_ratio, "{:.3f}"),
            )
    return table


def ceiling_lines(live: LiveStudy) -> Iterator[str]:
    for kind, capacity in live.capacities.items():
        yield (
            f"ceiling of {kind}, a closed loop on a server of its own: {capacity:.2f} requests/s; "
            f"offered {live.load * capacity:.2f}"
        )


def again_lines(document: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """What a second server under one order differs from the first by."""
    for one in document:
        yield (
            f"A/A, {one['kind']}, seed {one['seed']}: a second server under {one['eviction']} has "
            f"{one['mean_ttft']:.3f} of the first one's mean TTFT, {one['p99_ttft']:.3f} of its P99"
        )
