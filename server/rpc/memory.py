"""What memory has done, as a message. Pure; called by engine.py."""

from __future__ import annotations

from ...proto import lorry_pb2 as pb
from ..seam import MemoryStats


def memory_message(stats: MemoryStats) -> pb.Memory:
    return pb.Memory(
        eviction=stats.eviction,
        params=[pb.EconomyParam(name=name, value=value) for name, value in stats.params],
        pages_cached=stats.pages_cached,
        prefix_lookup_tokens_total=stats.prefix_lookup_tokens,
        prefix_hit_tokens_total=stats.prefix_hit_tokens,
        prefix_evictions_total=stats.prefix_evictions,
        preempted_tokens_kept_total=stats.preempted_tokens_kept,
        host_capacity_bytes=stats.host_capacity_bytes,
        host_peak_bytes=stats.host_peak_bytes,
        host_hits_total=stats.host_hits,
        host_misses_total=stats.host_misses,
        prefetches_total=stats.prefetches,
        loads_cancelled_total=stats.loads_cancelled,
        requests_with_adapter_total=stats.requests_with_adapter,
        pool_hits_total=stats.pool_hits,
        tenants=[
            pb.TenantPages(tenant=tenant, pages=pages) for tenant, pages in stats.tenant_pages
        ],
    )
