"""The live half of the study: what is sent to which servers, in which order. Knows no process.

For each kind of workload a capacity first, by a closed loop on a server that is used for nothing
else, on a seed that is not judged; every seed is offered the same share of it. Then, for each seed,
a fresh server for each eviction order, all up at once, empty, with a pool of half the seed's
working set; the orders take turns at being first. One baseline runs twice on some seeds: what the
two differ by is what the machine's mood is worth. A late sender spoils its comparison, which is
made once more with fresh servers. Called by command.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..slo.rates import mean_rate_per_s
from ..slo.stamps import Run
from ..workload.records import Workload
from .rows import EVICTIONS, MemoryCell, MemoryCounts
from .workloads import JUDGED_SEEDS, KINDS, LIVE, TUNING_SEEDS, draw

LOAD = 0.8  # of the capacity: requests wait for each other, and the line does not grow
AGAIN = "lru again"  # the baseline's second server


class LiveUnfit(Exception):
    """A run that is no result; says which and why."""


@dataclass(frozen=True, slots=True)
class LivePlan:
    """How much is measured."""

    kinds: tuple[str, ...] = KINDS
    seeds: tuple[int, ...] = JUDGED_SEEDS
    num_requests: int = LIVE.num_requests  # of a cell
    num_again: int = 1  # seeds of each kind on which the baseline runs twice
    load: float = LOAD


@dataclass(frozen=True, slots=True)
class Sent:
    """What one server made of one workload."""

    run: Run
    counts: MemoryCounts
    late: bool  # the sender was, so it is no result
    failures: tuple[str, ...]  # other reasons why it is none


class World(Protocol):
    """Servers and senders."""

    def pool_pages(self, workload: Workload) -> int:
        """Half of its working set on this model."""
        ...

    def capacity_per_s(self, workload: Workload, pool_pages: int) -> float:
        """Requests that a fresh server answers in a closed loop of a full batch."""
        ...

    def send(
        self, workload: Workload, pool_pages: int, evictions: Mapping[str, str]
    ) -> Mapping[str, Sent]:
        """To a fresh server for each label, one after the other; `evictions`: label -> order."""
        ...


@dataclass(frozen=True, slots=True)
class LiveStudy:
    cells: tuple[MemoryCell, ...]
    again: tuple[MemoryCell, ...]  # of the baseline's second servers
    capacities: Mapping[str, float]  # kind -> requests/s
    load: float
    late: int = 0  # comparisons that were made again


@dataclass(slots=True)
class _Found:
    cells: list[MemoryCell] = field(default_factory=list[MemoryCell])
    again: list[MemoryCell] = field(default_factory=list[MemoryCell])
    late: int = 0


def run_live(plan: LivePlan, world: World, *, tell: Callable[[str], None]) -> LiveStudy:
    """Raises:
    LiveUnfit: a request failed, or a sender was late twice.
    """
    found = _Found()
    capacities: dict[str, float] = {}
    size = replace(LIVE, num_requests=plan.num_requests)
    for kind in plan.kinds:
        probe = draw(kind, size, seed=TUNING_SEEDS[0], rate_per_s=1.0)
        capacities[kind] = world.capacity_per_s(probe, world.pool_pages(probe))
        rate_per_s = plan.load * capacities[kind]
        tell(f"{kind}: capacity {capacities[kind]:.2f} requests/s, offered {rate_per_s:.2f}")
        for idx, seed in enumerate(plan.seeds):
            workload = draw(kind, size, seed=seed, rate_per_s=rate_per_s)
            labels = order_of(idx, again=idx < plan.num_again)
            _one_seed(kind, workload, labels, world=world, found=found, tell=tell)
    return LiveStudy(
        tuple(found.cells), tuple(found.again), capacities, load=plan.load, late=found.late
    )


def order_of(idx: int, *, again: bool) -> list[str]:
    """Labels in the order of their turns: each order is first once in three seeds, and the
    baseline's two turns are not neighbours.
    """
    start = idx % len(EVICTIONS)
    labels = [*EVICTIONS[start:], *EVICTIONS[:start]]
    if again:
        labels.insert(0 if labels.index("lru") > 1 else len(labels), AGAIN)
    return labels


def _one_seed(
    kind: str,
    workload: Workload,
    labels: Sequence[str],
    *,
    world: World,
    found: _Found,
    tell: Callable[[str], None],
) -> None:
    pool_pages = world.pool_pages(workload)
    evictions = {label: "lru" if label == AGAIN else label for label in labels}
    sent = world.send(workload, pool_pages, evictions)
    if _is_late(sent):
        found.late += 1
        sent = world.send(workload, pool_pages, evictions)
    _refuse_failed(kind, workload.seed, sent)
    for label, one in sent.items():
        cell = MemoryCell(
            kind=kind,
            seed=workload.seed,
            eviction=evictions[label],
            rate_per_s=mean_rate_per_s(workload),
            pool_pages=pool_pages,
            ttft_s=ttfts_of(one.run),
            counts=one.counts,
        )
        (found.again if label == AGAIN else found.cells).append(cell)
    told = ", ".join(f"{label} {_mean_ms(one.run):.0f} ms" for label, one in sent.items())
    tell(f"{kind}, seed {workload.seed}, {pool_pages} pages: mean TTFT {told}")


def ttfts_of(run: Run) -> tuple[float, ...]:
    """From the instant each was due; infinite without a token."""
    return tuple(
        math.inf if math.isnan(one.first_s) else one.first_s - one.due_s for one in run.requests
    )


def _mean_ms(run: Run) -> float:
    found = ttfts_of(run)
    return 1e3 * sum(found) / len(found)


def _is_late(sent: Mapping[str, Sent]) -> bool:
    return any(one.late for one in sent.values())


def _refuse_failed(kind: str, seed: int, sent: Mapping[str, Sent]) -> None:
    lines = [
        f"{kind}, seed {seed}, {label}: {why}"
        for label, one in sent.items()
        for why in (*one.failures, *(["the sender was late, and again"] if one.late else []))
    ]
    if lines:
        raise LiveUnfit("\n".join(lines))
