"""Cells and reports of `lorry bench memory` without a server or a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from lorry.bench.memory.document import Report
from lorry.bench.memory.live import LiveStudy, Sent
from lorry.bench.memory.rows import EVICTIONS, MemoryCell, MemoryCounts
from lorry.bench.memory.waste import Footprint, measure_waste
from lorry.bench.slo.stamps import Run
from lorry.bench.workload.records import Workload
from lorry.tests.slo_builders import MACHINE, make_stamps

COUNTS = MemoryCounts(
    prefix_lookup_tokens=100,
    prefix_hit_tokens=25,
    adapter_asks=10,
    adapter_hits=5,
    loads=7,
    preemptions=0,
)


@cache
def small_waste() -> list[Footprint]:
    """Real figures of one layout, made once."""
    return measure_waste(("qwen2.5-0.5b",), [("q_proj", "v_proj")])


def make_cell(kind: str = "zipf", seed: int = 1, eviction: str = "economy", **changes: Any) -> Any:
    cell = MemoryCell(kind, seed, eviction, 2.0, 300, ttft_s=(0.1, 0.3), counts=COUNTS)
    return replace(cell, **changes)


def make_cells(times: Mapping[str, float], *, kind: str = "zipf", seeds: Sequence[int] = (1, 2)):
    """`times`: eviction -> seconds that every request waits."""
    return [
        make_cell(kind, seed, eviction, ttft_s=(times[eviction],) * 4)
        for seed in seeds
        for eviction in EVICTIONS
    ]


def make_report(**changes: Any) -> Report:
    cells = make_cells({"economy": 0.8, "lru": 1.0, "split": 1.6})
    again = (make_cell(eviction="lru", ttft_s=(1.1,) * 4),)
    report = Report(
        command="lorry bench memory",
        is_quick=False,
        waste=None,
        simulated=make_cells({"economy": 0.5, "lru": 1.0, "split": 1.0}),
        live=LiveStudy(tuple(cells), again, capacities={"zipf": 9.5}, load=0.8),
        not_run={},
        failed=(),
        setting={"flags": ("--device", "cpu")},
        machine=MACHINE,
        load_before=0.1,
        took_s={"live": 3.0},
    )
    return replace(report, **changes)


@dataclass
class FakeWorld:
    """Each order has a time of its own for a first token; nothing else takes any."""

    times_s: Mapping[str, float]  # by order
    num_late: int = 0  # sends to come whose sender is late
    failures: tuple[str, ...] = ()
    sent: list[tuple[Workload, int, dict[str, str]]] = field(
        default_factory=list[tuple[Workload, int, dict[str, str]]]
    )
    loops: list[Workload] = field(default_factory=list[Workload])

    def pool_pages(self, workload: Workload) -> int:
        return 100 + workload.seed

    def capacity_per_s(self, workload: Workload, pool_pages: int) -> float:
        assert pool_pages == self.pool_pages(workload)
        self.loops.append(workload)
        return 10.0

    def send(
        self, workload: Workload, pool_pages: int, evictions: Mapping[str, str]
    ) -> Mapping[str, Sent]:
        self.sent.append((workload, pool_pages, dict(evictions)))
        late, self.num_late = self.num_late > 0, max(0, self.num_late - 1)
        return {
            label: Sent(self._run(workload, eviction), COUNTS, late=late, failures=self.failures)
            for label, eviction in evictions.items()
        }

    def _run(self, workload: Workload, eviction: str) -> Run:
        due = [request.at_s for request in workload.requests]
        wait_s = self.times_s[eviction]
        stamps = [make_stamps(idx, at_s, [at_s + wait_s]) for idx, at_s in enumerate(due)]
        return Run(eviction, tuple(stamps))
