"""The engine: one loop that turns commands into tokens.

`_plain_step` is the whole of it: drain -> land -> plan_step -> pool.apply -> residency.apply ->
runner.run -> commit -> publish. `_overlapped_step` is the same verbs with a step on its way while
the next one is planned, and says the same. What requests live through is in lives.py, what
becomes of adapters in adapter_news.py. Knows no model's name, no policy's reasons, no gRPC and no
Prometheus. Driven by engine_process.py over a pipe, and by tests over a queue.
"""

from __future__ import annotations

import logging
import math

from .adapter_news import AdapterNews
from .assembly import step_rows, without_shut
from .engine_parts import EngineParts
from .errors import Draining
from .execution.batch import StepResult, StepRow
from .execution.flight import Landed
from .lives import Lives
from .outbox import Outbox
from .overlap import Airspace, Launched, is_over_at_once, must_land_first
from .reuse import Reuse
from .scheduling.commit import Awaited, advance, awaits, commit, settle
from .scheduling.plan import plan_step
from .scheduling.records import Outcome, StepPlan
from .seam import (
    AskResidency,
    AskStats,
    Cancel,
    Command,
    EngineStats,
    Forget,
    Prefetch,
    Shutdown,
    StatsAnswer,
    Stop,
    Submit,
)
from .stats import Counters, engine_stats

# How long an engine that waits for a load may sleep: the link wakes it, this is the net below.
LOAD_NET_S = 0.5
# An audit reads every page's owner; an idle engine does it no more often than this.
AUDIT_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class Engine:
    def __init__(self, parts: EngineParts) -> None:
        self._end, self._state, self._pool = parts.end, parts.state, parts.pool
        self._residency, self._link, self._host_tier = parts.residency, parts.link, parts.host_tier
        self._runner, self._limits, self._gate = parts.runner, parts.limits, parts.gate
        self._clock, self._audits, self._overlaps = parts.clock, parts.audits, parts.overlaps
        self._meter, self._prefixes = parts.meter, parts.prefixes
        self.cold = parts.cold
        self.counters = Counters()
        self.stopping = False
        self._audited_s = -math.inf  # instant of the last audit
        self._airspace, self._outbox = Airspace(), Outbox(parts.end)
        self._reuse = Reuse(parts)
        self._lives = Lives(
            parts,
            airspace=self._airspace,
            counters=self.counters,
            outbox=self._outbox,
            reuse=self._reuse,
        )
        self._news = AdapterNews(
            parts,
            lives=self._lives,
            counters=self.counters,
            outbox=self._outbox,
            reuse=self._reuse,
        )

    def run(self) -> None:
        """Until told to shut down, or until the front end is gone."""
        patience_s = 0.0
        try:
            while not self.stopping:
                patience_s = self.step(patience_s)
        except (EOFError, BrokenPipeError):
            _log.info("the front end is gone")
        finally:
            self._end_loads()

    def step(self, patience_s: float = 0.0) -> float:
        """One turn; returns how long the next may sleep when no command comes."""
        self._drain(patience_s)
        now_s = self._clock.now_s()
        self._news.take_in(now_s)
        patience_s = self._overlapped_step(now_s) if self._overlaps else self._plain_step(now_s)
        self._audit(now_s, idle=patience_s > 0)
        return patience_s

    def _plain_step(self, now_s: float) -> float:
        """Plans a step, and is back when its tokens are out."""
        plan = self._plan(now_s)
        awaited = awaits(self._state, plan)
        rows, left_out = self._apply(plan, awaited)
        result = self._runner.run(rows) if rows else StepResult({})
        lost = (*result.lost, *left_out)
        outcomes = commit(
            self._state,
            plan,
            result.tokens,
            self._clock.now_s(),
            broken=result.not_finite,
            lost=lost,
            awaited=awaited,
        )
        self._reuse.reopen(plan)
        self._count(awaited, lost)
        self._take_back(result, left_out)
        self._lives.tell(result)
        self._reuse.landed(awaited, outcomes, result)
        self._publish(outcomes, result)
        self._meter.landed(self._clock.now_s())
        if result.num_errands:
            self.cold.helped(result.num_errands, result.helped_s)
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
        rows, left_out = self._apply(plan, awaited)
        if rows or left_out:
            flight = self._runner.launch(rows) if rows else Landed(StepResult({}))
            self._airspace.append(Launched(flight, awaited, left_out))
        ended = advance(self._state, plan, awaited)
        self._reuse.reopen(plan)
        self._publish(ended, StepResult({}))
        stays_up = bool(rows) and not is_over_at_once(plan, awaited, self._state)
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
        lost = (*result.lost, *launched.left_out)
        self._count(launched.awaited, lost)
        outcomes = settle(
            self._state,
            launched.awaited,
            result.tokens,
            self._clock.now_s(),
            broken=result.not_finite,
            lost=lost,
        )
        self._take_back(result, launched.left_out)
        self._lives.tell(result)
        self._reuse.landed(launched.awaited, outcomes, result)
        self._lives.let_go_of_released()
        self._publish(outcomes, result)
        self._meter.landed(self._clock.now_s())
        if result.num_errands:
            self.cold.helped(result.num_errands, result.helped_s)

    def _plan(self, now_s: float) -> StepPlan:
        prices = self.cold.prices()
        view = self._residency.view(self._gate.tokens_per_page, self._prefixes, prices)
        return plan_step(self._state, view, self._limits, now_s)

    def _apply(self, plan: StepPlan, awaited: Awaited) -> tuple[list[StepRow], tuple[int, ...]]:
        """The step's rows, and whom it has to leave out."""
        self._prefixes.apply(plan)
        self._pool.apply(plan)
        applied = self._residency.apply(plan)
        self._news.detach_departed()
        self._news.open(applied.openings)
        self._news.look_ahead()
        self.counters.preemptions += len(plan.preemptions)
        self.counters.adapter_evictions += len(plan.evictions)
        self._meter.takes_off(awaited, self._state, plan.now_s, is_cold=bool(plan.ways))
        rows = step_rows(plan, awaited, self._state, self._pool, self._residency)
        return without_shut(rows, self._news.is_open)

    def _take_back(self, result: StepResult, left_out: tuple[int, ...]) -> None:
        """Whose part of the step is void waits again; where helpers or a layer came too late, they
        are not asked again for that load.
        """
        for row in result.lost:
            self._residency.no_help(self._state.request(row).adapter_id)
        if result.lost or left_out:
            self._lives.take_back((*result.lost, *left_out), self._clock.now_s())

    def _publish(self, outcomes: tuple[Outcome, ...], result: StepResult) -> None:
        self._lives.hear(outcomes, result)
        self._news.detach_departed()
        self._outbox.send()

    def _drain(self, patience_s: float) -> None:
        for command in self._end.receive(patience_s):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Submit(request_id=request_id):
                if self.stopping:
                    self._lives.reject(request_id, _draining())
                else:
                    self._lives.submit(command)
            case Cancel(request_id=request_id):
                self._lives.cancel(request_id)
            case Stop(request_id=request_id):
                self._lives.stop(request_id)
            case Forget(key=key):
                self._news.forget(key)
            case Prefetch():
                self._news.prefetch(command, self._clock.now_s())
            case AskResidency(query_id=query_id, keys=keys):
                self._news.tell_residency(query_id, keys)
            case AskStats(query_id=query_id, pages=pages):
                self._outbox.put(StatsAnswer(query_id, self.stats(pages=pages)))
            case Shutdown():
                self.stopping = True
                self._lives.end_all(_draining())

    def _end_loads(self) -> None:
        """Whoever reads an image lets go of it before the link ends."""
        self._news.close()
        if self.cold.helpers is not None:
            self.cold.helpers.stop()
        self._link.close()

    # Bookkeeping

    def _audit(self, now_s: float, *, idle: bool) -> None:
        """The pool's books, when nobody waits for the step; at every step when debugging."""
        if self._audits or (idle and now_s - self._audited_s >= AUDIT_EVERY_S):
            self._pool.audit()
            self._prefixes.audit()
            self._audited_s = now_s

    def _count(self, awaited: Awaited, lost: tuple[int, ...]) -> None:
        """Before the step's endings: what it computed for those who had left, or were lost, counts
        for nothing.
        """
        void = self._state.leaving.union(lost)
        self.counters.steps += len(awaited.runs) > 0
        num_tokens = sum(count for row, _, count, _ in awaited.runs.tolist() if row not in void)
        num_decode = len(awaited.decoded - void)
        self.counters.tokens_decode += num_decode
        self.counters.tokens_prefill += num_tokens - num_decode

    def _patience_s(self, plan: StepPlan) -> float:
        """0 while there is work; else until a command, a load, a deadline, or a policy's."""
        if plan.runs or plan.loads or plan.preemptions or plan.expired or plan.aborted:
            return 0.0
        if not self._state.num_waiting and not self._state.num_running:
            return math.inf
        # Everyone waits: for a load, or for pages that a load holds.
        now_s = self._clock.now_s()
        change_s = self._state.policy.next_change_s(self._state, plan.now_s)
        next_s = min(self._state.next_deadline_s(), change_s, plan.wake_s)
        return min(LOAD_NET_S, max(0.0, next_s - now_s))

    def stats(self, *, pages: bool) -> EngineStats:
        return engine_stats(
            self.counters,
            self._state,
            self._pool,
            self._residency,
            self._host_tier,
            helpers=self.cold.helpers,
            prefixes=self._prefixes,
            cost=self._meter.report(),
            pages=pages,
        )


def _draining() -> Draining:
    return Draining("the server is stopping")
