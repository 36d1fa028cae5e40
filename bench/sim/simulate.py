"""`simulate`: a workload, a profile and a policy in; what every client would have seen out.

One or many replicas with a router in front. Where there are many, all of them have got to the
instant of a request before it is routed: what the router sees of a replica is of the end of the
step that is under way then, so never more than a step ahead. On its way to a replica a request is
seen by nobody. Called by the benches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...server.config import MemoryConfig
from ...server.memory_rooms import NOTHING_KEPT
from ...server.scheduling.policies import Policy
from ...server.scheduling.router import Router
from ..slo.stamps import Run
from ..workload.records import Workload
from .parts import Door, build_parts
from .profile import Profile
from .replica import Replica
from .stamping import StampBook


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    requests: int  # that were sent to it
    steps: int
    leapt: int  # of those, that were not taken one by one
    preemptions: int
    loads: int
    evictions: int
    host_hits: int
    host_misses: int
    lookup_tokens: int  # of prompts, when they first ran; 0: no prefix cache
    hit_tokens: int  # of those, that were cached
    prefetches: int  # loads that nobody waited for
    end_s: float  # instant of its last step


@dataclass(frozen=True, slots=True)
class SimResult:
    run: Run
    replicas: tuple[ReplicaResult, ...]

    @property
    def steps(self) -> int:
        return sum(replica.steps for replica in self.replicas)

    @property
    def leapt(self) -> int:
        return sum(replica.leapt for replica in self.replicas)

    @property
    def seconds_simulated(self) -> float:
        return max(replica.end_s for replica in self.replicas)


def simulate(
    workload: Workload,
    profile: Profile,
    *,
    policy: Policy,
    memory: MemoryConfig = NOTHING_KEPT,
    router: Router | None = None,
    replicas: int = 1,
    leap: bool = True,
    timeout_s: float = math.inf,
    all_pieces: bool = False,
) -> SimResult:
    """`timeout_s`: a client's patience. `all_pieces`: a stamp for every token, not for the first
    and the last alone. `memory`: how the pool is used; its sizes are the profile's. As it
    stands, like servers that keep nothing, with which the simulator's studies compare.

    Raises:
        ValueError: many replicas and no router.
    """
    if replicas < 1 or (replicas > 1 and router is None):
        raise ValueError(f"replicas is {replicas}; it must be 1, or more with a router")
    book = StampBook(
        workload, reply_s=profile.value("reply_s"), timeout_s=timeout_s, all_pieces=all_pieces
    )
    door = Door(workload, profile, timeout_s=timeout_s, real_prompts=memory.prefix_cache)
    fleet = [
        Replica(build_parts(profile, policy, door, book, memory=memory), book, leaps=leap)
        for _ in range(replicas)
    ]
    sent = _hand_out(len(workload.requests), door, fleet, router)
    for replica in fleet:
        replica.run_until(math.inf)
    results = (_result(replica, count) for replica, count in zip(fleet, sent, strict=True))
    return SimResult(book.run(policy.name), tuple(results))


def _hand_out(
    num_requests: int, door: Door, fleet: Sequence[Replica], router: Router | None
) -> list[int]:
    """How many requests each replica got."""
    sent = [0] * len(fleet)
    for index in range(num_requests):
        chosen = 0
        if router is not None:
            for replica in fleet:
                replica.run_until(door.due_s(index))
            views = [replica.view(door, number) for number, replica in enumerate(fleet)]
            chosen = router(door.facts(index), views)
        fleet[chosen].parts.end.send_in(index, door.arrival_s(index))
        sent[chosen] += 1
    return sent


def _result(replica: Replica, requests: int) -> ReplicaResult:
    counters, host = replica.engine.counters, replica.parts.host_tier.stats()
    prefixes = replica.parts.prefixes.stats()
    return ReplicaResult(
        requests=requests,
        steps=counters.steps,
        leapt=replica.num_leapt,
        preemptions=counters.preemptions,
        loads=counters.adapter_loads,
        evictions=counters.adapter_evictions,
        host_hits=host.hits,
        host_misses=host.misses,
        lookup_tokens=prefixes.lookup_tokens,
        hit_tokens=prefixes.hit_tokens,
        prefetches=replica.parts.residency.num_prefetches,
        end_s=replica.parts.clock.now_s(),
    )
