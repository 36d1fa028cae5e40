"""The rooms of memory, joined: one economy for the prefix cache and for residency.

Owns the joining and nothing else: both ask one book of prices, so that a page of KV and a page of
an adapter can be compared. Used by whoever builds an engine: its process, the fuzzer, tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..adapters.key import AdapterKey
from .config import MemoryConfig
from .memory.cold import ColdFacts
from .memory.economy import make_economy
from .memory.link_records import Link
from .memory.pool import Pool
from .memory.prefix_cache import PrefixCache
from .memory.residency import Residency
from .prices import Prices, nowhere, unknown
from .scheduling.cost_model import CostModel

# What is to be compared with servers that keep no prompts, or times work that must be done.
NOTHING_KEPT = MemoryConfig(prefix_cache=False, prefetch=False, eviction="lru")


class MemoryRooms(NamedTuple):
    prefixes: PrefixCache
    residency: Residency


def join_memory(
    pool: Pool,
    link: Link,
    *,
    tokens_per_page: int,
    max_slots: int,
    memory: MemoryConfig,
    cost: Callable[[], CostModel] = unknown,
    in_host: Callable[[AdapterKey], bool] = nowhere,
    cold: ColdFacts | None = None,
) -> MemoryRooms:
    """`cost`: what is known of step and load times now; `in_host`: whether host memory has it;
    `cold`: requests may start before their load is over.
    """
    economy = make_economy(memory.eviction, lambda: pool.turnovers)
    prices = Prices(tokens_per_page, model=cost, in_host=in_host)
    return MemoryRooms(
        prefixes=PrefixCache(
            pool,
            economy,
            tokens_per_page=tokens_per_page,
            page_cost=prices.page_s,
            enabled=memory.prefix_cache,
        ),
        residency=Residency(
            pool,
            link,
            max_slots=max_slots,
            economy=economy,
            reload_s=prices.reload_s,
            cross_s=prices.cross_s,
            by_popularity=memory.prefetch,
            cold=cold,
        ),
    )
