"""Leaping: runs of steps that can only be like each other are done at once.

A turn of the engine's loop is sure to be one more decode step of the same rows when nothing can
happen before it: no arrival, landing, deadline, end of an answer, want of pages, no row at the
barred door, no change of the policy's mind. Then the table, the pool, the counters, the clock and
the stamps are moved on as the turns would have done, number by number in the same order, and the
turns are not taken. Where that is not certain the engine takes its turn. `tests/bench/
test_sim_leap.py` holds leaping against stepping, to the last bit of every stamp.

Two cases are certain. With nobody waiting and no adapter wished for, any table whose running rows
all decode. With a line or wishes, one that the turn before left as it found it but for a decode
step of everyone: whom it did not let in, and whose adapter it did not fetch, the next turn does not
either while the room for newcomers stays what it was. That room shrinks as rows grow, which can
change who is looked at; it may where nobody could be let in or fetched for whatever the room.
Called by replica.py before each turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...server.engine import Engine
from ...server.memory.pool import KvOwner
from ...server.scheduling.prefix_view import NO_PREFIXES
from ...server.scheduling.records import BASE_ID, PoolView, StepPlan
from ...server.scheduling.step_work import StepWork, measure_work
from .parts import SimParts
from .runner import TOKEN, SimFlight
from .stamping import StampBook


@dataclass(frozen=True, slots=True)
class _Marks:
    """What a turn leaves as it was when it did nothing but one more decode step."""

    num_received: int
    num_ended: int
    num_running: int
    num_waiting: int
    num_preemptions: int
    num_evictions: int
    num_loads_started: int
    num_loads_landed: int


class Leaper:
    def __init__(self, parts: SimParts, engine: Engine, book: StampBook) -> None:
        self._parts, self._state, self._pool = parts, parts.state, parts.pool
        self._counters, self._book = engine.counters, book
        self._overlaps = parts.engine.overlaps
        self._tokens_per_page = parts.engine.gate.tokens_per_page
        self._max_bypass_s = parts.engine.limits.max_bypass_s
        self._before: _Marks | None = None  # of the turn that was taken last
        self._planned_s = -math.inf  # when that turn began
        self._steps_before = 0
        self.num_leapt = 0  # steps

    def note_turn(self) -> None:
        """To be called before each turn that is taken."""
        self._before, self._steps_before = self._marks(), self._parts.runner.num_steps

    def note_turn_taken(self, began_s: float) -> None:
        self._planned_s = began_s

    def leap(self, until_s: float) -> bool:
        """Moves on over every turn that begins before `until_s` and is certain; False: none is."""
        state, line = self._state, len(self._state.line)
        rows = np.array(state.running_rows(), np.int64)
        if not self._is_certain(rows, line):
            return False
        # The plan's order: rows of one adapter side by side.
        rows = rows[np.argsort(state.adapter_id[rows], kind="stable")]
        most = self._most_steps(rows)
        if (line and not self._is_shut(rows)) or self._has_wishes():
            most = min(most, self._steps_of_same_room(rows))
        instants_s = (
            self._fly(self._works(rows, most), self._bound_s(until_s, line)) if most else []
        )
        if not instants_s:
            return False
        # Of adapters that the last turn left without users, as the next turn's plan would.
        self._parts.residency.apply(StepPlan())
        self._take_pages(rows, len(instants_s))
        self._move_table(rows, instants_s)
        return True

    # Whether

    def _is_certain(self, rows: NDArray[np.int64], line: int) -> bool:
        state = self._state
        if not len(rows) or state.leaving:
            return False
        if not (state.num_known[rows] - state.num_computed[rows] == 1).all():
            return False
        if self._overlaps and not self._follows_all(rows):
            return False
        if self._publishes(rows):
            return False
        return not (line or self._has_wishes()) or self._nothing_happened(rows)

    def _publishes(self, rows: NDArray[np.int64]) -> bool:
        """Whether a prompt that ends now goes into the prefix cache: other steps tell nothing."""
        if not self._parts.memory.prefix_cache:
            return False
        up_decodes = not self._overlaps or self._parts.runner.last.decodes
        return not up_decodes or bool(np.isnan(self._state.first_token_s[rows]).any())

    def _near(self) -> PoolView:
        """What the planner sees of adapters; of prefixes it sees more."""
        return self._parts.residency.view(self._tokens_per_page, NO_PREFIXES)

    def _has_wishes(self) -> bool:
        """Whether the planner would fetch an adapter for nobody, if it had the room."""
        return bool(self._near().wishes)

    def _follows_all(self, rows: NDArray[np.int64]) -> bool:
        """Whether the step that is up brings each of these rows a token, and nobody else one."""
        flight, last = self._parts.runner.flight, self._parts.runner.last
        return flight is not None and flight.is_up and last.samples and _same(last.rows, rows)

    def _nothing_happened(self, rows: NDArray[np.int64]) -> bool:
        """In the turn that was taken last, but for a decode step of all these rows."""
        runner = self._parts.runner
        return (
            runner.num_steps == self._steps_before + 1
            and runner.last.decodes
            and _same(runner.last.rows, rows)
            and self._marks() == self._before
        )

    def _marks(self) -> _Marks:
        parts, counters = self._parts, self._counters
        return _Marks(
            num_received=parts.end.num_received,
            num_ended=self._book.num_ended,
            num_running=self._state.num_running,
            num_waiting=self._state.num_waiting,
            num_preemptions=counters.preemptions,
            num_evictions=counters.adapter_evictions,
            num_loads_started=parts.link.num_started,
            num_loads_landed=counters.adapter_loads,
        )

    # How far

    def _bound_s(self, until_s: float, line: int) -> float:
        """A turn that begins then, or later, may be another one."""
        parts, state = self._parts, self._state
        bound_s = min(
            until_s,
            parts.end.next_arrival_s(),
            parts.link.next_event_s(),
            state.next_deadline_s(),
        )
        if line:
            overtaken_s = state.overtaken_s[state.line.rows()]
            later_s = overtaken_s[overtaken_s > self._planned_s - self._max_bypass_s]
            barred_s = float(later_s.min(initial=math.inf)) + self._max_bypass_s
            bound_s = min(
                bound_s,
                # The planner adds in another order: a step too few costs nothing.
                barred_s * (1 - 1e-12),
                state.policy.next_change_s(state, self._planned_s),
            )
        return bound_s

    def _most_steps(self, rows: NDArray[np.int64]) -> int:
        """Steps in which nobody ends, and for which there are free pages without anyone's going."""
        state = self._state
        left = int((state.num_final[rows] - state.num_known[rows]).min()) - 1
        held, computed = state.num_pages[rows], state.num_computed[rows]
        free_pages = self._free_for_kv()

        def fits(steps: int) -> bool:
            wanted = -(-(computed + steps) // self._tokens_per_page)
            return int((wanted - held).sum()) <= free_pages

        if left <= 0 or fits(left):
            return max(left, 0)
        low, high = 0, left  # fits, does not fit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _free_for_kv(self) -> int:
        """Without those that are the adapters' alone."""
        share_pages = self._parts.engine.limits.adapter_share_pages
        if share_pages is None:
            return self._pool.num_free
        placed = self._near().adapters
        taken_pages = sum(seen.num_pages for seen in placed.values())
        return self._pool.num_free - max(share_pages - taken_pages, 0)

    def _is_shut(self, rows: NDArray[np.int64]) -> bool:
        """Whether nobody of the line could run and no adapter be fetched, whatever the room."""
        state, engine = self._state, self._parts.engine
        placed = self._near().adapters
        adapters = state.adapter_id[state.line.rows()]
        there = np.array([BASE_ID, *(i for i, seen in placed.items() if seen.resident)])
        num_ready = int(np.isin(adapters, there).sum())
        num_loading = len(placed) + 1 - len(there)
        num_absent = int((~np.isin(adapters, np.array([BASE_ID, *placed]))).sum())
        is_full = len(rows) >= engine.limits.max_running
        return (num_ready == 0 or is_full) and (
            num_absent == 0 or num_loading >= engine.limits.max_loads
        )

    def _steps_of_same_room(self, rows: NDArray[np.int64]) -> int:
        """Until somebody is promised one page more than in the turn before."""
        size, known = self._tokens_per_page, self._state.num_known[rows]
        return int((-(-(known - 1) // size) * size - known).min()) + 1

    def _works(self, rows: NDArray[np.int64], most: int) -> Iterator[StepWork]:
        """Of one step after the other: each row reads one token more than the last time."""
        state = self._state
        work = measure_work(
            state.num_computed[rows],
            np.ones(len(rows), np.int64),
            state.adapter_id[rows],
            state.adapter_bytes[rows],
        )
        for step in range(most):
            yield work._replace(decode_context=work.decode_context + step * len(rows))

    def _fly(self, works: Iterator[StepWork], bound_s: float) -> list[float]:
        """When the tokens of each step come; the clock is at the last of them afterwards."""
        flight = self._parts.runner.flight if self._overlaps else None
        return (
            self._fly_plain(works, bound_s)
            if flight is None
            else self._fly_overlapped(works, bound_s, flight)
        )

    def _fly_plain(self, works: Iterator[StepWork], bound_s: float) -> list[float]:
        clock, instants_s = self._parts.clock, list[float]()
        for work in works:
            if clock.now_s() >= bound_s:
                break
            clock.pass_s(self._parts.cost.step_s(work))
            instants_s.append(clock.now_s())
        return instants_s

    def _fly_overlapped(
        self, works: Iterator[StepWork], bound_s: float, flight: SimFlight
    ) -> list[float]:
        """Each turn launches a step behind the flight that is up, and waits for that one."""
        clock, instants_s = self._parts.clock, list[float]()
        for work in works:
            if clock.now_s() >= bound_s:
                break
            takes_off_s = max(clock.now_s(), flight.landing_s)
            clock.reach(flight.landing_s)
            instants_s.append(clock.now_s())
            flight.landing_s = takes_off_s + self._parts.cost.step_s(work)
        return instants_s

    # What the turns would have done

    def _take_pages(self, rows: NDArray[np.int64], steps: int) -> None:
        """In the order of the steps, and of the rows in each: who has which page is the same."""
        state, size = self._state, self._tokens_per_page
        held, computed = state.num_pages[rows], state.num_computed[rows]
        wanted = -(-(computed + steps) // size)
        crossings: list[tuple[int, int]] = []  # (step, place in the plan)
        for place in np.flatnonzero(wanted > held).tolist():
            first = int(held[place]) * size - int(computed[place])
            pages = int(wanted[place] - held[place])
            crossings += [(first + page * size, place) for page in range(pages)]
        for _, place in sorted(crossings):
            self._pool.lease(KvOwner(int(rows[place])), 1)
        state.num_pages[rows] = wanted

    def _move_table(self, rows: NDArray[np.int64], instants_s: list[float]) -> None:
        state, steps = self._state, len(instants_s)
        state.num_computed[rows] += steps
        state.num_known[rows] += steps
        first_s = state.first_token_s[rows]
        state.first_token_s[rows] = np.where(np.isnan(first_s), instants_s[0], first_s)
        state.last_token_s[rows] = instants_s[-1]
        tokens, indices = [TOKEN] * steps, list[int]()
        for row in rows.tolist():
            state.known_ids[row].extend(tokens)
            indices.append(state.request(row).request_id)
        self._book.hear_decodes(indices, instants_s)
        self._counters.steps += steps
        self._counters.tokens_decode += steps * len(rows)
        self.num_leapt += steps


def _same(rows: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
    return len(rows) == len(others) and bool((np.sort(rows) == np.sort(others)).all())
