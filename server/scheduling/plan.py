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

from .draft import NOBODY, PlanDraft, Row, Where, gather
from .records import PoolView, Request, StepLimits, StepPlan
from .state import SchedulerState


def plan_step(state: SchedulerState, view: PoolView, limits: StepLimits, now_s: float) -> StepPlan:
    """One step. Decoding rows come first, then prompts under way, then the line in its order."""
    draft = PlanDraft(state, view, limits, now_s, _expire(state, now_s))
    barrier = _find_barrier(draft)
    if _keep_running(draft, barrier):
        _admit_waiting(draft, barrier)
    return draft.plan()


def never_fits(
    request: Request, num_pages: int, tokens_per_page: int, max_model_len: int
) -> str | None:
    """Why this request could not run even alone in an empty pool; None: it could."""
    num_prompt, num_new = len(request.prompt_ids), request.max_new_tokens
    if num_prompt + num_new > max_model_len:
        return (
            f"{num_prompt} prompt tokens + max_new_tokens {num_new} = {num_prompt + num_new}, "
            f"the model's context holds {max_model_len}"
        )
    kv_pages = -(-(num_prompt + num_new) // tokens_per_page)
    if kv_pages + request.adapter_pages > num_pages:
        return (
            f"{num_prompt} prompt tokens + max_new_tokens {num_new} take {kv_pages} pages of "
            f"{tokens_per_page} tokens, the adapter takes {request.adapter_pages}: "
            f"{kv_pages + request.adapter_pages} pages, the pool has {num_pages}"
        )
    return None


def _expire(state: SchedulerState, now_s: float) -> list[int]:
    return np.flatnonzero(state.deadline_s <= now_s).tolist()  # inf for all that are not open


def _find_barrier(draft: PlanDraft) -> int | None:
    """Position of the oldest waiting row that has been passed for too long.

    One whose adapter is on its way does not bar the door: its pages are there already, and
    nobody's waiting makes the link faster. Nor does one whose turn for a step's prompt logits is
    still to come: those before it take them, however empty the pool is. Nor, in a line turned
    round, one that had no token: to be passed is its lot.
    """
    passed = draft.state.overtaken_s[draft.waiting] <= draft.now_s - draft.limits.max_bypass_s
    passed &= draft.where[draft.waiting_adapters] != Where.LOADING
    passed &= ~draft.waits_for_logits
    if draft.newest_first:
        passed &= draft.state.has_begun(draft.waiting)
    return int(passed.argmax()) if passed.any() else None


def _keep_running(draft: PlanDraft, barrier: int | None) -> bool:
    """Lets running rows go on; False: there was too little room, so nobody else may come in."""
    ahead = {row: fact.num_known - fact.start for row, fact in draft.facts.items()}
    decoding = [row for row, num_tokens in ahead.items() if num_tokens == 1]
    prompts = [row for row, num_tokens in ahead.items() if num_tokens > 1]
    enough = True
    for row in (*decoding, *prompts):
        if draft.tokens_left == 0:
            break
        if row not in draft.preemptions:
            enough &= _go_on(draft, row, barrier)
    return enough and not draft.preemptions


def _go_on(draft: PlanDraft, row: int, barrier: int | None) -> bool:
    """Runs the row on as many tokens as budget and pages allow; False: on none."""
    if draft.most_tokens(row) < 1:
        return True  # not for want of room: older prompts that are told fill the step's logits
    state = draft.state
    position, yields = NOBODY, False
    if barrier is not None and state.age(row) > state.age(int(draft.waiting[barrier])):
        position, yields = barrier, True
    while (num_tokens := _fitting_tokens(draft, row, position)) < 1:
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
    if missing <= draft.free_pages:
        return wanted
    room = fact.num_pages + draft.reachable_pages(missing, position)
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
    if not len(draft.waiting):
        return
    state = draft.state
    running = [state.request(row) for row in draft.running]
    reserve = sum(draft.promised_pages(row) for row in draft.running)
    end = len(draft.waiting) if barrier is None else barrier + 1
    ready, cold = _candidates(draft, reserve, end)
    newcomers = gather(state, draft.waiting[sorted(ready + cold)])
    draft.facts |= newcomers
    to_load = set(cold)
    for position, fact in zip(sorted(ready + cold), newcomers.values(), strict=True):
        if position in to_load:
            _plan_adapter(draft, fact, position, reserve)
            continue
        needed = draft.pages_for(fact.num_known) + reserve
        evicted = fact.adapter_id in draft.evictions
        num_tokens = 0 if draft.is_full else draft.most_tokens(fact.row)
        if num_tokens < 1 or evicted or not draft.can_take(needed, position):
            continue
        request = state.request(fact.row)
        if state.policy.admits(request, running, draft.now_s):
            draft.running.append(fact.row)
            draft.run(fact.row, num_tokens, position)
            running.append(request)
            reserve += draft.promised_pages(fact.row)


def _candidates(draft: PlanDraft, reserve: int, end: int) -> tuple[list[int], list[int]]:
    """Positions before `end` that fit as things stand: those ready to run, those to load for.

    A newcomer needs room for all it knows, beyond what is promised to those that run, so
    that being let in is not the first step to being preempted. Everyone who fits is found,
    however many misfits stand before: the test is one pass over the columns. Few enough come
    back to be walked one by one.
    """
    state, limits = draft.state, draft.limits
    rows, adapters = draft.waiting[:end], draft.waiting_adapters[:end]
    kept = draft.kept_pages()  # idle, but for someone this far in front
    room = draft.free_pages + draft.idle_pages - reserve - kept.cumsum()[:end]
    room -= -(-state.num_known[rows] // draft.view.tokens_per_page)
    place = draft.where[adapters]
    ready = np.flatnonzero((place == Where.RESIDENT) & (room >= 0))
    ready = draft.those_with_logits(ready)
    absent = (place == Where.ABSENT) & (room >= state.adapter_pages[rows])
    absent = np.flatnonzero(absent & ~draft.waits_for_logits[:end])
    # Adapters are fetched ahead only for those who could be next in.
    if len(ready) > limits.max_running:
        ready = ready[: limits.max_running]
        absent = absent[absent < ready[-1]]
    cold = draft.firsts_of_adapters(absent)[: max(limits.max_loads - draft.num_loading, 0)]
    return [] if draft.is_full else ready.tolist(), cold.tolist()


def _plan_adapter(draft: PlanDraft, fact: Row, position: int, reserve: int) -> None:
    """Starts the load if adapter and request have room beside what is promised."""
    needed = fact.adapter_pages + draft.pages_for(fact.num_known) + reserve
    has_slot = draft.free_slots > 0 or draft.can_evict(position)
    if has_slot and draft.can_take(needed, position):
        draft.load(fact.adapter_id, fact.adapter_pages, position)
