"""A plan in the making: what is left of the step's budgets, and what is decided so far.

Owns the bookkeeping (pages, tokens, slots, where adapters are, who gave what up) so that plan.py
holds only rules; the order in which idle things go is eviction.py's. Reads the table and the
view, never writes them. Lives for one call of `plan_step`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks
from .cold_rows import cold_rows
from .eviction import Idle, IdleAdapter
from .facts import Row, gather
from .line import NOBODY, Line
from .records import (
    BASE_ID,
    PlannedHit,
    PlannedLoad,
    PlannedRun,
    PoolView,
    StepLimits,
    StepPlan,
    Wish,
)
from .rooms import Room, make_rooms
from .state import SchedulerState
from .tenants import Tenants
from .victims import Victims


class Where(IntEnum):
    """An adapter's place, as this plan sees it."""

    ABSENT = 0
    LOADING = 1
    RESIDENT = 2
    LEAVING = 3  # evicted by this plan: neither usable nor loadable until the next


def _with_work(state: SchedulerState) -> list[int]:
    """Running rows, but for those whose last token is on its way.

    Those take no place in the step and need no page, and must not be anyone's victim.
    """
    rows = np.array(state.running_rows(), np.int64)
    return rows[~state.is_whole(rows)].tolist()


class PlanDraft:
    """Changed by plan.py's rules in their order, then turned into a StepPlan."""

    def __init__(
        self,
        state: SchedulerState,
        view: PoolView,
        limits: StepLimits,
        now_s: float,
        expired: list[int],
    ) -> None:
        self.state, self.view, self.limits, self.now_s = state, view, limits, now_s
        gone = set(expired)
        self.expired = expired
        self.running = [row for row in _with_work(state) if row not in gone]  # oldest first
        self.facts = gather(state, self.running)  # and of newcomers, once they are looked at
        self.aborted = [
            row for row in state.policy.gives_up(state, now_s).tolist() if row not in gone
        ]
        self.newest_first = state.policy.newest_first(state, now_s)
        self.line = Line(
            state,
            view.prefixes,
            ended=[*expired, *self.aborted],
            newest_first=self.newest_first,
        )
        self.tells_left = limits.max_prompt_logits
        untold = state.num_to_tell[self.running] - state.num_told[self.running]
        self.waits_for_logits = self.line.wait_for_logits(self.tells_left - int(untold.sum()))

        self.free_slots, self.tokens_left = view.num_free_slots, limits.max_step_tokens
        self.loading = [i for i, seen in view.adapters.items() if not seen.resident]
        self.runs: dict[int, PlannedRun] = {}
        self.hits: list[PlannedHit] = []
        self.preemptions: list[int] = []
        self.evictions: list[int] = []
        self.loads: dict[int, PlannedLoad] = {}

        # A launched step may still read the weights of rows that will not run again.
        holding = [row for row in state.holding_rows().tolist() if row not in gone]
        self.in_use = set(state.adapter_id[holding].tolist())
        # Adapters on their way that somebody waits for: whoever runs meanwhile does not.
        self.num_loading = sum([i not in self.in_use for i in self.loading])
        self.cold = cold_rows(state, view, limits, now_s)
        # Both are indexed by adapter_id; the base's -1 is their last element.
        size = max([-1, *view.adapters, int(self.line.adapters.max(initial=-1))]) + 2
        self.where = self._places(size)
        self.first = self.line.first_positions(size)

        self.blocks = Blocks(view.prefixes, self.line)
        self.victims = Victims(self.blocks, view.tokens_per_page)
        self.tenants = self._tenants(holding)
        rooms = make_rooms(
            view,
            limits,
            self.blocks,
            find_adapters=self._idle_adapters,
            num_adapter_pages=self._num_idle_adapter_pages(),
            end=len(self.line),
            over_cap=self.tenants.over_cap() if self.tenants else {},
        )
        self.kv, self.adapters = rooms.kv, rooms.adapters
        self._let_expire()

    def _let_expire(self) -> None:
        rows = [row for row in self.expired if self.state.num_pages[row]]
        for fact in gather(self.state, rows).values():
            self.kv.free_pages += self.victims.expire(fact)

    def _idle_adapters(self) -> list[IdleAdapter]:
        first = self.first.tolist()
        return [
            IdleAdapter(
                adapter_id=i,
                num_pages=seen.num_pages,
                position=first[i],
                worth=seen.worth,
                last_used_s=seen.last_used_s,
                pinned=seen.pinned,
                tenant=seen.tenant,
            )
            for i, seen in self.view.adapters.items()
            if seen.resident and i not in self.in_use
        ]

    def _num_idle_adapter_pages(self) -> int:
        in_use = self.in_use
        adapters = self.view.adapters.items()
        return sum([seen.num_pages for i, seen in adapters if seen.resident and i not in in_use])

    def _tenants(self, holding: list[int]) -> Tenants | None:
        """None: there is no cap."""
        cap = self.limits.max_tenant_pages
        if cap is None:
            return None
        tenants = Tenants(
            self.state, self.view, cap, blocks=self.blocks, holding=holding, in_use=self.in_use
        )
        for row in self.running:
            tenants.promise(row, self.promised_pages(row))
        return tenants

    def _places(self, size: int) -> NDArray[np.int8]:
        where = np.full(size, Where.ABSENT, np.int8)
        for adapter_id, seen in self.view.adapters.items():
            where[adapter_id] = Where.RESIDENT if seen.resident else Where.LOADING
        where[BASE_ID] = Where.RESIDENT
        return where

    # Questions

    @property
    def is_full(self) -> bool:
        """No newcomer can run, whatever its size."""
        return self.tokens_left == 0 or len(self.running) >= self.limits.max_running

    def most_tokens(self, row: int) -> int:
        """As many as the row lacks and the step may still compute, pages aside."""
        fact = self.facts[row]
        most = min(fact.num_known - fact.start, self.tokens_left)
        told_end = max(fact.start, fact.num_told) + self.tells_left
        return most if told_end >= fact.num_to_tell else min(most, told_end - fact.start)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.view.tokens_per_page)

    def reserve(self) -> int:
        """Pages promised to all who run."""
        return sum([self.promised_pages(row) for row in self.running])

    def behind_hits(self, fact: Row) -> tuple[Row, int]:
        """A newcomer as it would begin, and how many pages it finds that are idle."""
        num_pages, num_idle = self.blocks.hits(fact.row)
        start = num_pages * self.view.tokens_per_page
        return fact._replace(start=start, num_pages=num_pages), num_idle

    def promised_pages(self, row: int) -> int:
        """Kept back from newcomers: room for all a running row knows, and its next page."""
        fact, run = self.facts[row], self.runs.get(row)
        held = fact.num_pages + (run.num_new_pages if run else 0)
        wanted = self.pages_for(fact.num_known) + 1
        return max(min(wanted, self.pages_for(fact.num_final)) - held, 0)

    @cached_property
    def kept_adapter_pages(self) -> NDArray[np.int64]:
        """By position in the line: pages of idle adapters first named by someone this far."""
        kept = np.zeros(len(self.line) + 1, np.int64)
        is_named = (self.first < len(self.line)) & (self.where == Where.RESIDENT)
        for adapter_id, seen in self.view.adapters.items():
            if is_named[adapter_id] and adapter_id not in self.in_use:
                kept[self.first[adapter_id]] = seen.num_pages
        return kept.cumsum()

    @cached_property
    def _most_kept(self) -> NDArray[np.int64]:
        """By position: at most so many idle pages are needed by someone this far. Blocks that
        several need are counted for each.
        """
        return self.kept_adapter_pages[: len(self.line)] + self.line.hits.cumsum()

    def can_take(self, room: Room, num_pages: int, position: int) -> bool:
        if num_pages <= room.free_pages:
            return True
        if position != NOBODY:  # without a look at who needs what, if it is plenty
            kept = int(self._most_kept[position])
            if num_pages <= room.free_pages + room.order.num_pages - kept:
                return True
        return room.can_take(num_pages, position)

    def has_slot_worth_less(self, worth: float) -> bool:
        """Whether an adapter that nobody needs would give its slot to one worth so much."""
        idle = self.adapters.order.next_adapter(len(self.line) - 1)
        return idle is not None and not idle.pinned and idle.worth < worth

    def can_load(self, fact: Row, position: int, kv_pages: int) -> bool:
        """Whether an adapter has a slot and room, and so many pages of KV beside it."""
        if not self.free_slots and self.adapters.order.next_adapter(position) is None:
            return False
        if self.adapters is self.kv:
            return self.can_take(self.kv, fact.adapter_pages + kv_pages, position)
        return self.can_take(self.adapters, fact.adapter_pages, position) and self.can_take(
            self.kv, kv_pages, position
        )

    # Decisions

    def run(self, row: int, num_tokens: int, position: int) -> None:
        """Ask `can_take` for its pages first."""
        fact = self.facts[row]
        new_pages = self.pages_for(fact.start + num_tokens) - fact.num_pages
        self._take(self.kv, new_pages, position)
        self.tokens_left -= num_tokens
        self.tells_left -= fact.num_tells(num_tokens)
        self.runs[row] = PlannedRun(row, fact.start, num_tokens, new_pages)

    def enter(self, fact: Row, num_idle_hits: int) -> None:
        """A newcomer, of whose cached pages so many were idle; `run` follows."""
        self.running.append(fact.row)
        if fact.num_pages:
            self.hits.append(PlannedHit(fact.row, fact.num_pages))
            self.blocks.take(fact.row, fact.num_pages)
            self.kv.order.num_pages -= num_idle_hits
        if fact.adapter_id not in self.in_use:  # no longer idle, if it was here
            self.in_use.add(fact.adapter_id)
            if int(self.where[fact.adapter_id]) == Where.RESIDENT:
                self.adapters.order.num_pages -= fact.adapter_pages
        if self.tenants is not None:
            new = self.promised_pages(fact.row)
            self.tenants.hold(fact, new + num_idle_hits)

    def preempt(self, row: int) -> None:
        """A running row gives everything back, also what this plan has given it.

        Its adapter stays until the next plan, when it counts as idle.
        """
        self.running.remove(row)
        self.preemptions.append(row)
        self.kv.free_pages += self.victims.preempt(self.facts[row])
        run = self.runs.pop(row, None)
        if run is not None:
            self.kv.free_pages += run.num_new_pages
            self.tokens_left += run.num_tokens
            self.tells_left += self.facts[row].num_tells(run.num_tokens)

    def reclaim(self) -> bool:
        """Whether blocks of expired rows make room."""
        num_pages = self.victims.reclaim()
        self.kv.free_pages += num_pages
        return num_pages > 0

    def load(self, adapter_id: int, num_pages: int, position: int, *, awaited: bool = True) -> None:
        """Ask `can_load` first. `awaited`: whoever it is for stays in line until it is here."""
        if self.free_slots == 0:
            idle = self.adapters.order.pop_adapter(position)
            self.adapters.free_pages += idle.num_pages
            self._note(idle)
        self._take(self.adapters, num_pages, position)
        self.free_slots -= 1
        self.num_loading += awaited
        self.loads[adapter_id] = PlannedLoad(adapter_id, num_pages)

    def fetch(self, wish: Wish) -> None:
        """An adapter nobody waits for, over what is worth less; ask prefetch.py first."""
        self.load(wish.adapter_id, wish.num_pages, NOBODY)

    def _take(self, room: Room, num_pages: int, position: int) -> None:
        for idle in room.take(num_pages, position):
            self._note(idle)

    def _note(self, idle: Idle) -> None:
        if idle.adapter_id != BASE_ID:
            self.free_slots += 1
            self.where[idle.adapter_id] = Where.LEAVING
            self.evictions.append(idle.adapter_id)

    def plan(self) -> StepPlan:
        facts = self.facts
        late = np.flatnonzero(self.waits_for_logits)
        keeps, given_up = self.victims.settle(self.kv.free_pages)
        plan = StepPlan(
            now_s=self.now_s,
            expired=tuple(self.expired),
            aborted=tuple(self.aborted),
            preemptions=tuple(self.preemptions),
            keeps=keeps,
            # Who holds a block holds its parents: no idle one goes on behind those.
            prefix_evictions=(*self.blocks.evicted, *given_up),
            evictions=tuple(self.evictions),
            hits=tuple(self.hits),
            loads=tuple(self.loads.values()),
            # The sort is stable: rows of one adapter stay in the order they were planned.
            runs=tuple(sorted(self.runs.values(), key=lambda run: facts[run.row].adapter_id)),
            first_without_logits=int(self.line.rows[late[0]]) if len(late) else None,
            newest_first=self.newest_first,
        )
        if self.cold is None:
            return plan
        ways = self.cold.ways_of([facts[run.row].adapter_id for run in plan.runs])
        starts = tuple(self.cold.starts)
        return replace(plan, ways=ways, starts=starts, wake_s=self.cold.wake_s)
