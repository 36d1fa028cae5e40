"""Builders of the scheduling tests, and a world in which plans are carried out.

`World` is the engine without tensors: plan, pool, residency's part as two dicts, commit. It
checks every plan against its own idea of memory before it believes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lorry.server.memory.pool import AdapterOwner, KvOwner, Pool
from lorry.server.scheduling.commit import awaits, commit
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.policies import FCFS, Policy
from lorry.server.scheduling.records import (
    AdapterView,
    Ending,
    PoolView,
    Request,
    StepLimits,
    StepPlan,
)
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.state import SchedulerState


def make_request(
    request_id: int = 0,
    *,
    num_prompt: int = 4,
    max_new: int = 4,
    adapter_id: int = -1,
    adapter_pages: int = 0,
    adapter_bytes: int = 0,
    arrival_s: float = 0.0,
    deadline_s: float = math.inf,
    stop_ids: frozenset[int] = frozenset(),
    tenant: str = "default",
    prompt_logprobs: int = -1,
    ttft_s: float = 2.0,
) -> Request:
    return Request(
        request_id=request_id,
        tenant=tenant,
        adapter_id=adapter_id,
        adapter_pages=adapter_pages,
        adapter_bytes=adapter_bytes,
        prompt_ids=tuple(range(num_prompt)),
        max_new_tokens=max_new,
        sampling=SamplingParams(seed=request_id, prompt_logprobs=prompt_logprobs),
        stop_ids=stop_ids,
        ttft_s=ttft_s,
        tpot_s=0.2,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
    )


def make_state(
    *requests: Request, max_running: int = 8, max_waiting: int = 64, policy: Policy = FCFS
) -> SchedulerState:
    state = SchedulerState(max_running, max_waiting, policy=policy)
    for request in requests:
        state.add(request, request.arrival_s, resident=request.adapter_id == -1)
    return state


def make_view(
    *,
    num_pages: int = 64,
    num_free: int | None = None,
    tokens_per_page: int = 4,
    num_free_slots: int = 8,
    adapters: dict[int, AdapterView] | None = None,
) -> PoolView:
    held = sum(adapter.num_pages for adapter in (adapters or {}).values())
    free = num_pages - held if num_free is None else num_free
    return PoolView(num_pages, free, tokens_per_page, num_free_slots, adapters or {})


def make_limits(
    *,
    max_running: int = 8,
    max_step_tokens: int = 32,
    max_bypass_s: float = 5.0,
    max_loads: int = 2,
    max_prompt_logits: int = 256,
) -> StepLimits:
    return StepLimits(max_running, max_step_tokens, max_bypass_s, max_loads, max_prompt_logits)


def resident(num_pages: int = 4, *, last_used_s: float = 0.0) -> AdapterView:
    return AdapterView(num_pages, resident=True, last_used_s=last_used_s)


def loading(num_pages: int = 4) -> AdapterView:
    return AdapterView(num_pages, resident=False, last_used_s=0.0)


@dataclass
class World:
    """Time goes on by one second per step; a load takes `load_steps` steps."""

    state: SchedulerState
    limits: StepLimits
    num_pages: int = 24
    tokens_per_page: int = 4
    num_slots: int = 4
    load_steps: int = 2
    now_s: float = 0.0
    plans: list[StepPlan] = field(default_factory=list[StepPlan])
    endings: dict[int, Ending] = field(default_factory=dict[int, Ending])
    answers: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    first_s: dict[int, float] = field(default_factory=dict[int, float])  # arrival -> first token
    told: dict[int, list[int]] = field(default_factory=dict[int, list[int]])  # places, by request
    adapters: dict[int, AdapterView] = field(default_factory=dict[int, AdapterView])
    arrives_s: dict[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        self.pool = Pool(self.num_pages)
        self.asked: dict[int, Request] = {}

    def submit(self, request: Request) -> int:
        self.asked[request.request_id] = request
        held = self.adapters.get(request.adapter_id)
        there = request.adapter_id == -1 or (held is not None and held.resident)
        return self.state.add(request, self.now_s, resident=there)

    def view(self) -> PoolView:
        free_slots = self.num_slots - len(self.adapters)
        return PoolView(
            self.num_pages,
            self.pool.num_free,
            self.tokens_per_page,
            free_slots,
            dict(self.adapters),
        )

    def step(self) -> StepPlan:
        self._land()
        plan = plan_step(self.state, self.view(), self.limits, self.now_s)
        self.plans.append(plan)
        self._check(plan)
        self.pool.apply(plan)
        for adapter_id in plan.evictions:
            del self.adapters[adapter_id]
        for load in plan.loads:
            self.adapters[load.adapter_id] = AdapterView(load.num_pages, False, self.now_s)
            self.arrives_s[load.adapter_id] = self.now_s + self.load_steps
        assert len(self.adapters) <= self.num_slots
        self._commit(plan)
        self.pool.audit()
        self.now_s += 1.0
        return plan

    def run(self, max_steps: int) -> int:
        """Steps until nobody is left; fails when that takes more than `max_steps`."""
        for num_steps in range(max_steps):
            if not self.state.num_waiting and not self.state.num_running:
                return num_steps
            self.step()
        raise AssertionError(f"not done after {max_steps} steps, last plan {self.plans[-1]}")

    def preempt(self, row: int) -> None:
        """As a plan would that is short of pages."""
        self.pool.release(KvOwner(row))
        self.state.give_back(row)

    def count(self, name: str) -> int:
        """How many `preemptions`, `evictions`, `loads` or `runs` the plans held in all."""
        return sum(len(getattr(plan, name)) for plan in self.plans)

    def _land(self) -> None:
        for adapter_id, seen in self.adapters.items():
            if not seen.resident and self.arrives_s[adapter_id] <= self.now_s:
                self.adapters[adapter_id] = AdapterView(seen.num_pages, True, self.now_s)
                self.state.adapter_arrived(adapter_id, self.now_s)

    def _check(self, plan: StepPlan) -> None:
        state = self.state
        out = {*plan.expired, *plan.preemptions}
        inside = {row for row in state.running_rows() if row not in out}
        inside |= {run.row for run in plan.runs}
        assert len(inside) <= self.limits.max_running
        assert sum(run.num_tokens for run in plan.runs) <= self.limits.max_step_tokens
        assert len({run.row for run in plan.runs}) == len(plan.runs)
        ids = [int(state.adapter_id[run.row]) for run in plan.runs]
        assert ids == sorted(ids), "rows of one adapter stand together, base first"
        waiting = set(state.line.rows().tolist())
        for row in plan.aborted:
            assert row in waiting and row not in inside, "who runs is never given up"
            assert row not in plan.expired and state.num_known[row] == state.num_prompt[row]
        for adapter_id in plan.evictions:
            assert self.adapters[adapter_id].resident, "a load under way is never evicted"
            assert adapter_id not in {int(state.adapter_id[row]) for row in inside}
        told = awaits(state, plan).told.values()
        assert sum(map(len, told)) <= self.limits.max_prompt_logits
        coming = sum(not seen.resident for seen in self.adapters.values()) + len(plan.loads)
        assert coming <= self.limits.max_loads
        for run, adapter_id in zip(plan.runs, ids, strict=True):
            assert run.row not in out
            assert run.start == state.num_computed[run.row]
            assert 1 <= run.num_tokens <= state.num_known[run.row] - run.start
            held = int(state.num_pages[run.row]) + run.num_new_pages
            assert held == -(-(run.start + run.num_tokens) // self.tokens_per_page)
            assert adapter_id == -1 or self.adapters[adapter_id].resident

    def _commit(self, plan: StepPlan) -> None:
        awaited = awaits(self.state, plan)
        tokens = {row: self._token(row) for row in awaited.sampled}
        for run in plan.runs:
            told = self.told.setdefault(self.state.request(run.row).request_id, [])
            told.extend(awaited.told.get(run.row, ()))
        for outcome in commit(self.state, plan, tokens, self.now_s + 0.5):
            if outcome.token is not None:
                self.answers.setdefault(outcome.request_id, []).append(outcome.token)
                waited_s = self.now_s + 0.5 - self.asked[outcome.request_id].arrival_s
                self.first_s.setdefault(outcome.request_id, waited_s)
            if outcome.ending is not None:
                self.endings[outcome.request_id] = outcome.ending
                self._end(outcome.row)
        for row in self.state.running_rows():
            owned = len(self.pool.pages_of(KvOwner(row)))
            assert owned == self.state.num_pages[row], "the table and the pool agree"
        for adapter_id, seen in self.adapters.items():
            assert len(self.pool.pages_of(AdapterOwner(adapter_id))) == seen.num_pages

    def _token(self, row: int) -> int:
        """The same for a request and a position, whoever shares the step."""
        return 100 + self.state.request(row).request_id * 7 + int(self.state.num_known[row])

    def _end(self, row: int) -> None:
        adapter_id = int(self.state.adapter_id[row])
        if adapter_id in self.adapters:
            seen = self.adapters[adapter_id]
            self.adapters[adapter_id] = AdapterView(seen.num_pages, seen.resident, self.now_s)
        self.pool.release(KvOwner(row))
        self.state.drop(row)
