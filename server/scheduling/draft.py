"""A plan in the making: what is left of the step's budgets, and what is decided so far.

Owns the bookkeeping (pages, tokens, slots, which adapters are idle) so that plan.py holds only
rules. Reads the table and the view, never writes them. Lives for one call of `plan_step`.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import BASE_ID, PlannedLoad, PlannedRun, PoolView, StepLimits, StepPlan
from .state import SchedulerState

NOBODY = -1  # a position in the line before everyone: may evict any idle adapter


class Where(IntEnum):
    """An adapter's place, as this plan sees it."""

    ABSENT = 0
    LOADING = 1
    RESIDENT = 2
    LEAVING = 3  # evicted by this plan: neither usable nor loadable until the next


class Idle(NamedTuple):
    """A resident adapter that nobody ran on when the plan began.

    In a sorted list the last one is the first to go.
    """

    position: int  # of the first waiting row that names it; the line's length: nobody does
    unused_since: float  # -last_used_s
    adapter_id: int
    num_pages: int


class Row(NamedTuple):
    """One row's columns as plain integers: reading them one by one from numpy costs more."""

    row: int
    start: int  # tokens computed
    num_known: int
    num_final: int
    num_pages: int
    adapter_id: int
    adapter_pages: int
    num_to_tell: int
    num_told: int

    def num_tells(self, num_tokens: int) -> int:
        """Places of the prompt that a run of so many tokens tells."""
        end = min(self.start + num_tokens, self.num_to_tell)
        return max(end - max(self.start, self.num_told), 0)


def gather(state: SchedulerState, rows: NDArray[np.int64] | list[int]) -> dict[int, Row]:
    """The facts of these rows, in their order."""
    index = np.asarray(rows, np.int64)
    columns = (
        index,
        state.num_computed[index],
        state.num_known[index],
        state.num_final[index],
        state.num_pages[index],
        state.adapter_id[index],
        state.adapter_pages[index],
        state.num_to_tell[index],
        state.num_told[index],
    )
    facts = map(Row._make, zip(*(column.tolist() for column in columns), strict=True))
    return {fact.row: fact for fact in facts}


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
        self.waiting = self._in_order()  # whoever comes first stands first
        self.waiting_adapters = state.adapter_id[self.waiting]
        self.waits_for_logits = self._find_logit_waits()  # by position

        self.free_pages = view.num_free + sum(int(state.num_pages[row]) for row in expired)
        self.free_slots = view.num_free_slots
        self.tokens_left = limits.max_step_tokens
        self.tells_left = limits.max_prompt_logits
        self.num_loading = sum(not adapter.resident for adapter in view.adapters.values())
        self.runs: dict[int, PlannedRun] = {}
        self.preemptions: list[int] = []
        self.evictions: list[int] = []
        self.loads: dict[int, PlannedLoad] = {}

        # A launched step may still read the weights of rows that will not run again.
        holding = [row for row in state.holding_rows().tolist() if row not in gone]
        self.in_use = set(state.adapter_id[holding].tolist())
        # Both are indexed by adapter_id; the base's -1 is their last element.
        size = max([-1, *view.adapters, int(self.waiting_adapters.max(initial=-1))]) + 2
        self.where = self._places(size)
        self.first = self._first_positions(size)
        in_use = self.in_use
        self.idle_pages = sum(
            [
                seen.num_pages
                for adapter_id, seen in view.adapters.items()
                if seen.resident and adapter_id not in in_use
            ]
        )

    @cached_property
    def idle(self) -> list[Idle]:
        """Sorted for who asks whether one may go: most plans find room without."""
        first = self.first.tolist()
        return sorted(
            [
                Idle(first[adapter_id], -seen.last_used_s, adapter_id, seen.num_pages)
                for adapter_id, seen in self.view.adapters.items()
                if seen.resident and adapter_id not in self.in_use
            ]
        )

    def kept_pages(self) -> NDArray[np.int64]:
        """By position in the line: pages of the idle adapter that is first named there."""
        kept = np.zeros(len(self.waiting) + 1, np.int64)
        for adapter_id in set(self.waiting_adapters.tolist()) - self.in_use - {BASE_ID}:
            if self.where[adapter_id] == Where.RESIDENT:  # else this plan may have evicted it
                kept[self.first[adapter_id]] = self.view.adapters[adapter_id].num_pages
        return kept

    def _in_order(self) -> NDArray[np.int64]:
        """Those in the line who are not to go, in the policy's order."""
        state = self.state
        rows = state.line.rows()
        if self.expired:
            rows = rows[state.deadline_s[rows] > self.now_s]
        if self.aborted:
            rows = rows[~np.isin(rows, self.aborted)]
        if self.newest_first:
            begun = state.has_begun(rows)
            rows = np.concatenate([rows[begun], rows[~begun][::-1]])
        return rows

    def _find_logit_waits(self) -> NDArray[np.bool_]:
        """Who could not begin with its prompt in this step, whatever room there were.

        Logits go to running rows, then along the line: whoever comes once they are gone waits.
        """
        state = self.state
        untold = state.num_to_tell[self.waiting] - state.num_told[self.waiting]
        before = untold.cumsum() - untold
        before += int((state.num_to_tell[self.running] - state.num_told[self.running]).sum())
        return state.is_untold(self.waiting) & (before >= self.limits.max_prompt_logits)

    def those_with_logits(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these positions, in their order, those whose prompt gets logits if all get in."""
        rows = self.waiting[positions]
        untold = self.state.num_to_tell[rows] - self.state.num_told[rows]
        before = untold.cumsum() - untold
        return positions[~self.state.is_untold(rows) | (before < self.tells_left)]

    def _places(self, size: int) -> NDArray[np.int8]:
        where = np.full(size, Where.ABSENT, np.int8)
        for adapter_id, seen in self.view.adapters.items():
            where[adapter_id] = Where.RESIDENT if seen.resident else Where.LOADING
        where[BASE_ID] = Where.RESIDENT
        return where

    def _first_positions(self, size: int) -> NDArray[np.int64]:
        """Of each adapter, where in the line its first row stands."""
        length = len(self.waiting)
        first = np.full(size, length, np.int64)
        # Of repeated indices the last one is kept: backwards, that is the first in line.
        first[self.waiting_adapters[::-1]] = np.arange(length - 1, -1, -1)
        return first

    def firsts_of_adapters(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these positions, in their order, the first of each adapter."""
        adapters = self.waiting_adapters[positions]
        first = np.zeros(len(self.first), np.int64)
        first[adapters[::-1]] = positions[::-1]
        return positions[first[adapters] == positions]

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

    def promised_pages(self, row: int) -> int:
        """Kept back from newcomers: room for all a running row knows, and its next page."""
        fact, run = self.facts[row], self.runs.get(row)
        held = fact.num_pages + (run.num_new_pages if run else 0)
        wanted = self.pages_for(fact.num_known) + 1
        return max(min(wanted, self.pages_for(fact.num_final)) - held, 0)

    def can_take(self, num_pages: int, position: int) -> bool:
        return num_pages <= self.reachable_pages(num_pages, position)

    def reachable_pages(self, enough: int, position: int) -> int:
        """Pages free, or to be had from idle adapters first needed by someone behind `position`.

        Stops counting at `enough`.
        """
        pages = self.free_pages
        if position == NOBODY:
            return pages + self.idle_pages
        if pages >= enough:
            return pages
        for idle in reversed(self.idle):
            if pages >= enough or idle.position <= position:
                break
            pages += idle.num_pages
        return pages

    def take_pages(self, num_pages: int, position: int) -> None:
        """Ask `can_take` first."""
        while self.free_pages < num_pages:
            self.evict(position)
        self.free_pages -= num_pages

    def can_evict(self, position: int) -> bool:
        return bool(self.idle) and self.idle[-1].position > position

    def evict(self, position: int) -> None:
        """The idle adapter that nobody needs, least recently used first; ask `can_evict` first."""
        if not self.can_evict(position):
            raise IndexError(f"no idle adapter may go for position {position}")
        idle = self.idle.pop()
        self.idle_pages -= idle.num_pages
        self.free_pages += idle.num_pages
        self.free_slots += 1
        self.where[idle.adapter_id] = Where.LEAVING
        self.evictions.append(idle.adapter_id)

    def run(self, row: int, num_tokens: int, position: int) -> None:
        """Ask `can_take` for its pages first."""
        fact = self.facts[row]
        new_pages = self.pages_for(fact.start + num_tokens) - fact.num_pages
        self.take_pages(new_pages, position)
        self.tokens_left -= num_tokens
        self.tells_left -= fact.num_tells(num_tokens)
        self.runs[row] = PlannedRun(row, fact.start, num_tokens, new_pages)

    def preempt(self, row: int) -> None:
        """A running row gives everything back, also what this plan has given it.

        Its adapter stays until the next plan, when it counts as idle.
        """
        self.running.remove(row)
        self.preemptions.append(row)
        self.free_pages += self.facts[row].num_pages
        run = self.runs.pop(row, None)
        if run is not None:
            self.free_pages += run.num_new_pages
            self.tokens_left += run.num_tokens
            self.tells_left += self.facts[row].num_tells(run.num_tokens)

    def load(self, adapter_id: int, num_pages: int, position: int) -> None:
        """Ask `can_take` for its pages, and for a slot, first."""
        if self.free_slots == 0:
            self.evict(position)
        self.take_pages(num_pages, position)
        self.free_slots -= 1
        self.num_loading += 1
        self.loads[adapter_id] = PlannedLoad(adapter_id, num_pages)

    def plan(self) -> StepPlan:
        facts = self.facts
        late = np.flatnonzero(self.waits_for_logits)
        return StepPlan(
            now_s=self.now_s,
            expired=tuple(self.expired),
            aborted=tuple(self.aborted),
            preemptions=tuple(self.preemptions),
            evictions=tuple(self.evictions),
            loads=tuple(self.loads.values()),
            # The sort is stable: rows of one adapter stay in the order they were planned.
            runs=tuple(sorted(self.runs.values(), key=lambda run: facts[run.row].adapter_id)),
            first_without_logits=int(self.waiting[late[0]]) if len(late) else None,
            newest_first=self.newest_first,
        )
