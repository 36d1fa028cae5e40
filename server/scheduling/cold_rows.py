"""One plan's book of cold rows: how each starts, and who of those that run pauses for its load.

Owns what is known of loads (each is asked for once), what was chosen, the ways of the plan, and
the instant at which time alone would change it. Foretelling is cold_start.py's; knows no pages and
no budgets. Made by draft.py where some other way than waiting is allowed; used by plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .cold_start import Prompt, choose_start
from .crowd import Chunk, Crowd
from .facts import Row
from .records import PlannedRun, PlannedStart, PoolView, StepLimits
from .starts import OnItsWay, Start, Way
from .state import SchedulerState

# Of a row's bound per token: so often it has one while its load is long and others run, who are
# held up by every helped step.
PACE = 0.5
# Of the places of those who run: so many may be of rows whose adapter is on its way. Such a row may
# keep its place for as long as the link's whole queue; the others are for those who need no load.
SHARE = 0.75
ONLY_WAIT = frozenset({Way.WAIT})


def cold_rows(
    state: SchedulerState, view: PoolView, limits: StepLimits, now_s: float
) -> ColdRows | None:
    """None: everyone waits for its adapter."""
    if view.prices.ways == ONLY_WAIT:
        return None
    return ColdRows(state, view, limits, now_s)


class ColdRows:
    def __init__(
        self, state: SchedulerState, view: PoolView, limits: StepLimits, now_s: float
    ) -> None:
        self._state, self._view, self._now_s = state, view, now_s
        self._chunk_tokens = limits.max_step_tokens
        self._crowd = Crowd(view.prices, limits.max_step_tokens)
        self._coming: dict[int, OnItsWay] = {}  # by adapter_id
        self._queued_s = 0.0  # what the loads of this plan will take of the link
        self._ways: dict[int, Way] = {}  # by adapter_id
        self._places_left = max(int(SHARE * limits.max_running), 1)
        self.helps = Way.ASSIST in view.prices.ways
        self.starts: list[PlannedStart] = []
        self.wake_s = math.inf  # instant from which another plan would be made; inf: none

    # Those who wait

    def meet(self, facts: Iterable[Row], runs: Mapping[int, PlannedRun]) -> None:
        """Those who run, before anyone is let in: newcomers begin beside and behind them. `runs`:
        what this plan has of them.
        """
        for fact in facts:
            run = runs.get(fact.row)
            self._join(fact, run.num_tokens if run else 0)

    def enter(self, fact: Row, num_tokens: int) -> None:
        """A newcomer is in this step, on so many tokens."""
        self._join(fact, num_tokens)

    def _join(self, fact: Row, num_tokens: int) -> None:
        num_left = fact.num_known - fact.start - num_tokens
        num_bytes = int(self._state.adapter_bytes[fact.row])
        is_helped = num_tokens > 0 and self._ways.get(fact.adapter_id) is Way.ASSIST
        calls_share = self._coming[fact.adapter_id].calls_share if is_helped else 0.0
        if is_helped:  # rows of one adapter have their hand-overs together
            coming = self._coming[fact.adapter_id]
            self._coming[fact.adapter_id] = replace(coming, calls_share=0.0)
        self._crowd.take(Chunk(fact.start, num_tokens, num_left, num_bytes, is_helped, calls_share))

    @property
    def is_full(self) -> bool:
        """One more would leave too few places to those whose adapter is in the pool."""
        return self._places_left <= 0

    def choose(self, fact: Row, num_tokens: int) -> Start:
        """For a newcomer behind what it finds cached, whose adapter is not in the pool; this step
        has so many tokens left.
        """
        num_bytes = int(self._state.adapter_bytes[fact.row])
        prompt = Prompt(fact.start, fact.num_known, self._chunk_tokens, num_bytes)
        coming = self._of(fact.adapter_id, num_bytes)
        prices = self._view.prices
        beside = self._crowd.beside(num_tokens)
        return choose_start(prompt, coming, prices, self._now_s, beside=beside)

    def may_begin(self, fact: Row, start: Start) -> bool:
        """Whether the row could be in this step, room aside."""
        is_open = self._coming[fact.adapter_id].is_open
        return start.way > Way.WAIT and is_open and start.start_s <= self._now_s

    def begin(self, fact: Row, start: Start) -> None:
        self._places_left -= 1
        self.starts.append(PlannedStart(fact.row, start))
        self._go(fact.adapter_id, start.way)

    def wait(self, fact: Row, start: Start) -> None:
        """It is not in this step; chosen anew in the next one. Who follows stands behind it."""
        self._join(fact, 0)
        self.starts.append(PlannedStart(fact.row, start))
        # Of one that is not open yet the link will tell.
        if start.way > Way.WAIT and self._coming[fact.adapter_id].is_open:
            self._look_again(start.start_s)

    def queue(self, fact: Row) -> None:
        """Its adapter's load is in this plan: those that follow stand behind it."""
        num_bytes = int(self._state.adapter_bytes[fact.row])
        self._queued_s += self._view.prices.steps.load_time_s(num_bytes)

    # Those who run

    def take_places(self, num_rows: int) -> None:
        """So many run, or pause, while their adapter is on its way."""
        self._places_left -= num_rows

    def goes_on(self, fact: Row, *, with_others: bool) -> bool:
        """Whether a running row whose adapter is on its way is in this step; else it pauses.

        With helpers alone: who was in a step without them has waited there for its last layer.
        A pause is no loss while the load ends sooner than the next token is due, and an end it has:
        every load ends or fails.
        """
        state, row = self._state, fact.row
        coming = self._of(fact.adapter_id, int(state.adapter_bytes[row]))
        if not (self.helps and coming.is_open and coming.can_help):
            return False
        if fact.num_known - fact.start == 1 and fact.num_known > state.num_prompt[row]:
            again_s = self._next_token_s(row, coming, with_others=with_others)
            if again_s > self._now_s:
                self._look_again(again_s)
                return False
        self._go(fact.adapter_id, Way.ASSIST)
        return True

    def _next_token_s(self, row: int, coming: OnItsWay, *, with_others: bool) -> float:
        """Instant at which a row that has had a token may have its next one, or is asked again."""
        tpot_s = self._state.request(row).tpot_s
        if coming.landed_s - self._now_s < tpot_s:
            return self._now_s + tpot_s
        return float(self._state.last_token_s[row]) + PACE * tpot_s if with_others else -math.inf

    def _go(self, adapter_id: int, way: Way) -> None:
        """Rows of one adapter go one way; what has landed is not helped with in any case."""
        self._ways[adapter_id] = max(way, self._ways.get(adapter_id, way))

    def ways_of(self, adapter_ids: list[int]) -> dict[int, Way]:
        """Of those among them that are on their way; one that ran may have been preempted."""
        return {i: self._ways[i] for i in dict.fromkeys(adapter_ids) if i in self._ways}

    def _of(self, adapter_id: int, num_bytes: int) -> OnItsWay:
        coming = self._coming.get(adapter_id)
        if coming is None:
            coming = self._view.cold.on_its_way(adapter_id, num_bytes, self._now_s)
            if adapter_id not in self._view.adapters:
                later_s = self._queued_s
                coming = replace(
                    coming,
                    landed_s=coming.landed_s + later_s,
                    begun_s=coming.begun_s + later_s,
                )
            self._coming[adapter_id] = coming
        return coming

    def _look_again(self, instant_s: float) -> None:
        if instant_s > self._now_s:
            self.wake_s = min(self.wake_s, instant_s)
