"""The README's parts on memory, drawn from bench/results/memory.json (`lorry bench memory`).

Owns what of it is shown: pages, waste and room by layout, which is exact arithmetic, and the
orders of eviction against each other, simulated and live. Where there is no file, or a part of it
was not run, it reads "not measured". Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .readme_results import NOT_MEASURED, RESULTS_DIR, render_result
from .readme_tables import make_table

MEMORY_PATH = RESULTS_DIR / "memory.json"
BENCH = "lorry bench memory"
SHOWN_RANKS = (8, 16, 64)
LAYOUT_COLUMNS = (
    *("model", "adapters on", "page", "tokens"),
    *(f"pages at rank {rank}" for rank in SHOWN_RANKS),
    *("waste, ranks 4 to 128", "KV room / closed form", "KV room / padded slots"),
)
ORDER_COLUMNS = (
    *("workload", "order", "TTFT mean, ms", "P50", "P99", "prefix hits", "adapter hits"),
    *("loads", "economy / this: mean", "P99"),
)


def render_footprint(path: Path = MEMORY_PATH) -> str:
    """What adapters take, by layout."""
    return render_result(path, BENCH, _footprint)


def render_memory(path: Path = MEMORY_PATH) -> str:
    """The economy against its baselines."""
    return render_result(path, BENCH, _memory)


def _footprint(document: Mapping[str, Any]) -> str:
    if not document["layouts"]:
        return NOT_MEASURED
    rows = [_layout(one) for one in document["layouts"]]
    return f"{make_table(LAYOUT_COLUMNS, rows)}\n\n{_layout_facts(document)}"


def _memory(document: Mapping[str, Any]) -> str:
    halves: Mapping[str, Any] = document["halves"]
    if not halves:
        return NOT_MEASURED
    parts = [_half(name, half) for name, half in halves.items()]
    return "\n\n".join([*parts, "\n".join(_facts(document))])


def _layout(one: Mapping[str, Any]) -> tuple[str, ...]:
    pages = {of["rank"]: of["pages"] for of in one["by_rank"]}
    padded = [room["vs_padded"] for room in one["rooms"]]
    return (
        one["model"],
        one["targets"].replace(",", ", "),
        f"{one['page_bytes'] / 1024:.0f} KiB",
        str(one["tokens_per_page"]),
        *(str(pages[rank]) for rank in SHOWN_RANKS),
        f"{100 * one['waste']:.1f} %",
        f"{one['kv_room_vs_closed_form']:.3f}",
        f"{max(padded):.2f} to {min(padded):.2f}",
    )


def _layout_facts(document: Mapping[str, Any]) -> str:
    return (
        f"- Worst of all: waste {100 * document['waste_fraction']:.1f} %, KV room "
        f"{document['kv_room_vs_closed_form']:.3f} of the closed form. Arithmetic by the layout's "
        "own functions, in bfloat16; nothing is timed.\n"
        f"- Command: `{document['command']}`. Commit: `{document['machine']['commit']}`."
    )


def _half(name: str, half: Mapping[str, Any]) -> str:
    ratios = {(one["kind"], one["b"]): one for one in half["comparisons"]}
    rows = [_order(one, ratios.get((one["kind"], one["eviction"]))) for one in half["orders"]]
    return f"{name.capitalize()}:\n\n{make_table(ORDER_COLUMNS, rows)}"


def _order(one: Mapping[str, Any], versus: Mapping[str, Any] | None) -> tuple[str, ...]:
    return (
        one["kind"],
        one["eviction"],
        *(_number(one[f"ttft_{of}_s"], "{:.1f}", 1e3) for of in ("mean", "p50", "p99")),
        _number(one["prefix_hit_rate"], "{:.2f}"),
        _number(one["adapter_hit_rate"], "{:.2f}"),
        str(one["loads"]),
        _number(versus["mean_ttft"], "{:.3f}") if versus else "",
        _number(versus["p99_ttft"], "{:.3f}") if versus else "",
    )


def _number(value: float | None, form: str, times: float = 1.0) -> str:
    return "-" if value is None else form.format(times * value)


def _facts(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    seeds: Sequence[int] = next(iter(document["halves"].values()))["orders"][0]["seeds"]
    yield (
        f"- All requests of {len(seeds)} seeds together; a pool of half of the working set; every "
        "order with the prefix cache and the same prefetch."
    )
    if misses := document["misses"]:
        yield f"- Missed: {'; '.join(misses)}."
    for one in document["again"]:
        yield (
            f"- Live, {one['kind']}, a second server under {one['eviction']}: "
            f"{one['mean_ttft']:.3f} of the first one's mean TTFT, {one['p99_ttft']:.3f} of P99."
        )
    yield (
        f"- Live on {machine['cpu']}, {machine['num_cores']} cores; {machine['os']}, Python "
        f"{machine['python']}."
    )
    yield f"- Command: `{document['command']}`. Commit: `{machine['commit']}`."
