"""Lives of the planner where rows may begin beside their loads: forecasts that are wrong, helpers
that fail, loads that fail, pages for too few.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from lorry.server.memory.pool import AdapterOwner
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.records import Ending, PoolView, Request, StepPlan
from lorry.server.scheduling.starts import HelpCosts, OnItsWay, StartPrices, Way
from lorry.server.scheduling.step_work import NO_WORK
from lorry.tests.life_builders import (
    MAX_STEPS,
    NUM_ADAPTERS,
    live_in,
    make_world,
    random_requests,
)
from lorry.tests.world_builders import World

AUTO = frozenset({Way.WAIT, Way.STREAM, Way.ASSIST})
FORCED = (frozenset({Way.STREAM}), frozenset({Way.STREAM, Way.ASSIST}))
WAYS = (AUTO, AUTO, frozenset({Way.WAIT, Way.STREAM}), *FORCED)


def make_model(
    *,
    token_s: float = 0.1,
    step_s: float = 0.2,
    lora_s: float = 0.0,
    load_s: float = 0.0,
    load_s_per_byte: float = 0.01,
    read_s_per_byte: float = 0.0,
) -> CostModel:
    """`lora_s`: for one token and one byte of its adapter."""
    coefs = NO_WORK._replace(steps=step_s, prompt_tokens=token_s, lora_token_bytes=lora_s)
    return CostModel(tuple(coefs), load_s, load_s_per_byte, read_s_per_byte)


@dataclass
class ColdWorld(World):
    """`in_host`: adapters whose loads are open at once; others are one step later."""

    seed: int = 0
    prices: StartPrices = field(default_factory=StartPrices)
    in_host: frozenset[int] = frozenset()
    at_head: frozenset[int] = frozenset()  # adapters that nobody helps with
    seen: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        World.__post_init__(self)
        self._rng = random.Random(self.seed)
        self._opened: set[int] = set()
        self._unhelped: set[int] = set()
        self._ordered_s: dict[int, float] = {}
        self._to_fail: set[int] = set()

    def submit(self, request: Request) -> int:
        """With bytes, if it was given none: there would be nothing to wait for."""
        if not request.adapter_bytes:
            tpot_s = (0.2, 2.5, 9.0)[request.request_id % 3]
            num_bytes = 100 * request.adapter_pages
            request = replace(request, adapter_bytes=num_bytes, tpot_s=tpot_s)
        return super().submit(request)

    def view(self) -> PoolView:
        return replace(super().view(), cold=self, prices=self.prices)

    def on_its_way(self, adapter_id: int, num_bytes: int, now_s: float) -> OnItsWay:
        """Foretold too short, right or too long, by the adapter."""
        is_loading = adapter_id in self.adapters
        lasts_s = self.arrives_s[adapter_id] - now_s if is_loading else num_bytes * 0.01
        lasts_s *= (0.3, 1.0, 3.0)[adapter_id % 3]
        is_open = adapter_id in (self._opened if is_loading else self.in_host)
        helps = adapter_id not in self.at_head | self._unhelped
        return OnItsWay(
            landed_s=now_s + lasts_s,
            begun_s=self._ordered_s[adapter_id] if is_loading else now_s,
            held_s=now_s if is_open else now_s + lasts_s / 2,
            is_open=is_open,
            can_help=is_open and helps,
        )

    def step(self) -> StepPlan:
        view = self.view()
        before = {row: int(self.state.adapter_id[row]) for row in self.state.running_rows()}
        if len(self.plans) % 8 == 0:
            again = plan_step(self.state, view, self.limits, self.now_s)
            assert plan_step(self.state, view, self.limits, self.now_s) == again
        plan = super().step()
        for load in plan.loads:
            lasts_s = self._rng.choice([0, 1, self.load_steps, 4 * self.load_steps])
            self.arrives_s[load.adapter_id] = plan.now_s + lasts_s
            self._ordered_s[load.adapter_id] = plan.now_s
            if load.adapter_id in self.in_host:
                self._opened.add(load.adapter_id)
            if self._rng.random() < 0.05:
                self._to_fail.add(load.adapter_id)
        self._count(plan, before)
        self._lose(plan)
        return plan

    def _land(self) -> None:
        for adapter_id in [i for i, seen in self.adapters.items() if not seen.resident]:
            if self.arrives_s[adapter_id] > self.now_s:
                self._opened.add(adapter_id)
                continue
            self._opened.discard(adapter_id)
            self._unhelped.discard(adapter_id)
            if adapter_id in self._to_fail:
                self._to_fail.remove(adapter_id)
                self._break(adapter_id)
        super()._land()

    def _break(self, adapter_id: int) -> None:
        del self.adapters[adapter_id]
        self.pool.release(AdapterOwner(adapter_id))
        for row in self.state.rows_of_adapter(adapter_id):
            self.endings[self.state.request(row).request_id] = Ending.BROKEN
            self._end(row, Ending.BROKEN)

    def _lose(self, plan: StepPlan) -> None:
        """Helpers fail an adapter: its rows go back, and nobody asks for help with it again."""
        for adapter_id in plan.ways:
            if self._rng.random() < 0.1:
                self._unhelped.add(adapter_id)
                for row in self.state.running_rows():
                    if int(self.state.adapter_id[row]) == adapter_id:
                        self.preempt(row)
                        self.seen["lost"] += 1

    def _count(self, plan: StepPlan, before: dict[int, int]) -> None:
        ran = {run.row for run in plan.runs}
        for row, adapter_id in before.items():
            seen = self.adapters.get(adapter_id)
            if seen is not None and not seen.resident and row not in ran | {*plan.preemptions}:
                self.seen["paused"] += 1
        for row, start in plan.starts:
            self.seen[f"{start.way.name} {row in ran}"] += 1

    def _check_cold(self, plan: StepPlan, inside: set[int]) -> None:
        """Who runs beside its load has pages, an open load and a way that is allowed."""
        out = {*plan.expired, *plan.preemptions}
        named = {int(self.state.adapter_id[row]) for row in inside}
        held = {int(self.state.adapter_id[row]) for row in self.state.running_rows()}
        loads, ran = {load.adapter_id for load in plan.loads}, set[int]()
        for run in plan.runs:
            assert run.row not in out
            adapter_id = int(self.state.adapter_id[run.row])
            seen = self.adapters.get(adapter_id)
            if adapter_id == -1 or (seen is not None and seen.resident):
                assert adapter_id not in plan.ways
                continue
            ran.add(adapter_id)
            coming = self.on_its_way(adapter_id, 0, self.now_s)
            assert coming.is_open and (adapter_id in self.adapters or adapter_id in loads)
            assert plan.ways[adapter_id] in self.prices.ways & {Way.STREAM, Way.ASSIST}
            assert plan.ways[adapter_id] is Way.STREAM or coming.can_help
        assert plan.ways.keys() == ran
        assert plan.wake_s > self.now_s
        waiting = {i for i, seen in self.adapters.items() if not seen.resident and i not in held}
        awaited = loads - named
        assert not awaited or len(waiting | awaited) <= self.limits.max_loads


def make_cold_world(seed: int, *, num_requests: int, num_pages: int = 24) -> ColdWorld:
    rng = random.Random(seed + 17)
    plain = make_world(seed, num_requests=num_requests, num_pages=num_pages)
    prices = StartPrices(
        ways=rng.choice(WAYS),
        steps=make_model(step_s=rng.choice([0.01, 0.2]), token_s=rng.choice([0.1, 1.0])),
        help=HelpCosts(rng.choice([1e-4, 0.1]), rng.choice([1e-6, 1e-3]), num_calls=4),
        num_layers=rng.choice([1, 4, 8]),
    )
    return ColdWorld(
        plain.state,
        plain.limits,
        num_pages=plain.num_pages,
        num_slots=plain.num_slots,
        load_steps=rng.choice([1, 7]),
        caches=rng.random() < 0.3,
        seed=seed,
        prices=prices,
        in_host=frozenset(rng.sample(range(NUM_ADAPTERS), rng.choice([0, 5, NUM_ADAPTERS]))),
        at_head=frozenset(rng.sample(range(NUM_ADAPTERS), rng.choice([0, 4]))),
    )


def cold_life(seed: int, *, count: int = 12) -> ColdWorld:
    """Requests come in over time, everyone is waited for."""
    world, rng = make_cold_world(seed, num_requests=count), random.Random(seed + 1)
    for request in random_requests(seed + 2, count, world.num_pages):
        num_bytes = 100 * request.adapter_pages
        tpot_s = rng.choice([0.2, 2.5, 9.0])
        world.submit(
            replace(request, arrival_s=world.now_s, adapter_bytes=num_bytes, tpot_s=tpot_s)
        )
        for _ in range(rng.choice([0, 0, 1, 4])):
            world.step()
    world.run(MAX_STEPS * max(count, 24) // 24)
    return world


def cold_life_with_memory(seed: int, *, count: int = 12, deadlines: bool = False) -> ColdWorld:
    """With a prefix cache, two rooms, caps of tenants, pins and wishes, by the seed."""
    num_pages = random.Random(seed + 9).choice([24, 24, 50])
    world = make_cold_world(seed, num_requests=count, num_pages=num_pages)
    return live_in(world, seed, count=count, deadlines=deadlines)
