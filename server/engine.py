"""The engine: one loop that turns commands into tokens.

`_plain_step` is the whole of it: drain -> land -> plan_step -> pool.apply -> residency.apply ->
runner.run -> commit -> publish. `_overlapped_step` is the same verbs with a step on its way while
the next one is planned, and says the same. Owns the open requests' life from door to last word;
knows no model's name, no policy's reasons, no gRPC and no Prometheus. Driven by
engine_process.py over a pipe, and by tests over a queue.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..adapters.errors import AdapterRefused
from ..adapters.image import ImageLayout
from ..adapters.key import AdapterKey
from .assembly import step_rows
from .clock import Clock
from .errors import DeadlineExceeded, Draining, InternalError, Overloaded
from .execution.batch import StepResult, StepRow
from .execution.flight import Flight
from .intake import Gate, as_request, refusal
from .memory.link_records import Link
from .memory.pool import KvOwner, Pool
from .memory.residency import Arrived, Broken, Residency
from .overlap import Airspace, Launched, is_over_at_once, must_land_first
from .scheduling.commit import Awaited, advance, awaits, commit, settle
from .scheduling.plan import plan_step
from .scheduling.records import BASE_ID, Ending, Outcome, Request, StepLimits, StepPlan
from .scheduling.state import SchedulerState
from .scheduling.timings import timings
from .seam import (
    AskStats,
    Cancel,
    Command,
    EngineEnd,
    EngineStats,
    Event,
    Finish,
    Forget,
    Progress,
    PromptLogprobs,
    Reject,
    Released,
    Report,
    Shutdown,
    StatsAnswer,
    Stop,
    Submit,
)
from .stats import Counters, HostTierView, engine_stats

# How long an engine that waits for a load may sleep: the link wakes it, this is the net below.
LOAD_NET_S = 0.5
# An audit reads every page's owner; an idle engine does it no more often than this.
AUDIT_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What executes a step; the real one is execution/runner.py."""

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None: ...

    def detach(self, slot: int) -> None: ...

    def run(self, rows: Sequence[StepRow]) -> StepResult: ...

    def launch(self, rows: Sequence[StepRow]) -> Flight: ...


class HostTier(HostTierView, Protocol):
    def forget(self, key: AdapterKey) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The rooms an engine joins."""

    end: EngineEnd
    state: SchedulerState
    pool: Pool
    residency: Residency
    link: Link
    host_tier: HostTier
    runner: Runner
    limits: StepLimits
    gate: Gate
    clock: Clock
    audits: bool = False  # check the pool's books after every step, not only when idle
    overlaps: bool = False  # plan a step while the one before it runs


class Engine:
    def __init__(self, parts: EngineParts) -> None:
        self._end, self._state, self._pool = parts.end, parts.state, parts.pool
        self._residency, self._link, self._host_tier = parts.residency, parts.link, parts.host_tier
        self._runner, self._limits, self._gate = parts.runner, parts.limits, parts.gate
        self._clock, self._audits = parts.clock, parts.audits
        self._overlaps, self._airspace = parts.overlaps, Airspace()
        self.counters = Counters()
        self.stopping = False
        self._audited_s = -math.inf  # instant of the last audit
        self._events: list[Event] = []  # of the step under way

    def run(self) -> None:
        """Until told to shut down, or until the front end is gone."""
        patience_s = 0.0
        try:
            while not self.stopping:
                patience_s = self.step(patience_s)
        except (EOFError, BrokenPipeError):
            _log.info("the front end is gone")
        finally:
            self._link.close()

    def step(self, patience_s: float = 0.0) -> float:
        """One turn; returns how long the next may sleep when no command comes."""
        self._drain(patience_s)
        now_s = self._clock.now_s()
        self._land(now_s)
        patience_s = self._overlapped_step(now_s) if self._overlaps else self._plain_step(now_s)
        self._audit(now_s, idle=patience_s > 0)
        return patience_s

    def _plain_step(self, now_s: float) -> float:
        """Plans a step, and is back when its tokens are out."""
        plan = self._plan(now_s)
        awaited = awaits(self._state, plan)
        rows = self._apply(plan, awaited)
        result = self._runner.run(rows) if rows else StepResult({})
        outcomes = commit(
            self._state,
            plan,
            result.tokens,
            self._clock.now_s(),
            broken=result.not_finite,
            awaited=awaited,
        )
        self._count(awaited)
        self._tell(result)
        self._publish(outcomes, result)
        return self._patience_s(plan)

    def _overlapped_step(self, now_s: float) -> float:
        """Plans and launches a step while the one before it runs, then waits for that one."""
        plan, has_landed = self._plan(now_s), False
        if must_land_first(plan, self._state, self._airspace):
            has_landed = self._await_steps(0)
            # What the link has brought meanwhile is polled for at the next turn: until then it is
            # on its way, for this plan as for the one before.
            plan = self._plan(self._clock.now_s())
        awaited = awaits(self._state, plan)
        rows = self._apply(plan, awaited)
        if rows:
            self._airspace.append(Launched(self._runner.launch(rows), awaited))
        self._publish(advance(self._state, plan, awaited), StepResult({}))
        stays_up = bool(rows) and not is_over_at_once(awaited, self._state)
        has_landed |= self._await_steps(1 if stays_up else 0)
        return 0.0 if has_landed else self._patience_s(plan)

    def _await_steps(self, num_stay_up: int) -> bool:
        """Whether one landed: it may have freed what the next plan needs."""
        has_landed = len(self._airspace) > num_stay_up
        while len(self._airspace) > num_stay_up:
            self._await_step()
        return has_landed

    def _await_step(self) -> None:
        """The oldest step on its way lands: its tokens go out, and who left is let go of."""
        launched = self._airspace[0]
        result = launched.flight.wait()
        self._airspace.popleft()
        self._count(launched.awaited)
        outcomes = settle(
            self._state,
            launched.awaited,
            result.tokens,
            self._clock.now_s(),
            broken=result.not_finite,
        )
        self._tell(result)
        for row in self._airspace.released(self._state):
            self._let_go(row)
        self._publish(outcomes, result)

    def _plan(self, now_s: float) -> StepPlan:
        view = self._residency.view(self._gate.tokens_per_page)
        return plan_step(self._state, view, self._limits, now_s)

    def _apply(self, plan: StepPlan, awaited: Awaited) -> list[StepRow]:
        self._pool.apply(plan)
        self._residency.apply(plan)
        self._detach_departed()
        self.counters.preemptions += len(plan.preemptions)
        self.counters.adapter_evictions += len(plan.evictions)
        return step_rows(plan, awaited, self._state, self._pool, self._residency)

    # Commands

    def _drain(self, patience_s: float) -> None:
        for command in self._end.receive(patience_s):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Submit():
                self._submit(command)
            case Cancel(request_id=request_id):
                row = self._state.row_of(request_id)
                if row is not None:  # else a cancel has crossed the last token
                    self.counters.requests_cancelled += 1
                    self._leave(row)
            case Stop(request_id=request_id):
                row = self._state.row_of(request_id)
                if row is not None:
                    self._end_request(row, Ending.STOP)
            case Forget(key=key):
                self._residency.doom(key)
                self._detach_departed()
            case AskStats(query_id=query_id, pages=pages):
                self._events.append(StatsAnswer(query_id, self.stats(pages=pages)))
            case Shutdown():
                self._shut_down()

    def _submit(self, submit: Submit) -> None:
        if self.stopping:
            self._reject(submit.request_id, Draining("the server is stopping"))
            return
        now_s = self._clock.now_s()
        card = submit.adapter
        adapter_id = self._residency.intern(card) if card else BASE_ID
        request = as_request(submit, adapter_id, now_s)
        error = refusal(request, card, self._gate)
        if error is not None:
            self._reject(submit.request_id, error)
            return
        resident = card is None or self._residency.is_resident(adapter_id)
        try:
            self._state.add(request, now_s, resident=resident)
        except Overloaded as full:
            self._reject(submit.request_id, full)
            return
        if card is not None:
            self._residency.use(adapter_id)

    def _shut_down(self) -> None:
        self.stopping = True
        for row in self._state.rows():
            self._reject(self._state.request(row).request_id, Draining("the server is stopping"))
            self._leave(row)

    # Adapters

    def _land(self, now_s: float) -> None:
        """Takes in what the link has brought since the last step."""
        news = self._residency.drain(self._link.poll(), now_s)
        self._detach_departed()
        for item in news:
            match item:
                case Arrived(adapter_id=adapter_id, slot=slot, pages=pages, layout=layout):
                    try:
                        self._runner.attach(slot, layout, pages)
                    except ValueError as error:  # a bug, and still one adapter's alone
                        self._residency.expel(adapter_id)
                        self._give_up_adapter(adapter_id, InternalError(str(error)))
                        continue
                    self.counters.adapter_loads += 1
                    self._state.adapter_arrived(adapter_id, now_s)
                case Broken(adapter_id=adapter_id, error=error):
                    self._give_up_adapter(adapter_id, error)

    def _give_up_adapter(self, adapter_id: int, error: Exception) -> None:
        _log.warning("an adapter could not be loaded: %s", error)
        for row in self._state.rows_of_adapter(adapter_id):
            self._reject(self._state.request(row).request_id, error)
            self._leave(row)

    def _detach_departed(self) -> None:
        for gone in self._residency.take_departed():
            if gone.slot >= 0:
                self._runner.detach(gone.slot)
            if gone.released:
                self._host_tier.forget(gone.key)
                self._events.append(Released(gone.key))

    # Requests

    def _tell(self, result: StepResult) -> None:
        for told in result.told:
            if told.row in self._state.leaving:
                continue
            request_id = self._state.request(told.row).request_id
            self._events.append(PromptLogprobs(request_id, told.first_position, told.logprobs))

    def _publish(self, outcomes: tuple[Outcome, ...], result: StepResult) -> None:
        for outcome in outcomes:
            if outcome.token is not None:
                wanted = outcome.row in result.logprobs
                logprobs = (result.logprobs[outcome.row],) if wanted else ()
                self._events.append(Progress(outcome.request_id, (outcome.token,), logprobs))
            if outcome.ending is not None:
                self._end_request(outcome.row, outcome.ending)
        self._detach_departed()
        if self._events:
            self._end.send(Report(tuple(self._events)))
            self._events = []

    def _end_request(self, row: int, ending: Ending) -> None:
        request = self._state.request(row)
        num_new = len(self._state.known_ids[row]) - len(request.prompt_ids)
        if ending is Ending.EXPIRED:
            self._reject(
                request.request_id,
                DeadlineExceeded(
                    f"the deadline passed {request.deadline_s - request.arrival_s:.3f} s after the "
                    f"request came, with {num_new} of {request.max_new_tokens} tokens made",
                    field="deadline",
                ),
            )
        elif ending is Ending.BROKEN:
            self._reject(request.request_id, self._not_finite(request))
        else:
            self.counters.requests_finished += 1
            self._events.append(
                Finish(
                    request.request_id,
                    ending.value,
                    len(request.prompt_ids),
                    num_new,
                    timings(self._state, row),
                )
            )
        self._leave(row)

    def _not_finite(self, request: Request) -> Exception:
        if request.adapter_id == BASE_ID:
            return InternalError("the base model's logits are not finite")
        name = self._residency.key_of(request.adapter_id).name
        return AdapterRefused(
            f"adapter {name!r} gives logits that are not finite in this server's dtype",
            field="adapter",
        )

    def _reject(self, request_id: int, error: Exception) -> None:
        self.counters.requests_failed += 1
        self._events.append(Reject(request_id, error))

    def _leave(self, row: int) -> None:
        """The request is over, whatever became of it; what a step on its way uses stays so long."""
        if self._airspace.uses(row):
            self._state.retire(row)
        else:
            self._let_go(row)

    def _let_go(self, row: int) -> None:
        """Pages, adapter and row go together."""
        adapter_id = self._state.request(row).adapter_id
        self._pool.release(KvOwner(row))
        self._state.drop(row)
        if adapter_id != BASE_ID:
            self._residency.leave(adapter_id, self._clock.now_s())

    # Bookkeeping

    def _audit(self, now_s: float, *, idle: bool) -> None:
        """The pool's books, when nobody waits for the step; at every step when debugging."""
        if self._audits or (idle and now_s - self._audited_s >= AUDIT_EVERY_S):
            self._pool.audit()
            self._audited_s = now_s

    def _count(self, awaited: Awaited) -> None:
        """Before the step's endings: what it computed for those who had left counts for nothing."""
        leaving = self._state.leaving
        self.counters.steps += len(awaited.runs) > 0
        num_tokens = sum(count for row, _, count, _ in awaited.runs.tolist() if row not in leaving)
        num_decode = len(awaited.decoded - leaving)
        self.counters.tokens_decode += num_decode
        self.counters.tokens_prefill += num_tokens - num_decode

    def _patience_s(self, plan: StepPlan) -> float:
        """0 while there is work; else until a command, a load or the next deadline."""
        if plan.runs or plan.loads or plan.preemptions or plan.expired:
            return 0.0
        if not self._state.num_waiting and not self._state.num_running:
            return math.inf
        # Everyone waits: for a load, or for pages that a load holds.
        return min(LOAD_NET_S, max(0.0, self._state.next_deadline_s() - self._clock.now_s()))

    def stats(self, *, pages: bool) -> EngineStats:
        return engine_stats(
            self.counters, self._state, self._pool, self._residency, self._host_tier, pages=pages
        )
