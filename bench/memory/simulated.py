"""The economy against its baselines in simulation: the server's own planner, pool and caches.

Owns the machine, the load and what is read off a run. Each workload of workloads.py is sent to the
same simulated server once per eviction; all of them have the prefix cache, the same kernels and
prefetch of the waiting line, the pool is half of the working set. Called by command.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...server.config import MemoryConfig
from ...server.memory.economy import NAMES as EVICTIONS
from ...server.scheduling.policies import FCFS
from ..sim.parts import adapter_card
from ..sim.profile import Profile, named_profile
from ..sim.simulate import SimResult, simulate
from ..slo.stamps import Outcome
from ..workload.records import Workload
from .rows import MemoryCell, MemoryCounts
from .working_set import WorkingSet, working_set
from .workloads import JUDGED_SEEDS, KINDS, SHIFTING, SIMULATED, TURNS, ZIPF, StudyScale, draw

PROFILE = "a100-7b"
ADAPTER_SHARE = 0.2  # of the pool, for the adapters of `split`
# Requests/s, by a rule that asks only the baseline: the highest rate, in steps of a half, at which
# `lru` on the first of TUNING_SEEDS has its P99 first token within 3 s, half of the profile's
# bound. There a queue comes and goes. Half a request/s more, and P99 is 6.5, 3.7 and 7.2 s.
RATES_PER_S = {ZIPF: 7.0, SHIFTING: 7.5, TURNS: 4.5}


@dataclass(frozen=True, slots=True)
class SimulatedRow:
    """One workload under one eviction."""

    kind: str
    seed: int
    eviction: str
    rate_per_s: float
    working_set_pages: int
    pool_pages: int
    num_requests: int
    num_failed: int
    mean_ttft_s: float  # from due to first token
    p50_ttft_s: float
    p99_ttft_s: float
    hit_share: float  # of the prompts' tokens, that were cached
    loads: int
    prefetches: int  # of those, that nobody waited for
    adapter_evictions: int
    preemptions: int
    ttft_s: tuple[float, ...]  # of every request; infinite: it was not answered
    lookup_tokens: int  # of prompts, that could have been cached
    hit_tokens: int  # of those, that were


def run_simulated(
    seeds: Sequence[int] = JUDGED_SEEDS,
    *,
    kinds: Sequence[str] = KINDS,
    evictions: Sequence[str] = EVICTIONS,
    rates_per_s: Mapping[str, float] = RATES_PER_S,
    size: StudyScale = SIMULATED,
    prefetch: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> list[SimulatedRow]:
    rows: list[SimulatedRow] = []
    for kind in kinds:
        for seed in seeds:
            workload = draw(kind, size, seed=seed, rate_per_s=rates_per_s[kind])
            for eviction in evictions:
                memory = memory_of(eviction, prefetch=prefetch)
                rows.append(run_one(workload, memory, rate_per_s=rates_per_s[kind]))
                tell(line_of(rows[-1]))
    return rows


def memory_of(eviction: str, *, prefetch: bool = True) -> MemoryConfig:
    """What the runs differ in: this one name."""
    return MemoryConfig(eviction=eviction, adapter_share=ADAPTER_SHARE, prefetch=prefetch)


def run_one(workload: Workload, memory: MemoryConfig, *, rate_per_s: float) -> SimulatedRow:
    profile = named_profile(PROFILE)
    needed = needed_memory(workload, profile)
    done = simulate(workload, with_pages(profile, needed.pool_pages), policy=FCFS, memory=memory)
    return _read_off(workload, memory.eviction, needed, done, rate_per_s)


def needed_memory(workload: Workload, profile: Profile) -> WorkingSet:
    pages = {one.name: adapter_card(one, profile).num_pages for one in workload.adapters}
    return working_set(
        workload,
        adapter_pages=pages.__getitem__,
        tokens_per_page=profile.whole("tokens_per_page"),
    )


def with_pages(profile: Profile, num_pages: int) -> Profile:
    """The same machine with another pool."""
    source = f"bench/memory: half of the working set, of {profile.whole('num_pages')} pages there"
    held = profile.coefficients["num_pages"]
    pages = replace(held, value=num_pages, source=source)
    return replace(profile, coefficients={**profile.coefficients, "num_pages": pages})


def _read_off(
    workload: Workload,
    eviction: str,
    needed: WorkingSet,
    done: SimResult,
    rate_per_s: float,
) -> SimulatedRow:
    (replica,) = done.replicas
    answered = [one for one in done.run.requests if one.outcome is Outcome.OK]
    ttft_s = np.array([one.first_s - one.due_s for one in answered])
    return SimulatedRow(
        kind=workload.name,
        seed=workload.seed,
        eviction=eviction,
        rate_per_s=rate_per_s,
        working_set_pages=needed.pages,
        pool_pages=needed.pool_pages,
        num_requests=len(workload.requests),
        num_failed=len(workload.requests) - len(answered),
        mean_ttft_s=float(ttft_s.mean()),
        p50_ttft_s=float(np.percentile(ttft_s, 50)),
        p99_ttft_s=float(np.percentile(ttft_s, 99)),
        hit_share=replica.hit_tokens / max(replica.lookup_tokens, 1),
        loads=replica.loads,
        prefetches=replica.prefetches,
        adapter_evictions=replica.evictions,
        preemptions=replica.preemptions,
        ttft_s=tuple(
            one.first_s - one.due_s if one.outcome is Outcome.OK else math.inf
            for one in done.run.requests
        ),
        lookup_tokens=replica.lookup_tokens,
        hit_tokens=replica.hit_tokens,
    )


def cell_of(row: SimulatedRow) -> MemoryCell:
    """As it is judged beside a live one."""
    return MemoryCell(
        kind=row.kind,
        seed=row.seed,
        eviction=row.eviction,
        rate_per_s=row.rate_per_s,
        pool_pages=row.pool_pages,
        ttft_s=row.ttft_s,
        counts=MemoryCounts(
            prefix_lookup_tokens=row.lookup_tokens,
            prefix_hit_tokens=row.hit_tokens,
            adapter_asks=0,  # not counted there
            adapter_hits=0,
            loads=row.loads,
            preemptions=row.preemptions,
        ),
    )


def line_of(row: SimulatedRow) -> str:
    return (
        f"{row.kind} seed {row.seed} {row.eviction}: first tokens {1e3 * row.mean_ttft_s:.0f} ms "
        f"mean, {1e3 * row.p50_ttft_s:.0f} P50, {1e3 * row.p99_ttft_s:.0f} P99; "
        f"{row.hit_share:.3f} of prompt tokens cached, {row.loads} loads, "
        f"{row.preemptions} preemptions, {row.num_failed} failed"
    )
