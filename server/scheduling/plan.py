"""The planner: which rows run in the next step, on how many tokens, and what must make room.

`plan_step` is pure: no clock, log, randomness or mutation; the same table and view give the
same plan. Rules are here, bookkeeping in draft.py, order in the policy's key. Called by the
engine; its plan is applied by pool and residency, run, and committed.

Why every request comes to its end (README.md has the longer form):
1. The oldest running row always gets on: it may evict every idle adapter and preempt everyone
   newer. So running rows finish, and without newcomers the pool drains.
2. A waiting row that newer ones have passed for `max_bypass_s` bars the door to them; then 1
   empties the pool for it, and `never_fits` has seen to it that it fits an empty pool.
3. Whoever stands in the way of an older row at the barred door and cannot grow gives way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .draft import PlanDraft, Where
from .facts import Row, gather
from .line import NOBODY
from .prefetch import fetch_ahead
from .records import PoolView, StepLimits, StepPlan
from .starts import Start
from .state import SchedulerState


def plan_step(state: SchedulerState, view: PoolView, limits: StepLimits, now_s: float) -> StepPlan:
    """One step. Decoding rows come first, then prompts under way, then the line in its order."""
    draft = PlanDraft(state, view, limits, now_s, _expire(state, now_s))
    barrier = _find_barrier(draft)
    if _keep_running(draft, barrier, _find_paused(draft)):
        _admit_waiting(draft, barrier)
        fetch_ahead(draft)
    return draft.plan()


def _expire(state: SchedulerState, now_s: float) -> list[int]:
    return np.flatnonzero(state.deadline_s <= now_s).tolist()  # inf for all that are not open


def _find_barrier(draft: PlanDraft) -> int | None:
    """Position of the oldest waiting row that has been passed for too long.

    One whose adapter is on its way does not bar the door: its pages are there already, and
    nobody's waiting makes the link faster. Nor does one whose turn for a step's prompt logits is
    still to come: those before it take them, however empty the pool is. Nor, in a line turned
    round, one that had no token: to be passed is its lot. Nor one that its tenant's cap holds back:
    that is no business of other tenants.
    """
    passed = _passed(draft)
    if draft.tenants is not None:
        passed &= ~_held_back(draft)
    return int(passed.argmax()) if passed.any() else None


def _passed(draft: PlanDraft) -> NDArray[np.bool_]:
    """By position: who was passed for too long, and is wronged by it."""
    rows = draft.line.rows
    passed = draft.state.overtaken_s[rows] <= draft.now_s - draft.limits.max_bypass_s
    passed &= draft.where[draft.line.adapters] != Where.LOADING
    passed &= ~draft.waits_for_logits
    if draft.newest_first:
        passed &= draft.state.has_begun(rows)
    return passed


def _held_back(draft: PlanDraft) -> NDArray[np.bool_]:
    """By position: whose tenant's cap has no room for it, found pages or not."""
    assert draft.tenants is not None
    return draft.tenants.are_held_back(draft.line.rows, _known_pages(draft, draft.line.rows))


def _known_pages(draft: PlanDraft, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-draft.state.num_known[rows] // draft.view.tokens_per_page)


def _find_paused(draft: PlanDraft) -> set[int]:
    """Running rows that are not in this step because their adapter is on its way. They keep their
    pages and their place, and nobody makes room for them.
    """
    cold, facts = draft.cold, list(draft.facts.values())
    if cold is None or not draft.loading:
        return set()
    loading = [fact for fact in facts if draft.where[fact.adapter_id] == Where.LOADING]
    with_others = len(loading) < len(facts)
    cold.take_places(len(loading))
    return {fact.row for fact in loading if not cold.goes_on(fact, with_others=with_others)}


def _keep_running(draft: PlanDraft, barrier: int | None, paused: set[int]) -> bool:
    """Lets running rows go on; False: there was too little room, so nobody else may come in."""
    ahead = {row: fact.num_known - fact.start for row, fact in draft.facts.items()}
    decoding = [row for row, num_tokens in ahead.items() if num_tokens == 1]
    prompts = [row for row, num_tokens in ahead.items() if num_tokens > 1]
    enough = True
    for row in (*decoding, *prompts):
        if draft.tokens_left == 0:
            break
        if row not in draft.preemptions and row not in paused:
            enough &= _go_on(draft, row, barrier)
    return enough and not draft.preemptions


def _go_on(draft: PlanDraft, row: int, barrier: int | None) -> bool:
    """Runs the row on as many tokens as budget and pages allow; False: on none."""
    if draft.most_tokens(row) < 1:
        return True  # not for want of room: older prompts that are told fill the step's logits
    state = draft.state
    position, yields = NOBODY, False
    if barrier is not None and state.age(row) > state.age(int(draft.line.rows[barrier])):
        position, yields = barrier, True
    while (num_tokens := _fitting_tokens(draft, row, position)) < 1:
        if draft.reclaim():
            continue
        victim = _pick_victim(draft, row, yields=yields)
        if victim is None:
            return False
        draft.preempt(victim)
        if victim == row:
            return False
    draft.run(row, num_tokens, position)
    return True


def _fitting_tokens(draft: PlanDraft, row: int, position: int) -> int:
    """A shorter chunk is better than a preemption: 0 only if not one more token has room."""
    fact = draft.facts[row]
    wanted = draft.most_tokens(row)
    missing = draft.pages_for(fact.start + wanted) - fact.num_pages
    if missing <= draft.kv.free_pages:
        return wanted
    room = fact.num_pages + draft.kv.reachable(missing, position)
    return min(wanted, room * draft.view.tokens_per_page - fact.start)


def _pick_victim(draft: PlanDraft, row: int, *, yields: bool) -> int | None:
    """The newest running row, never one older than the row that needs room.

    When the row is itself the newest it keeps its pages and waits for older ones to finish,
    unless it `yields` to an older one at the barred door.
    """
    newest = draft.running[-1]
    return newest if newest != row or yields else None


def _admit_waiting(draft: PlanDraft, barrier: int | None) -> None:
    """Walks the line in its order: a row whose adapter is there runs, else its adapter loads."""
    if not len(draft.line):
        return
    state = draft.state
    running = [state.request(row) for row in draft.running]
    reserve = draft.reserve()
    end = len(draft.line) if barrier is None else barrier + 1
    ready, cold = _candidates(draft, reserve, end)
    newcomers = gather(state, draft.line.rows[sorted(ready + cold)])
    not_here = set(cold)
    if draft.cold is not None and not_here:
        draft.cold.meet(draft.facts.values(), draft.runs)
    for position, newcomer in zip(sorted(ready + cold), newcomers.values(), strict=True):
        fact, num_idle = draft.behind_hits(newcomer)
        start = _choose_start(draft, fact) if position in not_here else None
        if position in not_here and start is None:
            _plan_adapter(draft, fact, position, reserve, num_idle)
            continue
        request = state.request(fact.row)
        if not _can_enter(draft, fact, position, reserve=reserve, num_idle=num_idle) or not (
            state.policy.admits(request, running, draft.now_s)
        ):
            if start is not None:
                _plan_adapter(draft, fact, position, reserve, num_idle)
            continue
        if start is not None:
            _begin_cold(draft, fact, start, position)
        draft.enter(fact, num_idle)
        num_tokens = draft.most_tokens(fact.row)
        draft.run(fact.row, num_tokens, position)
        if draft.cold is not None:
            draft.cold.enter(fact, num_tokens)
        running.append(request)
        reserve += draft.promised_pages(fact.row)


def _choose_start(draft: PlanDraft, fact: Row) -> Start | None:
    """How a row begins whose adapter is not in the pool; None: not in this step."""
    if draft.cold is None or draft.cold.is_full or draft.is_full:
        return None
    start = draft.cold.choose(fact, draft.tokens_left)
    if draft.cold.may_begin(fact, start):
        return start
    draft.cold.wait(fact, start)
    return None


def _begin_cold(draft: PlanDraft, fact: Row, start: Start, position: int) -> None:
    """Its load is ordered in the same breath, if nobody did."""
    assert draft.cold is not None
    draft.cold.begin(fact, start)
    if draft.where[fact.adapter_id] == Where.ABSENT:
        _load(draft, fact, position, awaited=False)


def _can_enter(draft: PlanDraft, fact: Row, position: int, *, reserve: int, num_idle: int) -> bool:
    draft.facts[fact.row] = fact
    if draft.is_full or draft.most_tokens(fact.row) < 1:
        return False
    place = int(draft.where[fact.adapter_id])
    if place == Where.LEAVING:
        return False  # evicted by this plan
    missing = draft.pages_for(fact.num_known) - fact.num_pages
    if draft.tenants is not None and not draft.tenants.can_hold(fact, missing + num_idle):
        return False
    if place == Where.ABSENT:
        return draft.can_load(fact, position, missing + reserve)
    return draft.can_take(draft.kv, missing + reserve, position)


def _candidates(draft: PlanDraft, reserve: int, end: int) -> tuple[list[int], list[int]]:
    """Positions before `end` that fit as things stand: those ready to run, those to load for.

    A newcomer needs room for all it knows and does not find cached, beyond what is promised to
    those that run, so that being let in is not the first step to being preempted. Everyone who
    fits is found, however many misfits stand before: the test is one pass over the columns. It
    errs on the side of fitting (who needs which cached page is asked of those who are walked), and
    few enough come back to be walked one by one.
    """
    state, limits, line = draft.state, draft.limits, draft.line
    rows, adapters = line.rows[:end], line.adapters[:end]
    kept = draft.kept_adapter_pages[:end]  # idle, but for someone this far in front
    room = draft.kv.free_pages + draft.kv.order.num_pages - reserve
    room = room + line.hits[:end] - _known_pages(draft, rows)
    adapter_room = draft.adapters.free_pages + draft.adapters.order.num_pages - kept
    if draft.adapters is draft.kv:
        room = room - kept
        adapter_room = room
    can_come = (room >= 0) & ~_closed_by_caps(draft)[:end]
    place = draft.where[adapters]
    ready = np.flatnonzero((place == Where.RESIDENT) & can_come)
    ready = line.those_with_logits(ready, draft.tells_left)
    can_come = can_come & ~draft.waits_for_logits[:end]
    absent = (place == Where.ABSENT) & can_come & (adapter_room >= state.adapter_pages[rows])
    absent = np.flatnonzero(absent)
    # Adapters are fetched ahead only for those who could be next in.
    if len(ready) > limits.max_running:
        ready = ready[: limits.max_running]
        absent = absent[absent < ready[-1]]
    most = max(limits.max_loads - draft.num_loading, 0)
    if draft.cold is not None and draft.cold.helps:  # who begins at once counts as a place alone
        most += limits.max_running
    cold = line.firsts_of_adapters(absent)[:most]
    if draft.cold is not None:
        coming = np.flatnonzero((place == Where.LOADING) & can_come)[: limits.max_running]
        cold = np.union1d(cold, coming)
    return [] if draft.is_full else ready.tolist(), cold.tolist()


def _closed_by_caps(draft: PlanDraft) -> NDArray[np.bool_]:
    """By position: who cannot come in for its tenant's cap, or stands behind one of its tenant
    whom newer ones have passed for too long while the cap held it back.
    """
    line, tenants = draft.line, draft.tenants
    if tenants is None:
        return np.zeros(len(line), np.bool_)
    missing = np.maximum(_known_pages(draft, line.rows) - line.hits, 0)
    barring = _passed(draft) & _held_back(draft)
    return tenants.are_held_back(line.rows, missing) | tenants.behind_doors(line.rows, barring)


def _plan_adapter(draft: PlanDraft, fact: Row, position: int, reserve: int, num_idle: int) -> None:
    """Starts the load if adapter and request have room beside what is promised."""
    is_ordered = int(draft.where[fact.adapter_id]) != Where.ABSENT
    if is_ordered or draft.num_loading >= draft.limits.max_loads:
        return
    missing = draft.pages_for(fact.num_known) - fact.num_pages
    if draft.tenants is not None and not draft.tenants.can_hold(fact, missing + num_idle):
        return
    if draft.can_load(fact, position, missing + reserve):
        _load(draft, fact, position, awaited=True)


def _load(draft: PlanDraft, fact: Row, position: int, *, awaited: bool) -> None:
    draft.load(fact.adapter_id, fact.adapter_pages, position, awaited=awaited)
    draft.where[fact.adapter_id] = Where.LOADING
    if draft.tenants is not None:
        draft.tenants.hold(fact, 0)
    if draft.cold is not None:
        draft.cold.queue(fact)
