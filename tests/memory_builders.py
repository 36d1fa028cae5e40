"""Builders of the memory tests: plans by their numbers alone, and a residency over fakes."""

from __future__ import annotations

from collections.abc import Sequence

from lorry.server.memory.economy import make_economy
from lorry.server.memory.pool import Pool
from lorry.server.memory.residency import Residency
from lorry.server.scheduling.records import PlannedLoad, PlannedRun, StepPlan
from lorry.tests.fakes import FakeLink, make_card


def load_plan(*loads: tuple[int, int], evict: Sequence[int] = ()) -> StepPlan:
    """`loads`: (adapter_id, num_pages)."""
    return StepPlan(evictions=tuple(evict), loads=tuple(PlannedLoad(*load) for load in loads))


def run_plan(*runs: tuple[int, int], expire: Sequence[int] = (), preempt: Sequence[int] = ()):
    """`runs`: (row, num_new_pages)."""
    planned = tuple(PlannedRun(row, 0, 1, num_new_pages) for row, num_new_pages in runs)
    return StepPlan(expired=tuple(expire), preemptions=tuple(preempt), runs=planned)


def make_residency(
    num_pages: int = 10, max_slots: int = 4, *, popular: bool = False
) -> tuple[Residency, Pool, FakeLink]:
    """`popular`: also who was asked for often is wished for."""
    pool, link = Pool(num_pages), FakeLink()
    residency = Residency(
        pool,
        link,
        max_slots=max_slots,
        economy=make_economy("economy"),
        by_popularity=popular,
    )
    return residency, pool, link


def bring(residency: Residency, pool: Pool, link: FakeLink, name: str = "a") -> int:
    """A resident adapter of two pages with one user."""
    adapter_id = residency.intern(make_card(name))
    residency.use(adapter_id, 0.0)
    plan = load_plan((adapter_id, 2))
    pool.apply(plan)
    (order,) = residency.apply(plan).orders
    link.finish(order.load_id)
    residency.drain(link.poll(), 1.0)
    return adapter_id


def start_load(residency: Residency, pool: Pool, adapter_id: int) -> int:
    """Returns the load's id."""
    plan = load_plan((adapter_id, 2))
    pool.apply(plan)
    (order,) = residency.apply(plan).orders
    return order.load_id
