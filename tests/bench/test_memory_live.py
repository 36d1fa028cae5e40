"""The live half of the memory study: fresh servers, the same load for all, turns that change."""

from __future__ import annotations

from collections import Counter

import pytest

from lorry.bench.memory.live import AGAIN, LivePlan, LiveUnfit, order_of, run_live
from lorry.bench.memory.pool_bytes import pool_bytes_for
from lorry.bench.memory.waste import MODELS_DIR
from lorry.bench.slo.rates import mean_rate_per_s
from lorry.server.execution.meta_model import read_model_memory
from lorry.server.execution.workspace_size import rows_within
from lorry.tests.memory_study_builders import FakeWorld

TIMES = {"economy": 0.2, "lru": 0.4, "split": 0.5}
SMALL = LivePlan(kinds=("zipf",), seeds=(1, 2), num_requests=12)


def run(world: FakeWorld, plan: LivePlan = SMALL):
    return run_live(plan, world, tell=lambda _: None)


def test_every_order_gets_every_seed_at_the_same_rate() -> None:
    """An order with an easier load, or a smaller pool, would be compared to nothing."""
    world = FakeWorld(TIMES)
    found = run(world)
    assert Counter((cell.seed, cell.eviction) for cell in found.cells) == Counter(
        (seed, eviction) for seed in (1, 2) for eviction in TIMES
    )
    for cell in found.cells:
        assert cell.pool_pages == 100 + cell.seed
        assert cell.ttft_s == pytest.approx([TIMES[cell.eviction]] * 12)
    assert [mean_rate_per_s(one) for one, _, _ in world.sent] == pytest.approx([8.0] * 2, rel=0.5)
    rates = {cell.seed: cell.rate_per_s for cell in found.cells}
    assert all(cell.rate_per_s == rates[cell.seed] for cell in found.cells)


def test_the_capacity_is_of_a_seed_that_is_not_judged() -> None:
    """The servers that are compared would have seen the loop's prompts."""
    world = FakeWorld(TIMES)
    assert run(world).capacities == {"zipf": 10.0}
    (loop,) = world.loops
    assert loop.seed not in SMALL.seeds


def test_the_baseline_runs_twice_on_the_first_seed_and_stands_apart() -> None:
    """The second server among the judged ones would count the baseline double."""
    world = FakeWorld(TIMES)
    found = run(world)
    assert [(cell.seed, cell.eviction) for cell in found.again] == [(1, "lru")]
    orders = [evictions for _, _, evictions in world.sent]
    assert [evictions.get(AGAIN) for evictions in orders] == ["lru", None]


def test_each_order_is_first_once() -> None:
    """Who always comes first meets a colder machine than the others."""
    firsts = [order_of(idx, again=False)[0] for idx in range(3)]
    assert sorted(firsts) == sorted(TIMES)
    for idx in range(3):
        labels = order_of(idx, again=True)
        assert sorted(labels) == sorted([*TIMES, AGAIN])
        assert abs(labels.index("lru") - labels.index(AGAIN)) > 1


def test_a_late_sender_costs_a_repetition_and_no_more() -> None:
    """Half of a comparison from one try and half from another have not met the same machine."""
    world = FakeWorld(TIMES, num_late=1)
    found = run(world)
    assert found.late == 1
    assert [workload.seed for workload, _, _ in world.sent] == [1, 1, 2]
    assert len(found.cells) == 6
    with pytest.raises(LiveUnfit, match="zipf, seed 1, economy: the sender was late, and again"):
        run(FakeWorld(TIMES, num_late=2))


def test_a_cell_that_failed_is_no_result() -> None:
    """Figures of the requests that did not fail."""
    with pytest.raises(LiveUnfit, match="seed 1, lru: 3 requests failed"):
        run(FakeWorld(TIMES, failures=("3 requests failed",)))


def test_pool_bytes_give_exactly_so_many_pages() -> None:
    """Half a working set is counted in pages; a part of the bytes becomes the workspace."""
    model = read_model_memory(MODELS_DIR / "qwen2.5-0.5b.json")
    sites = [site for site in model.shape.spec.sites if site.name != model.head]
    row_bytes = sum(2 * (site.in_width + site.out_width) + 4 for site in sites)
    for num_pages in (1, 40, 171, 300, 5000):
        pool_bytes = pool_bytes_for(num_pages, model)
        rows = rows_within(pool_bytes, row_bytes=row_bytes)
        assert (pool_bytes - rows * row_bytes) // model.shape.page_bytes == num_pages
        assert (rows > 0) == (num_pages > 100)
        assert pool_bytes_for(num_pages, model, device="cuda") == num_pages * model.shape.page_bytes
