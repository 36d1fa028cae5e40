"""A world in which plans are carried out: the engine without tensors.

Plan, prefix cache, pool, residency's part as two dicts, commit. It checks every plan against its
own idea of memory before it believes it, and knows of each page whose tokens are in it: a row
that reads a page of other tokens would say wrong things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lorry.server.memory.economy import make_economy
from lorry.server.memory.pool import AdapterOwner, KvOwner, Pool
from lorry.server.memory.prefix_cache import PrefixCache
from lorry.server.memory.prefix_hash import prefix_root
from lorry.server.scheduling.commit import awaits, commit
from lorry.server.scheduling.plan import plan_step
from lorry.server.scheduling.prefix_view import IdleBlock
from lorry.server.scheduling.records import (
    AdapterView,
    Ending,
    Outcome,
    PoolView,
    Request,
    StepLimits,
    StepPlan,
    Wish,
)
from lorry.server.scheduling.state import SchedulerState


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
    caches: bool = False  # whether there is a prefix cache
    wanted: dict[int, int] = field(default_factory=dict[int, int])  # pages, by adapter worth having
    pinned: frozenset[int] = frozenset()
    tenants: dict[int, str] = field(default_factory=dict[int, str])  # by adapter
    plans: list[StepPlan] = field(default_factory=list[StepPlan])
    endings: dict[int, Ending] = field(default_factory=dict[int, Ending])
    answers: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    first_s: dict[int, float] = field(default_factory=dict[int, float])  # arrival -> first token
    told: dict[int, list[int]] = field(default_factory=dict[int, list[int]])  # places, by request
    adapters: dict[int, AdapterView] = field(default_factory=dict[int, AdapterView])
    arrives_s: dict[int, float] = field(default_factory=dict[int, float])

    def __post_init__(self) -> None:
        self.pool = Pool(self.num_pages, on_free=self._forget_pages)
        self.prefixes = PrefixCache(
            self.pool,
            make_economy("lru"),
            tokens_per_page=self.tokens_per_page,
            page_cost=lambda start: 1.0 + start,
            enabled=self.caches,
        )
        self.asked: dict[int, Request] = {}
        # By page: whose adapter, and all tokens up to its end. Nothing is said of unwritten ones.
        self.content: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def _forget_pages(self, pages: list[int]) -> None:
        for page in pages:
            self.content.pop(page, None)

    def submit(self, request: Request) -> int:
        self.asked[request.request_id] = request
        held = self.adapters.get(request.adapter_id)
        there = request.adapter_id == -1 or (held is not None and held.resident)
        row = self.state.add(request, self.now_s, resident=there)
        self._open(row)
        return row

    def root(self, row: int) -> bytes:
        request = self.state.request(row)
        return prefix_root(scope=request.tenant, content=str(request.adapter_id), model="")

    def _open(self, row: int) -> None:
        state = self.state
        self.prefixes.open(
            row,
            self.root(row),
            state.known_ids[row],
            tenant=state.request(row).tenant,
            reusable=bool(state.num_told[row] == state.num_to_tell[row]),
        )

    def view(self) -> PoolView:
        wishes = [
            Wish(adapter_id, pages, worth=self.now_s - adapter_id, tenant=self._owner(adapter_id))
            for adapter_id, pages in self.wanted.items()
            if adapter_id not in self.adapters
        ]
        return PoolView(
            self.num_pages,
            self.pool.num_free,
            self.tokens_per_page,
            self.num_slots - len(self.adapters),
            dict(self.adapters),
            AllLeaves(self.prefixes) if len(self.plans) % 2 else self.prefixes,
            tuple(wishes),
        )

    def step(self) -> StepPlan:
        self._land()
        plan = plan_step(self.state, self.view(), self.limits, self.now_s)
        self.plans.append(plan)
        self._check(plan)
        check_order(self, plan)
        self.prefixes.apply(plan)
        self.pool.apply(plan)
        for adapter_id in plan.evictions:
            del self.adapters[adapter_id]
        for load in plan.loads:
            self._show(load.adapter_id, load.num_pages, resident=False)
            self.arrives_s[load.adapter_id] = self.now_s + self.load_steps
        assert len(self.adapters) <= self.num_slots
        self._compute(plan)
        check_shares(self, plan)
        self._commit(plan)
        self.pool.audit()
        if self.caches:
            self.prefixes.audit()
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
        self.prefixes.apply(StepPlan(now_s=self.now_s, preemptions=(row,)))
        self.pool.release(KvOwner(row))
        self.state.give_back(row)
        self._open(row)

    def count(self, name: str) -> int:
        """How many `preemptions`, `evictions`, `loads` or `runs` the plans held in all."""
        return sum(len(getattr(plan, name)) for plan in self.plans)

    def _owner(self, adapter_id: int) -> str:
        return self.tenants.get(adapter_id, "default")

    def _show(self, adapter_id: int, num_pages: int, *, resident: bool) -> None:
        self.adapters[adapter_id] = AdapterView(
            num_pages,
            resident,
            last_used_s=self.now_s,
            worth=self.now_s,
            pinned=adapter_id in self.pinned,
            tenant=self._owner(adapter_id),
        )

    def _land(self) -> None:
        for adapter_id, seen in list(self.adapters.items()):
            if not seen.resident and self.arrives_s[adapter_id] <= self.now_s:
                self._show(adapter_id, seen.num_pages, resident=True)
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
        self._check_cold(plan, inside)
        found = {hit.row: hit.num_pages for hit in plan.hits}
        assert found.keys() <= waiting & {run.row for run in plan.runs}
        for keep in plan.keeps:
            assert keep.row in plan.preemptions
            assert keep.num_pages * self.tokens_per_page <= state.num_computed[keep.row]
        for run in plan.runs:
            assert run.row not in out
            num_found = found.get(run.row, 0)
            held = int(state.num_pages[run.row]) + num_found
            computed = int(state.num_computed[run.row]) + num_found * self.tokens_per_page
            assert run.start == computed
            assert 1 <= run.num_tokens <= state.num_known[run.row] - run.start
            assert held + run.num_new_pages == -(
                -(run.start + run.num_tokens) // self.tokens_per_page
            )

    def _check_cold(self, plan: StepPlan, inside: set[int]) -> None:
        """A world where everyone waits for adapters; `inside`: rows that hold pages."""
        del inside
        coming = sum(not seen.resident for seen in self.adapters.values()) + len(plan.loads)
        assert coming <= self.limits.max_loads
        for run in plan.runs:
            adapter_id = int(self.state.adapter_id[run.row])
            assert adapter_id == -1 or self.adapters[adapter_id].resident
        assert (plan.ways, plan.starts, plan.wake_s) == ({}, (), float("inf"))

    def _compute(self, plan: StepPlan) -> None:
        """What a step reads is what these tokens wrote, and it writes no page that is shared."""
        if not self.caches:  # then every page is its row's own
            return
        size = self.tokens_per_page
        for run in plan.runs:
            root, known = self.root(run.row), self.state.known_ids[run.row]
            pages = self.pool.kv_pages(run.row)
            end = run.start + run.num_tokens
            for index in range(end // size):
                page, right = pages[index], (root, tuple(known[: (index + 1) * size]))
                if index >= run.start // size:
                    assert page not in self.pool.cached_pages()
                    self.content[page] = right
                assert self.content[page] == right, "a page of other tokens"

    def _commit(self, plan: StepPlan) -> None:
        awaited = awaits(self.state, plan)
        tokens = {row: self._token(row) for row in awaited.sampled}
        for run in plan.runs:
            told = self.told.setdefault(self.state.request(run.row).request_id, [])
            told.extend(awaited.told.get(run.row, ()))
        outcomes = commit(self.state, plan, tokens, self.now_s + 0.5)
        for row in plan.preemptions:
            self._open(row)
        for outcome in outcomes:
            self._hear(outcome)
        for row in self.state.running_rows():
            owned = len(self.pool.pages_of(KvOwner(row)))
            assert owned == self.state.num_pages[row], "the table and the pool agree"
        for adapter_id, seen in self.adapters.items():
            assert len(self.pool.pages_of(AdapterOwner(adapter_id))) == seen.num_pages

    def _hear(self, outcome: Outcome) -> None:
        if outcome.token is not None:
            answer = self.answers.setdefault(outcome.request_id, [])
            answer.append(outcome.token)
            waited_s = self.now_s + 0.5 - self.asked[outcome.request_id].arrival_s
            self.first_s.setdefault(outcome.request_id, waited_s)
            if len(answer) == 1:
                num_prompt = int(self.state.num_prompt[outcome.row])
                self.prefixes.publish(outcome.row, num_prompt, self.now_s)
        if outcome.ending is not None:
            self.endings[outcome.request_id] = outcome.ending
            self._end(outcome.row, outcome.ending)

    def _token(self, row: int) -> int:
        """The same for a request and a position, whoever shares the step."""
        return 100 + self.state.request(row).request_id * 7 + int(self.state.num_known[row])

    def _end(self, row: int, ending: Ending) -> None:
        state, adapter_id = self.state, int(self.state.adapter_id[row])
        if adapter_id in self.adapters:
            seen = self.adapters[adapter_id]
            self._show(adapter_id, seen.num_pages, resident=seen.resident)
        if ending in (Ending.STOP, Ending.LENGTH):
            self.prefixes.publish(row, int(state.num_computed[row]), self.now_s)
        self.prefixes.close(row)
        self.pool.release(KvOwner(row))
        state.drop(row)


class AllLeaves:
    """The same view, which gives out what waiting rows need as well: the planner may not rely on
    its being left out.
    """

    def __init__(self, prefixes: PrefixCache) -> None:
        self._prefixes = prefixes

    def __getattr__(self, name: str) -> object:
        return getattr(self._prefixes, name)

    @property
    def num_idle(self) -> int:
        return self._prefixes.num_idle

    def leaves(self) -> Iterator[IdleBlock]:
        store = self._prefixes._blocks
        left = {block.page: block for block in store.all() if not block.num_holders}
        while left:
            parents = {block.parent.page for block in left.values() if block.parent}
            worth, page = min((b.worth, b.page) for b in left.values() if b.page not in parents)
            block = left.pop(page)
            yield IdleBlock(worth, page, block.parent.page if block.parent else -1, block.tenant)


def check_order(world: World, plan: StepPlan) -> None:
    """What goes is needed by nobody, or by someone behind those it goes for."""
    if not plan.evictions and not plan.prefix_evictions:
        return
    state = world.state
    positions = {row: place for place, row in enumerate(state.line.rows().tolist())}
    if plan.newest_first or any(r.num_new_pages and r.row not in positions for r in plan.runs):
        return  # who runs may take from everyone who waits
    goers = {*plan.expired, *plan.aborted, *plan.preemptions}
    waiting = {row: place for row, place in positions.items() if row not in goers}
    loaded = {load.adapter_id for load in plan.loads}
    served = [place for row, place in waiting.items() if int(state.adapter_id[row]) in loaded]
    served += [positions[run.row] for run in plan.runs if run.row in positions]
    first = min(served, default=len(positions))
    for row, place in waiting.items():
        needed = bool(set(world.prefixes.chain(row)) & set(plan.prefix_evictions))
        needed |= int(state.adapter_id[row]) in plan.evictions
        assert not needed or place > first, (row, plan)


def check_shares(world: World, plan: StepPlan) -> None:
    """After a plan was applied: two rooms keep to themselves, newcomers to their tenant's cap."""
    stats, share = world.pool.stats(), world.limits.adapter_share_pages
    if share is not None:
        assert stats.num_adapter <= share
        assert stats.num_kv + stats.num_cached <= world.num_pages - share
    if world.limits.max_tenant_pages is None:
        return
    state, used = world.state, Counter[str]()
    running = {run.row for run in plan.runs} | set(state.running_rows())
    running -= {*plan.expired, *plan.preemptions}
    tenant_of_page = {
        page: state.request(row).tenant for row in running for page in world.pool.kv_pages(row)
    }
    used.update(tenant_of_page.values())
    named = {int(state.adapter_id[row]) for row in running}
    for adapter_id, seen in world.adapters.items():
        if adapter_id in named or not seen.resident:
            used[seen.tenant] += seen.num_pages
    waiting = set(state.line.rows().tolist())
    for run in plan.runs:
        if run.row in waiting:
            tenant = state.request(run.row).tenant
            assert used[tenant] <= world.limits.max_tenant_pages
