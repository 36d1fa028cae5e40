"""What a run of the study leaves, simulated or live alike, and what follows from it: pure.

A cell is one workload of one seed under one eviction order. Orders are compared by ratios of their
TTFT, all seeds of a kind together; of three kinds the worst is quoted, by name. A request without a
token waited for ever, and then nothing can be said. Called by simulated.py, live.py, document.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ECONOMY = "economy"
BASELINES = ("lru", "split")
EVICTIONS = (ECONOMY, *BASELINES)


@dataclass(frozen=True, slots=True)
class MemoryCounts:
    """What a server counted from the first request of a cell to the last."""

    prefix_lookup_tokens: int  # of prompts that could have been found
    prefix_hit_tokens: int  # of those, found
    adapter_asks: int  # requests that name an adapter
    adapter_hits: int  # of those: it was in the pool when they came
    loads: int  # of adapters into the pool
    preemptions: int


@dataclass(frozen=True, slots=True)
class MemoryCell:
    kind: str  # of workloads.KINDS
    seed: int
    eviction: str  # of EVICTIONS
    rate_per_s: float  # offered, on average
    pool_pages: int
    ttft_s: tuple[float, ...]  # of every request, from its due instant; inf: no token came
    counts: MemoryCounts


@dataclass(frozen=True, slots=True)
class Ttft:
    """Of all requests of some cells; infinite where one of them got no token."""

    mean_s: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Versus:
    """The economy against a baseline on one kind of workload: economy / baseline."""

    kind: str
    baseline: str
    mean_ratio: float  # of mean TTFT; NaN: not measured
    p99_ratio: float
    by_seed: tuple[float, ...]  # ratios of mean TTFT, in the order of the seeds


def ttft_of(cells: Iterable[MemoryCell]) -> Ttft:
    found = np.array([value for cell in cells for value in cell.ttft_s])
    if not len(found) or not np.isfinite(found).all():
        return Ttft(math.inf, math.inf, math.inf)
    p50_s, p99_s = np.quantile(found, (0.5, 0.99))
    return Ttft(float(found.mean()), float(p50_s), float(p99_s))


def compare_all(cells: Sequence[MemoryCell]) -> list[Versus]:
    """Every kind against every baseline that has cells of the same seeds."""
    kinds = dict.fromkeys(cell.kind for cell in cells)
    found = [_compare(cells, kind, baseline) for kind in kinds for baseline in BASELINES]
    return [one for one in found if one is not None]


def _compare(cells: Sequence[MemoryCell], kind: str, baseline: str) -> Versus | None:
    ours = {cell.seed: cell for cell in cells if (cell.kind, cell.eviction) == (kind, ECONOMY)}
    theirs = {cell.seed: cell for cell in cells if (cell.kind, cell.eviction) == (kind, baseline)}
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    left, right = ttft_of(ours[s] for s in seeds), ttft_of(theirs[s] for s in seeds)
    return Versus(
        kind=kind,
        baseline=baseline,
        mean_ratio=_ratio(left.mean_s, right.mean_s),
        p99_ratio=_ratio(left.p99_s, right.p99_s),
        by_seed=tuple(
            _ratio(ttft_of([ours[s]]).mean_s, ttft_of([theirs[s]]).mean_s) for s in seeds
        ),
    )


@dataclass(frozen=True, slots=True)
class Worst:
    """The figure that is quoted: of all kinds the one where the economy does worst."""

    ratio: float  # NaN: not measured on some kind
    kind: str


def worst_mean(versus: Sequence[Versus], baseline: str) -> Worst:
    return _worst([(one.mean_ratio, one.kind) for one in versus if one.baseline == baseline])


def worst_p99(versus: Sequence[Versus], baseline: str) -> Worst:
    return _worst([(one.p99_ratio, one.kind) for one in versus if one.baseline == baseline])


@dataclass(frozen=True, slots=True)
class HitRates:
    """NaN: nobody asked."""

    prefix: float  # of prompt tokens, in the prefix cache
    adapter: float  # of requests that name one, in the pool when they came


def hit_rates(cells: Sequence[MemoryCell]) -> HitRates:
    counts = [cell.counts for cell in cells]
    return HitRates(
        prefix=_share([(one.prefix_hit_tokens, one.prefix_lookup_tokens) for one in counts]),
        adapter=_share([(one.adapter_hits, one.adapter_asks) for one in counts]),
    )


def _worst(found: Sequence[tuple[float, str]]) -> Worst:
    if not found:
        return Worst(math.nan, "")
    unknown = [kind for ratio, kind in found if math.isnan(ratio)]
    if unknown:
        return Worst(math.nan, unknown[0])
    return Worst(*max(found))


def _share(pairs: Sequence[tuple[int, int]]) -> float:
    whole = sum(of for _, of in pairs)
    return sum(part for part, _ in pairs) / whole if whole else math.nan


def _ratio(left: float, right: float) -> float:
    finite = math.isfinite(left) and math.isfinite(right) and right > 0
    return left / right if finite else math.nan
