"""What a server can carry, and a workload offered faster or slower: the load axis of the bench.

Owns the definition of capacity: answers a second of a closed loop that keeps so many requests
out, over the stretch in which it does. Stretching keeps requests and their order, and the shape
of the arrivals; only time runs faster. Pure but for `run_closed_loop`, which is handed who asks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..workload.errors import WorkloadError
from ..workload.records import Workload, WorkloadRequest
from .asking import AskOne

Clock = Callable[[], float]


class NoCapacity(Exception):
    """The closed loop lost a request, or ended before it was full, so it measured nothing."""


@dataclass(frozen=True, slots=True)
class Capacity:
    requests_per_s: float
    tokens_per_s: float  # new ones
    num_in_flight: int  # requests out at any time
    num_requests: int  # that were sent in all
    num_counted: int  # that ended within the stretch that counts


async def measure_capacity(
    ask: AskOne, requests: Sequence[WorkloadRequest], *, in_flight: int, now_s: Clock
) -> Capacity:
    """Raises:
    NoCapacity: a request failed, or there are too few for that many in flight.
    """
    # One batch to fill up, one to run empty, and as much in between.
    if len(requests) < 3 * in_flight:
        raise NoCapacity(f"{len(requests)} requests; {in_flight} in flight need {3 * in_flight}")
    ends = await run_closed_loop(ask, requests, in_flight=in_flight, now_s=now_s)
    return steady(ends, in_flight=in_flight)


@dataclass(frozen=True, slots=True)
class End:
    at_s: float
    num_tokens: int


async def run_closed_loop(
    ask: AskOne, requests: Sequence[WorkloadRequest], *, in_flight: int, now_s: Clock
) -> list[End]:
    """Each answer makes room for the next request; in the order of their ends."""
    ends: list[End] = []
    rest = iter(requests)

    async def serve(rest: Iterator[WorkloadRequest]) -> None:
        for request in rest:
            reply = await ask(request)
            if reply.error:
                raise NoCapacity(f"a request of the closed loop failed: {reply.error}")
            ends.append(End(now_s(), len(reply.token_ids)))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(serve(rest))
    except* NoCapacity as failures:
        raise failures.exceptions[0] from None
    return ends


def steady(ends: Sequence[End], *, in_flight: int) -> Capacity:
    """From the end of the first batch to the start of the last one's running empty."""
    counted = ends[in_flight : len(ends) - in_flight + 1]
    wall_s = counted[-1].at_s - ends[in_flight - 1].at_s
    if wall_s <= 0:
        raise NoCapacity(f"{len(counted)} answers ended within {wall_s:g} s")
    return Capacity(
        requests_per_s=len(counted) / wall_s,
        tokens_per_s=sum(end.num_tokens for end in counted) / wall_s,
        num_in_flight=in_flight,
        num_requests=len(ends),
        num_counted=len(counted),
    )


def mean_rate_per_s(workload: Workload) -> float:
    """Requests over the offered span, as goodput has it: the gaps between them alone count."""
    dues_s = [request.at_s for request in workload.requests]
    if len(dues_s) < 2 or dues_s[0] == dues_s[-1]:
        told = f"its {len(dues_s)} requests are of one instant"
        raise WorkloadError(f"workload {workload.name} has no rate: {told}")
    return (len(dues_s) - 1) / (dues_s[-1] - dues_s[0])


def at_rate(workload: Workload, rate_per_s: float) -> Workload:
    """The same requests in the same order, time run faster or slower to that mean rate."""
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise ValueError(f"a rate of {rate_per_s} requests/s; it is above 0")
    factor = mean_rate_per_s(workload) / rate_per_s
    moved = tuple(replace(one, at_s=one.at_s * factor) for one in workload.requests)
    return replace(workload, requests=moved)
