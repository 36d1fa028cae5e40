"""Loads that nobody waits for: when the link has nothing to do, the adapter most worth having.

Only into free pages, or over what nobody in the line needs and is worth less; never into what is
promised to those who run, nor what the first who waits still lacks. One at a time, so that a
request that comes meanwhile waits for one load at most. Called by plan.py, last of all.
"""

from __future__ import annotations

from .draft import PlanDraft, Where
from .records import Wish


def fetch_ahead(draft: PlanDraft) -> None:
    if not draft.view.wishes or draft.loading or draft.loads or draft.limits.max_loads < 1:
        return
    missing = draft.where[draft.line.adapters] != Where.RESIDENT
    if missing.any():
        return  # the link is theirs, as soon as there is room
    reserve = draft.reserve() + _lacked_by_the_first(draft)
    for wish in draft.view.wishes:
        if _can_fetch(draft, wish, reserve):
            draft.fetch(wish)
            return


def _lacked_by_the_first(draft: PlanDraft) -> int:
    """Pages for the first who is left in the line."""
    for row in draft.line.rows.tolist():
        if row not in draft.runs:
            return draft.pages_for(int(draft.state.num_known[row]))
    return 0


def _can_fetch(draft: PlanDraft, wish: Wish, reserve: int) -> bool:
    room = draft.adapters
    if wish.adapter_id in draft.evictions or wish.adapter_id in draft.view.adapters:
        return False
    if draft.tenants is not None and not draft.tenants.can_keep(wish.tenant, wish.num_pages):
        return False
    over = room is draft.kv and room.free_pages + room.order.num_pages < wish.num_pages + reserve
    if over:
        return False
    if not draft.free_slots and not draft.has_slot_worth_less(wish.worth):
        return False
    lacking = wish.num_pages - room.free_pages
    return room.order.worth_less(wish.worth, lacking) >= lacking
