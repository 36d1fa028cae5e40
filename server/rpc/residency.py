"""Where adapters are, as messages; and what a Prefetch may ask for.

Pure: the engine's records to the wire's, and a request checked against the server's sizes, so that
what could never come nearer is refused here, in numbers. Knows neither pipes nor pages' owners.
Called by adapters.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...adapters.errors import AdapterTooLarge
from ...adapters.key import AdapterCard
from ...proto import lorry_pb2 as pb
from ..config import MemoryConfig
from ..errors import InvalidRequest
from ..seam import AdapterResidency, EngineInfo

PLACES = {
    "disk": pb.PLACE_DISK,
    "host": pb.PLACE_HOST,
    "loading": pb.PLACE_LOADING,
    "pool": pb.PLACE_POOL,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A PrefetchRequest with its defaults filled in."""

    to_pool: bool  # False: into host memory, or nowhere when the pin is taken away
    pinned: bool | None  # None: as it is


def read_wanted(request: pb.PrefetchRequest) -> Wanted:
    """Raises:
    InvalidRequest: no such tier, or one that does not go with the pin.
    """
    if request.tier not in pb.Tier.values():
        names = ", ".join(pb.Tier.keys())
        raise InvalidRequest(f"tier is {request.tier}; it must be one of {names}", field="tier")
    if not request.HasField("pin"):
        return Wanted(to_pool=request.tier != pb.TIER_HOST, pinned=None)
    if request.pin and request.tier == pb.TIER_HOST:
        raise InvalidRequest(
            "pin is true and tier is TIER_HOST; what is pinned stays in the pool", field="pin"
        )
    if not request.pin and request.tier != pb.TIER_UNSPECIFIED:
        raise InvalidRequest(
            f"pin is false and tier is {pb.Tier.Name(request.tier)}; taking a pin away moves "
            "nothing, so give no tier",
            field="tier",
        )
    return Wanted(to_pool=request.pin, pinned=request.pin)


def check_fits(card: AdapterCard, memory: MemoryConfig, info: EngineInfo, wanted: Wanted) -> None:
    """Raises:
    AdapterTooLarge: it could not be where it shall be, however empty the server is.
    """
    if wanted.pinned is False:
        return
    name = f"name is {card.key.name!r}, an adapter of"
    if card.max_rank > memory.max_rank:
        raise _too_large(
            f"{name} rank {card.max_rank}; this server was started with "
            f"--max-rank {memory.max_rank}",
            "name",
            (card.max_rank, memory.max_rank),
            "ranks",
        )
    limit, why = tenant_pages(memory, info)
    if card.num_pages > limit:
        raise _too_large(
            f"{name} {card.num_pages} pages; {why}", "name", (card.num_pages, limit), "pages"
        )
    num_bytes = card.num_pages * info.page_bytes
    if not wanted.to_pool and num_bytes > memory.host_bytes:
        raise _too_large(
            f"{name} {num_bytes} bytes in pages; host memory for adapters is "
            f"{memory.host_bytes} bytes (--host-bytes)",
            "name",
            (num_bytes, memory.host_bytes),
            "bytes",
        )


def check_pins(num_pages: int, memory: MemoryConfig, info: EngineInfo) -> None:
    """`num_pages`: of all pins of a tenant, a new one among them.

    Raises:
        AdapterTooLarge: more than the tenant may hold.
    """
    limit, why = tenant_pages(memory, info)
    if num_pages > limit:
        raise _too_large(
            f"pin is true, and what is pinned would take {num_pages} pages; {why}",
            "pin",
            (num_pages, limit),
            "pages",
        )


def tenant_pages(memory: MemoryConfig, info: EngineInfo) -> tuple[int, str]:
    """What adapters of one tenant may hold, in pages, and the sentence that says so."""
    pages = info.num_pages
    # One page is left for the first block of a request's KV.
    limits = [(pages - 1, f"the pool has {pages}, and one is kept for requests")]
    if (share := memory.max_tenant_pages(pages)) is not None:
        why = f"one tenant may hold {share} of the pool's {pages}"
        limits.append((share, f"{why} (--tenant-share {memory.tenant_share:g})"))
    if (share := memory.adapter_share_pages(pages)) is not None:
        why = f"adapters may hold {share} of the pool's {pages}"
        limits.append((share, f"{why} (--adapter-share {memory.adapter_share:g})"))
    return min(limits)


def residency_message(found: AdapterResidency) -> pb.Residency:
    message = pb.Residency(
        place=PLACES[found.place],
        pinned=found.pinned,
        num_pages=found.num_pages,
        num_users=found.num_users,
        requests_total=found.num_requests,
        pool_hits_total=found.num_pool_hits,
        loads_total=found.num_loads,
        reads_total=found.num_reads,
    )
    if not math.isnan(found.load_s):
        message.load_s = found.load_s
    return message


def _too_large(message: str, field: str, found: tuple[int, int], unit: str) -> AdapterTooLarge:
    """`found`: the value and its limit."""
    value, limit = found
    return AdapterTooLarge(message, field=field, value=value, limit=limit, unit=unit)
