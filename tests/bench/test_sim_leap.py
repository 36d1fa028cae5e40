"""Leaping over turns of the engine's loop and taking them one by one give the same run."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.bench.sim.parts import cost_model
from lorry.bench.sim.profile import Profile
from lorry.bench.sim.simulate import SimResult, simulate
from lorry.bench.slo.stamps import Outcome
from lorry.bench.workload.records import Workload
from lorry.server.config import MemoryConfig
from lorry.server.memory_rooms import NOTHING_KEPT
from lorry.server.scheduling.policies import POLICIES, Policy
from lorry.server.scheduling.router import by_added_cost
from lorry.tests.sim_builders import (
    draw_talks,
    draw_workload,
    make_profile,
    make_wish,
    make_workload,
)


def both(
    workload: Workload,
    profile: Profile,
    *,
    policy: Policy = POLICIES["fcfs"],
    replicas: int = 1,
    timeout_s: float = math.inf,
    memory: MemoryConfig = NOTHING_KEPT,
) -> tuple[SimResult, SimResult]:
    """The run leapt, and the run stepped."""
    leapt, stepped = (
        simulate(
            workload,
            profile,
            policy=policy,
            memory=memory,
            router=by_added_cost(cost_model(profile), 20.0) if replicas > 1 else None,
            replicas=replicas,
            leap=leap,
            timeout_s=timeout_s,
            all_pieces=True,
        )
        for leap in (True, False)
    )
    return leapt, stepped


def same(leapt: SimResult, stepped: SimResult) -> None:
    """To the last bit: every stamp, every counter, the instant of the last step."""
    assert stepped.leapt == 0
    assert leapt.run == stepped.run
    for ours, theirs in zip(leapt.replicas, stepped.replicas, strict=True):
        facts = (ours.requests, ours.steps, ours.preemptions, ours.loads, ours.evictions)
        assert facts == (
            theirs.requests,
            theirs.steps,
            theirs.preemptions,
            theirs.loads,
            theirs.evictions,
        )
        assert (ours.host_hits, ours.host_misses) == (theirs.host_hits, theirs.host_misses)
        assert ours.end_s == theirs.end_s


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    overlaps=st.integers(0, 1),
    policy=st.sampled_from(sorted(POLICIES)),
    replicas=st.sampled_from([1, 1, 2]),
)
def test_leaping_equals_stepping(seed: int, overlaps: int, policy: str, replicas: int) -> None:
    """Under want of pages, preemptions, loads, deadlines, early aborts, and behind a router."""
    rng = random.Random(seed)
    workload = draw_workload(seed, num_requests=15, rate_per_s=rng.choice([1.0, 5.0, 40.0]))
    profile = make_profile(
        num_pages=rng.choice([32, 45, 80, 400]),
        max_running=rng.choice([1, 3, 8]),
        max_waiting=rng.choice([5, 100]),
        ttft_s=rng.choice([0.1, 0.5, 3.0]),
        max_bypass_s=rng.choice([0.05, 0.3, 5.0]),
        overlaps=overlaps,
    )
    timeout_s = rng.choice([math.inf, 2.0])
    same(*both(workload, profile, policy=POLICIES[policy], replicas=replicas, timeout_s=timeout_s))


@pytest.mark.parametrize("overlaps", [0, 1])
def test_a_long_answer_alone_is_leapt_nearly_whole(overlaps: int) -> None:
    """A leap that is never taken would pass every comparison."""
    workload = make_workload(make_wish(0.0, 7, 90), make_wish(0.4, 3, 40))
    leapt, stepped = both(workload, make_profile(num_pages=200, overlaps=overlaps))
    same(leapt, stepped)
    assert leapt.leapt > 0.8 * leapt.steps


@pytest.mark.parametrize(("seed", "num_pages"), [(68, 36), (153, 32)])
def test_whom_a_line_looks_at_changes_while_rows_grow(seed: int, num_pages: int) -> None:
    """Regression: with more ready rows than may run, an adapter is fetched only once pages have
    become so few that fewer are ready; a leap went past that.
    """
    workload = draw_workload(seed, num_requests=30, rate_per_s=40.0)
    same(*both(workload, make_profile(num_pages=num_pages, max_running=1, overlaps=1)))


@pytest.mark.parametrize(
    ("seed", "limits"),
    [
        (2, {"num_pages": 32, "max_running": 1, "ttft_s": 0.3, "overlaps": 1}),
        (6, {"num_pages": 45, "max_running": 8, "ttft_s": 0.3, "overlaps": 0}),
    ],
)
def test_time_alone_changes_the_mind_of_slora(seed: int, limits: dict[str, float]) -> None:
    """A leap past the instant at which somebody is given up would give him up too late."""
    workload = draw_workload(seed, num_requests=30, rate_per_s=5.0)
    leapt, stepped = both(workload, make_profile(**limits), policy=POLICIES["slora"])
    same(leapt, stepped)
    assert any(one.outcome is Outcome.REFUSED for one in leapt.run.requests)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    overlaps=st.integers(0, 1),
    eviction=st.sampled_from(["economy", "lru", "split"]),
)
def test_leaping_equals_stepping_with_all_of_memory(
    seed: int, overlaps: int, eviction: str
) -> None:
    """With hits, evicted blocks, kept pages, prefetches and cancelled loads; pages and the order of
    what may go depend on what a leap leased.
    """
    rng = random.Random(seed)
    workload = draw_talks(seed, num_requests=20, rate_per_s=rng.choice([2.0, 10.0, 40.0]))
    profile = make_profile(
        num_pages=rng.choice([40, 60, 120]),
        max_running=rng.choice([1, 3, 8]),
        overlaps=overlaps,
    )
    timeout_s = rng.choice([math.inf, 2.0])
    memory = MemoryConfig(eviction=eviction, adapter_share=0.4)
    leapt, stepped = both(workload, profile, timeout_s=timeout_s, memory=memory)
    same(leapt, stepped)
    (ours,), (theirs,) = leapt.replicas, stepped.replicas
    assert (ours.lookup_tokens, ours.hit_tokens) == (theirs.lookup_tokens, theirs.hit_tokens)
    assert ours.prefetches == theirs.prefetches


def test_memory_is_leapt_over_and_met_again() -> None:
    """A leap that is never taken, or a cache that is never hit, would pass every comparison."""
    workload = draw_talks(3, num_requests=40, rate_per_s=4.0)
    leapt, _ = both(workload, make_profile(num_pages=60), memory=MemoryConfig())
    assert leapt.leapt > 0.2 * leapt.steps
    assert leapt.replicas[0].hit_tokens > 100
    assert leapt.replicas[0].evictions > 0
