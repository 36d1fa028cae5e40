"""Whole lives of the planner: random requests that come over time, in worlds too small for them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TypeVar

from lorry.server.scheduling.fitting import never_fits
from lorry.server.scheduling.policies import FCFS, Policy
from lorry.server.scheduling.records import Request, StepLimits
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.scheduling_builders import make_limits, make_request
from lorry.tests.world_builders import World

MAX_STEPS = 3000  # of a life of 24 requests
NUM_ADAPTERS = 8
WorldT = TypeVar("WorldT", bound=World)


def make_world(
    seed: int, *, num_requests: int, num_pages: int = 24, policy: Policy = FCFS
) -> World:
    """Small pool, few slots, short steps, short patience: everything is scarce."""
    rng = random.Random(seed)
    max_running = rng.choice([1, 2, 5, 8])
    limits = make_limits(
        max_running=max_running,
        max_step_tokens=rng.choice([1, 3, 8, 32]),
        max_bypass_s=rng.choice([0.0, 3.0, 40.0]),
        max_loads=rng.choice([1, 2, 4]),
        max_prompt_logits=rng.choice([1, 5, 256]),
    )
    return World(
        SchedulerState(max_running, num_requests, policy=policy),
        limits,
        num_pages=num_pages,
        num_slots=rng.choice([1, 2, 6]),
        load_steps=rng.choice([0, 1, 7]),
    )


def adapter_sizes(rng: random.Random, num_pages: int) -> list[int]:
    return [rng.choice([1, 2, 5, 9, num_pages - 2]) for _ in range(NUM_ADAPTERS)]


def random_requests(seed: int, count: int, num_pages: int) -> list[Request]:
    """All of them fit an empty pool; some just so. An adapter has one size."""
    rng = random.Random(seed)
    sizes = adapter_sizes(rng, num_pages)
    made: list[Request] = []
    while len(made) < count:
        adapter_id = rng.randrange(-2, NUM_ADAPTERS)
        request = make_request(
            len(made),
            num_prompt=rng.choice([1, 3, 4, 5, 17, 40, 80]),
            max_new=rng.choice([1, 2, 5, 9, 20]),
            adapter_id=max(adapter_id, -1),
            adapter_pages=sizes[adapter_id] if adapter_id >= 0 else 0,
            arrival_s=0.0,
            prompt_logprobs=rng.choice([-1, -1, 0]),
        )
        if never_fits(request, num_pages, 4, 10_000) is None:
            made.append(request)
    return made


def live(
    seed: int,
    *,
    count: int = 24,
    deadlines: bool = False,
    policy: Policy = FCFS,
    ttfts_s: tuple[float, ...] = (2.0,),
) -> World:
    """Requests come in over time, everyone is waited for; their bounds are drawn from a list."""
    world = make_world(seed, num_requests=count, policy=policy)
    bounds = random.Random(seed + 3)
    rng = random.Random(seed + 1)
    for request in random_requests(seed + 2, count, world.num_pages):
        deadline_s = world.now_s + rng.randrange(1, 60) if deadlines else float("inf")
        ttft_s = bounds.choice(ttfts_s)
        world.submit(replace(request, arrival_s=world.now_s, deadline_s=deadline_s, ttft_s=ttft_s))
        for _ in range(rng.choice([0, 0, 1, 4])):
            world.step()
    world.run(MAX_STEPS * max(count, 24) // 24)
    return world


def live_with_memory(seed: int, *, count: int = 24, deadlines: bool = False) -> World:
    """The same with a prefix cache, and by the seed: two rooms, a cap for each of two tenants,
    pins, adapters that nobody asks for. Prompts begin alike, and some go on from an answer.
    """
    num_pages = random.Random(seed + 9).choice([24, 24, 50])
    world = make_world(seed, num_requests=count, num_pages=num_pages)
    return live_in(world, seed, count=count, deadlines=deadlines)


def live_in(world: WorldT, seed: int, *, count: int, deadlines: bool) -> WorldT:
    """As above, in a world that has been made."""
    rng = random.Random(seed + 9)
    rng.choice([24, 24, 50])
    sizes = adapter_sizes(random.Random(seed + 2), world.num_pages)
    # A view is made of these before the first plan.
    world.limits = replace(world.limits, **_random_shares(rng, world.num_pages))
    world = replace(
        world,
        caches=True,
        tenants={i: rng.choice(["a", "b"]) for i in range(NUM_ADAPTERS)},
        pinned=frozenset(rng.sample(range(NUM_ADAPTERS), rng.choice([0, 2]))),
        wanted=rng.choice([{}, dict(enumerate(sizes))]),
    )
    for request in random_requests(seed + 2, 3 * count, world.num_pages):
        if len(world.asked) == count:
            break
        tried = _with_memory(world, request, rng)
        deadline_s = world.now_s + rng.randrange(1, 60) if deadlines else float("inf")
        asked = replace(tried, request_id=len(world.asked), deadline_s=deadline_s)
        if _never_fits(asked, world.limits, world.num_pages) is None:
            world.submit(asked)
            for _ in range(rng.choice([0, 0, 1, 4])):
                world.step()
    world.run(MAX_STEPS * max(count, 24) // 24)
    return world


def _random_shares(rng: random.Random, num_pages: int) -> dict[str, int | None]:
    return {
        "adapter_share_pages": rng.choice([None, None, 5, 9, num_pages - 3]),
        "max_tenant_pages": rng.choice([None, None, 8, num_pages - 1]),
    }


def _with_memory(world: World, request: Request, rng: random.Random) -> Request:
    """Of a tenant; perhaps the next turn of a talk."""
    base_tenant, kind = rng.choice(["a", "b"]), rng.random()
    tenant = world.tenants.get(request.adapter_id, base_tenant)
    prompt_ids = request.prompt_ids
    if kind < 0.3:
        prompt_ids = tuple(number + 1000 * rng.randrange(3) for number in prompt_ids)
    elif kind < 0.6:
        before = [asked for asked in world.asked.values() if asked.request_id in world.answers]
        before = [asked for asked in before if asked.adapter_id == request.adapter_id]
        if before:
            asked = rng.choice(before)
            answer = tuple(world.answers[asked.request_id])
            prompt_ids, tenant = (*asked.prompt_ids, *answer, 5, 6, 7), asked.tenant
    elif kind > 0.8:  # grows long after it was let in: somebody has to give way
        request = replace(request, max_new_tokens=45)
    return replace(request, prompt_ids=prompt_ids, tenant=tenant, arrival_s=world.now_s)


def _never_fits(request: Request, limits: StepLimits, num_pages: int) -> str | None:
    return never_fits(
        request,
        num_pages,
        4,
        10_000,
        adapter_share_pages=limits.adapter_share_pages,
        max_tenant_pages=limits.max_tenant_pages,
    )
