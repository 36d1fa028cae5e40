"""The engine's counters, and the record it answers `AskStats` with.

Counters only grow; everything else is read off the rooms at the moment of asking. Knows no
Prometheus (metrics.py does).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from ..adapters.host_tier import HostTierStats
from .execution.cold_start.crew import HelperStats
from .memory.pool import AdapterOwner, CacheOwner, KvOwner, Owner, Pool
from .memory.prefix_cache import PrefixCache, PrefixStats
from .memory.residency import Residency
from .scheduling.cost_model import CostReport
from .scheduling.starts import Way
from .scheduling.state import SchedulerState
from .seam import ColdStats, EngineStats, MemoryStats, PageRunStats, ResidentStats


@dataclass(slots=True)
class Counters:
    """Totals since the engine started."""

    steps: int = 0
    tokens_prefill: int = 0
    tokens_decode: int = 0
    requests_finished: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    requests_aborted: int = 0  # of those failed
    preemptions: int = 0
    adapter_loads: int = 0
    adapter_evictions: int = 0
    requests_with_adapter: int = 0
    pool_hits: int = 0  # of those: the adapter was in the pool when the request came
    starts: Counter[Way] = field(default_factory=Counter[Way])  # of those not, by their way
    lost_rows: int = 0  # parts of steps that were thrown away and done again


class HelpersView(Protocol):
    def stats(self) -> HelperStats: ...


class HostTierView(Protocol):
    def stats(self) -> HostTierStats: ...


def engine_stats(
    counters: Counters,
    state: SchedulerState,
    pool: Pool,
    residency: Residency,
    host_tier: HostTierView,
    *,
    helpers: HelpersView | None,
    prefixes: PrefixCache,
    cost: CostReport,
    pages: bool,
) -> EngineStats:
    """`pages`: also the owner of every page."""
    held, host = pool.stats(), host_tier.stats()
    help_stats = helpers.stats() if helpers else None
    return EngineStats(
        num_running=state.num_running,
        num_waiting=state.num_waiting,
        pages_total=held.num_pages,
        pages_free=held.num_free,
        pages_kv=held.num_kv,
        pages_adapter=held.num_adapter,
        steps_total=counters.steps,
        tokens_prefill_total=counters.tokens_prefill,
        tokens_decode_total=counters.tokens_decode,
        requests_finished_total=counters.requests_finished,
        requests_failed_total=counters.requests_failed,
        requests_cancelled_total=counters.requests_cancelled,
        requests_aborted_total=counters.requests_aborted,
        preemptions_total=counters.preemptions,
        adapter_loads_total=counters.adapter_loads,
        adapter_evictions_total=counters.adapter_evictions,
        host_bytes=host.bytes,
        residents=tuple(
            ResidentStats(item.key, item.num_pages, item.loading, item.num_users)
            for item in residency.stats()
        ),
        page_runs=_page_runs(state, pool, residency) if pages else (),
        cost=cost,
        memory=_memory_stats(
            counters, prefixes.stats(), residency, host, _tenant_pages(state, pool, residency)
        ),
        cold=ColdStats(
            wait=counters.starts[Way.WAIT],
            stream=counters.starts[Way.STREAM],
            assist=counters.starts[Way.ASSIST],
            lost_rows=counters.lost_rows,
            helpers_up=help_stats.num_up if help_stats else 0,
            helper_restarts=help_stats.num_restarts if help_stats else 0,
        ),
    )


def _memory_stats(
    counters: Counters,
    prefixes: PrefixStats,
    residency: Residency,
    host: HostTierStats,
    held_pages: dict[str, int],
) -> MemoryStats:
    for tenant, pages in prefixes.tenants:
        held_pages[tenant] = held_pages.get(tenant, 0) + pages.idle
    return MemoryStats(
        eviction=residency.economy.name,
        params=residency.economy.params(),
        pages_cached=prefixes.num_idle,
        prefix_lookup_tokens=prefixes.lookup_tokens,
        prefix_hit_tokens=prefixes.hit_tokens,
        prefix_evictions=prefixes.num_evictions,
        preempted_tokens_kept=prefixes.kept_tokens,
        host_capacity_bytes=host.capacity_bytes,
        host_peak_bytes=host.peak_bytes,
        host_hits=host.hits,
        host_misses=host.misses,
        prefetches=residency.num_prefetches,
        loads_cancelled=residency.num_cancelled,
        requests_with_adapter=counters.requests_with_adapter,
        pool_hits=counters.pool_hits,
        tenant_pages=tuple(sorted(held_pages.items())),
    )


def _tenant_pages(state: SchedulerState, pool: Pool, residency: Residency) -> dict[str, int]:
    """Of requests, a shared page counted once a tenant, and of adapters, in use or idle."""
    held: dict[str, set[int]] = {}
    for row in state.holding_rows().tolist():
        held.setdefault(state.request(row).tenant, set()).update(pool.kv_pages(row))
    num_pages = {tenant: len(pages) for tenant, pages in held.items()}
    for item in residency.stats():
        num_pages[item.key.tenant] = num_pages.get(item.key.tenant, 0) + item.num_pages
    return num_pages


def _page_runs(state: SchedulerState, pool: Pool, residency: Residency) -> tuple[PageRunStats, ...]:
    def named(owner: Owner | CacheOwner | None) -> tuple[str, str]:
        """What the owner is called, and by which tenant."""
        match owner:
            case None | CacheOwner():
                return "", ""
            case KvOwner(row=row):
                request = state.request(row)
                return str(request.request_id), request.tenant
            case AdapterOwner(adapter_id=adapter_id):
                key = residency.key_of(adapter_id)
                return key.name, key.tenant

    return tuple(PageRunStats(run.kind, run.count, *named(run.owner)) for run in pool.page_runs())
