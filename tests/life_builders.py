"""Whole lives of the planner: random requests that come over time, in worlds too small for them."""

from __future__ import annotations

import random
from dataclasses import replace

from lorry.server.scheduling.plan import never_fits
from lorry.server.scheduling.policies import FCFS, Policy
from lorry.server.scheduling.records import Request
from lorry.server.scheduling.state import SchedulerState
from lorry.tests.scheduling_builders import World, make_limits, make_request

MAX_STEPS = 3000  # of a life of 24 requests


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


def random_requests(seed: int, count: int, num_pages: int) -> list[Request]:
    """All of them fit an empty pool; some just so. An adapter has one size."""
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 5, 9, num_pages - 2]) for _ in range(8)]
    made: list[Request] = []
    while len(made) < count:
        adapter_id = rng.randrange(-2, 8)
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
