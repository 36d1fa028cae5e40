"""Classes of requests: by their adapter's rank, and by how popular it is meant to be.

Popularity goes by the workload's weights, not by what a run happened to draw: adapters in falling
order of weight are hot until half of all requests are theirs, warm until nine tenths, cold after.
Adapters of one weight are of one class, and where all weigh alike it is called even. Requests to
the base are a class of their own. Pure. Called by figures.py.
"""

from __future__ import annotations

from itertools import groupby

from ..workload.records import BASE, Workload, WorkloadRequest
from .bounds import rank_of, ranks_of

BASE_CLASS = "base"
HOT_SHARE, WARM_SHARE = 0.5, 0.9
POPULARITY_ORDER = ("hot", "warm", "cold", "even", BASE_CLASS)


def rank_classes(workload: Workload) -> list[tuple[int, str]]:
    """Of each request, with its rank in front: that is the order of the classes."""
    ranks = ranks_of(workload)
    found = [(rank_of(request, ranks), request) for request in workload.requests]
    return [(rank, _rank_name(rank, request)) for rank, request in found]


def popularity_classes(workload: Workload) -> list[tuple[int, str]]:
    """Of each request, with the place of its class in front."""
    classes = adapter_popularity(workload)
    names = [classes[request.adapter] for request in workload.requests]
    return [(POPULARITY_ORDER.index(name), name) for name in names]


def adapter_popularity(workload: Workload) -> dict[str, str]:
    """Adapter -> class."""
    total = sum(adapter.weight for adapter in workload.adapters)
    found, before = {BASE: BASE_CLASS}, 0.0
    ordered = sorted(workload.adapters, key=lambda adapter: -adapter.weight)
    ties = [list(same) for _, same in groupby(ordered, key=lambda adapter: adapter.weight)]
    for same in ties:
        name = _popularity(before / total) if total and len(ties) > 1 else "even"
        found |= {adapter.name: name for adapter in same}
        before += sum(adapter.weight for adapter in same)
    return found


def _popularity(share_before: float) -> str:
    """`share_before`: of all requests, what belongs to more popular adapters."""
    if share_before < HOT_SHARE:
        return "hot"
    return "warm" if share_before < WARM_SHARE else "cold"


def _rank_name(rank: int, request: WorkloadRequest) -> str:
    return BASE_CLASS if request.adapter == BASE else f"r{rank}"
