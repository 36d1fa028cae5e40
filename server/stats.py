"""The engine's counters, and the record it answers `AskStats` with.

Counters only grow; everything else is read off the rooms at the moment of asking. Knows no
Prometheus (metrics.py does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..adapters.host_tier import HostTierStats
from .memory.pool import AdapterOwner, KvOwner, Owner, Pool
from .memory.residency import Residency
from .scheduling.cost_model import CostReport
from .scheduling.state import SchedulerState
from .seam import EngineStats, PageRunStats, ResidentStats


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


class HostTierView(Protocol):
    def stats(self) -> HostTierStats: ...


def engine_stats(
    counters: Counters,
    state: SchedulerState,
    pool: Pool,
    residency: Residency,
    host_tier: HostTierView,
    *,
    cost: CostReport,
    pages: bool,
) -> EngineStats:
    """`pages`: also the owner of every page."""
    held = pool.stats()
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
        host_bytes=host_tier.stats().bytes,
        residents=tuple(
            ResidentStats(item.key, item.num_pages, item.loading, item.num_users)
            for item in residency.stats()
        ),
        page_runs=_page_runs(state, pool, residency) if pages else (),
        cost=cost,
    )


def _page_runs(state: SchedulerState, pool: Pool, residency: Residency) -> tuple[PageRunStats, ...]:
    def named(owner: Owner | None) -> tuple[str, str]:
        """What the owner is called, and by which tenant."""
        match owner:
            case None:
                return "", ""
            case KvOwner(row=row):
                request = state.request(row)
                return str(request.request_id), request.tenant
            case AdapterOwner(adapter_id=adapter_id):
                key = residency.key_of(adapter_id)
                return key.name, key.tenant

    return tuple(PageRunStats(run.kind, run.count, *named(run.owner)) for run in pool.page_runs())
