"""What of the engine's statistics a caller may see.

Owns the one rule: counts are the whole server's, names are their tenant's. A tenant learns how
full and how busy the server is, not who else is on it. Pure; called by engine.py.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from ..seam import EngineStats, PageRunStats
from .access import Caller


def seen_by(caller: Caller, stats: EngineStats) -> EngineStats:
    """The same record without what belongs to other tenants; an admin's has everything."""
    if caller.sees_all:
        return stats
    return replace(
        stats,
        residents=tuple(r for r in stats.residents if r.key.tenant == caller.tenant),
        page_runs=_without_others(caller.tenant, stats.page_runs),
        memory=replace(
            stats.memory,
            tenant_pages=tuple(p for p in stats.memory.tenant_pages if p[0] == caller.tenant),
        ),
    )


def name_for(caller: Caller, tenant: str, name: str) -> str:
    """No name holds a slash, so an admin cannot take another tenant's adapter for their own."""
    return name if not name or tenant == caller.tenant else f"{tenant}/{name}"


def _without_others(tenant: str, runs: tuple[PageRunStats, ...]) -> tuple[PageRunStats, ...]:
    """Other tenants' runs lose their owner and flow together: a length is a size of somebody's."""
    masked = [
        run if run.tenant == tenant else PageRunStats(run.kind, run.count, "") for run in runs
    ]
    return tuple(
        PageRunStats(kind, sum(run.count for run in alike), owner, of_tenant)
        for (kind, owner, of_tenant), alike in groupby(
            masked, key=lambda run: (run.kind, run.owner, run.tenant)
        )
    )
