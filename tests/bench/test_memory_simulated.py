"""The simulated memory study: what its runs differ in, and what is read off them."""

from __future__ import annotations

from dataclasses import replace

from lorry.bench.memory.simulated import (
    PROFILE,
    memory_of,
    needed_memory,
    run_one,
    with_pages,
)
from lorry.bench.memory.workloads import SIMULATED, ZIPF, draw
from lorry.bench.sim.profile import checked, named_profile


def test_the_pool_is_half_of_the_working_set_and_nothing_else_differs():
    size = replace(SIMULATED, num_requests=60, num_adapters=20)
    workload = draw(ZIPF, size, seed=101, rate_per_s=1.0)
    profile = named_profile(PROFILE)
    needed = needed_memory(workload, profile)
    smaller = checked(with_pages(profile, needed.pool_pages))
    assert smaller.whole("num_pages") == needed.pool_pages == round(needed.pages / 2)
    assert memory_of("split").adapter_share_pages(needed.pool_pages) == round(
        0.2 * needed.pool_pages
    )
    assert memory_of("lru").adapter_share_pages(needed.pool_pages) is None
    row = run_one(workload, memory_of("economy"), rate_per_s=1.0)
    assert (row.num_requests, row.num_failed) == (60, 0)
    assert row.hit_share > 0.1 and row.loads >= 20
