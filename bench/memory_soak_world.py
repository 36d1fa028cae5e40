"""One episode's world for the memory soak: an engine as the server joins it, over a false device.

Owns the circumstances, drawn from the seed: pool, limits, economy, rooms, caps, loop. Planner,
pool, residency, prefix cache and usage book are the server's own, and audited after every step.
Used by memory_soak_life.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..server.engine import Engine
from ..server.engine_parts import EngineParts
from ..server.intake import Gate
from ..server.memory.economy import make_economy
from ..server.memory.pool import Pool
from ..server.memory.prefix_cache import PrefixCache
from ..server.memory.residency import Residency
from ..server.prices import Prices
from ..server.scheduling.policies import POLICIES
from ..server.scheduling.records import StepLimits
from ..server.scheduling.state import SchedulerState
from ..server.seam_ends import LocalEnd
from .memory_soak_device import Device, NoHostTier, Pages, SoakLink

MAX_RANK = 8
MAX_MODEL_LEN = 128


@dataclass(frozen=True, slots=True)
class Circumstances:
    tokens_per_page: int
    num_pages: int
    max_running: int
    max_waiting: int
    max_step_tokens: int
    max_bypass_s: float
    max_loads: int
    max_slots: int
    eviction: str
    span_turnovers: float
    adapter_share_pages: int | None
    max_tenant_pages: int | None
    prefix_cache: bool
    share_prefixes: bool
    prefetch: bool
    overlaps: bool
    policy: str
    max_polls: int
    fail_share: float


def draw_circumstances(rng: random.Random) -> Circumstances:
    """Each choice makes something scarce in some episodes and plentiful in others."""
    num_pages = rng.choice([24, 40, 64])
    eviction = rng.choice(["economy", "economy", "lru", "split"])
    share_pages = rng.choice([num_pages // 4, num_pages // 2])
    return Circumstances(
        tokens_per_page=rng.choice([3, 4, 8]),
        num_pages=num_pages,
        max_running=rng.choice([2, 6, 12]),
        max_waiting=40,
        max_step_tokens=rng.choice([8, 32, 100]),
        max_bypass_s=rng.choice([0.0, 0.5, 5.0]),
        max_loads=rng.choice([1, 2, 4]),
        max_slots=rng.choice([2, 4, num_pages]),
        eviction=eviction,
        span_turnovers=rng.choice([0.5, 4.0]),
        adapter_share_pages=share_pages if eviction == "split" else None,
        max_tenant_pages=rng.choice([None, None, 3 * num_pages // 4]),
        prefix_cache=rng.random() < 0.95,
        share_prefixes=rng.random() < 0.3,
        prefetch=rng.random() < 0.6,
        overlaps=rng.random() < 0.5,
        policy=rng.choice(["fcfs", "fcfs", "fcfs", "slora"]),
        max_polls=rng.choice([1, 4, 12]),
        fail_share=rng.choice([0.0, 0.1]),
    )


class HandClock:
    """Time passes when the soak says so."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s


@dataclass(slots=True)
class SoakWorld:
    engine: Engine
    end: LocalEnd
    pool: Pool
    prefixes: PrefixCache
    residency: Residency
    device: Device
    link: SoakLink
    clock: HandClock
    gate: Gate


def make_world(what: Circumstances, rng: random.Random) -> SoakWorld:
    pages, end, clock, host_tier = Pages(), LocalEnd(), HandClock(), NoHostTier()
    device = Device(pages, tokens_per_page=what.tokens_per_page)
    link = SoakLink(pages, rng, max_polls=what.max_polls, fail_share=what.fail_share)
    pool = Pool(what.num_pages, on_free=pages.poison)
    span = what.span_turnovers
    economy = make_economy(what.eviction, lambda: pool.turnovers, span_turnovers=span)
    prices = Prices(what.tokens_per_page)
    prefixes = PrefixCache(
        pool,
        economy,
        tokens_per_page=what.tokens_per_page,
        page_cost=prices.page_s,
        enabled=what.prefix_cache,
    )
    residency = Residency(
        pool,
        link,
        max_slots=what.max_slots,
        economy=economy,
        reload_s=prices.reload_s,
        by_popularity=what.prefetch,
    )
    gate = Gate(
        num_pages=what.num_pages,
        tokens_per_page=what.tokens_per_page,
        max_model_len=MAX_MODEL_LEN,
        max_rank=MAX_RANK,
        adapter_share_pages=what.adapter_share_pages,
        max_tenant_pages=what.max_tenant_pages,
    )
    limits = StepLimits(
        max_running=what.max_running,
        max_step_tokens=what.max_step_tokens,
        max_bypass_s=what.max_bypass_s,
        max_loads=what.max_loads,
        adapter_share_pages=what.adapter_share_pages,
        max_tenant_pages=what.max_tenant_pages,
    )
    engine = Engine(
        EngineParts(
            end=end,
            state=SchedulerState(what.max_running, what.max_waiting, policy=POLICIES[what.policy]),
            pool=pool,
            prefixes=prefixes,
            residency=residency,
            link=link,
            host_tier=host_tier,
            runner=device,
            limits=limits,
            gate=gate,
            clock=clock,
            audits=True,
            overlaps=what.overlaps,
            model="false",
            share_prefixes=what.share_prefixes,
        )
    )
    return SoakWorld(engine, end, pool, prefixes, residency, device, link, clock, gate)
