"""Builders of the scheduling tests: requests, a table of them, views and limits."""

from __future__ import annotations

import math

from lorry.server.scheduling.policies import FCFS, Policy
from lorry.server.scheduling.prefix_view import NO_PREFIXES, PrefixView
from lorry.server.scheduling.records import (
    AdapterView,
    PoolView,
    Request,
    StepLimits,
    Wish,
)
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.state import SchedulerState


def make_request(
    request_id: int = 0,
    *,
    num_prompt: int = 4,
    max_new: int = 4,
    adapter_id: int = -1,
    adapter_pages: int = 0,
    adapter_bytes: int = 0,
    arrival_s: float = 0.0,
    deadline_s: float = math.inf,
    stop_ids: frozenset[int] = frozenset(),
    tenant: str = "default",
    prompt_logprobs: int = -1,
    ttft_s: float = 2.0,
    prompt_ids: tuple[int, ...] | None = None,
) -> Request:
    return Request(
        request_id=request_id,
        tenant=tenant,
        adapter_id=adapter_id,
        adapter_pages=adapter_pages,
        adapter_bytes=adapter_bytes,
        prompt_ids=prompt_ids or tuple(range(num_prompt)),
        max_new_tokens=max_new,
        sampling=SamplingParams(seed=request_id, prompt_logprobs=prompt_logprobs),
        stop_ids=stop_ids,
        ttft_s=ttft_s,
        tpot_s=0.2,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
    )


def make_state(
    *requests: Request, max_running: int = 8, max_waiting: int = 64, policy: Policy = FCFS
) -> SchedulerState:
    state = SchedulerState(max_running, max_waiting, policy=policy)
    for request in requests:
        state.add(request, request.arrival_s, resident=request.adapter_id == -1)
    return state


def enter(state: SchedulerState, row: int, *, computed: int, pages: int, extra: int = 0) -> None:
    """As if the row had run: `extra` answer tokens known."""
    state.enter(row, 0.0, cached_tokens=computed, cached_pages=pages)
    state.known_ids[row] += [50] * extra
    state.num_known[row] += extra


def make_view(
    *,
    num_pages: int = 64,
    num_free: int | None = None,
    tokens_per_page: int = 4,
    num_free_slots: int = 8,
    adapters: dict[int, AdapterView] | None = None,
    prefixes: PrefixView = NO_PREFIXES,
    wishes: tuple[Wish, ...] = (),
) -> PoolView:
    held = sum(adapter.num_pages for adapter in (adapters or {}).values())
    free = num_pages - held if num_free is None else num_free
    return PoolView(
        num_pages, free, tokens_per_page, num_free_slots, adapters or {}, prefixes, wishes
    )


def make_limits(
    *,
    max_running: int = 8,
    max_step_tokens: int = 32,
    max_bypass_s: float = 5.0,
    max_loads: int = 2,
    max_prompt_logits: int = 256,
    adapter_share_pages: int | None = None,
    max_tenant_pages: int | None = None,
) -> StepLimits:
    return StepLimits(
        max_running,
        max_step_tokens,
        max_bypass_s,
        max_loads,
        max_prompt_logits,
        adapter_share_pages,
        max_tenant_pages,
    )


def resident(
    num_pages: int = 4,
    *,
    last_used_s: float = 0.0,
    worth: float | None = None,
    pinned: bool = False,
    tenant: str = "default",
) -> AdapterView:
    """Without a worth of its own it goes by its last use, as under `lru`."""
    return AdapterView(
        num_pages,
        resident=True,
        last_used_s=last_used_s,
        worth=last_used_s if worth is None else worth,
        pinned=pinned,
        tenant=tenant,
    )


def loading(num_pages: int = 4) -> AdapterView:
    return AdapterView(num_pages, resident=False, last_used_s=0.0)
