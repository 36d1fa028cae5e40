"""What happens to a request at the engine's door, before the planner sees it.

Turns a `Submit` into the scheduler's `Request` (durations become instants of this process's
clock) and refuses what could never run, however long it waited. Pure; called by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.errors import AdapterTooLarge
from ..adapters.key import AdapterCard
from .errors import RequestTooLarge
from .scheduling.fitting import never_fits
from .scheduling.records import BASE_ID, Request
from .seam import Submit


@dataclass(frozen=True, slots=True)
class Gate:
    """What a request is measured against."""

    num_pages: int
    tokens_per_page: int
    max_model_len: int  # tokens
    max_rank: int  # what the kernels' buffers of a step are made for
    adapter_share_pages: int | None = None  # that adapters have to themselves; None: no such wall
    max_tenant_pages: int | None = None  # that one tenant may hold; None: all

    @property
    def max_adapter_pages(self) -> int:
        """No adapter of more pages could ever be in the pool."""
        limits = (self.num_pages, self.adapter_share_pages, self.max_tenant_pages)
        return min(limit for limit in limits if limit is not None)


def as_request(submit: Submit, adapter_id: int, now_s: float) -> Request:
    card = submit.adapter
    return Request(
        request_id=submit.request_id,
        tenant=submit.tenant,
        adapter_id=adapter_id if card else BASE_ID,
        adapter_pages=card.num_pages if card else 0,
        adapter_bytes=card.weight_bytes if card else 0,
        prompt_ids=submit.prompt_ids,
        max_new_tokens=submit.max_new_tokens,
        sampling=submit.sampling,
        stop_ids=submit.stop_ids,
        ttft_s=submit.ttft_s,
        tpot_s=submit.tpot_s,
        arrival_s=now_s,
        deadline_s=now_s + submit.timeout_s,
    )


def refusal(request: Request, card: AdapterCard | None, gate: Gate) -> Exception | None:
    """Why the request could never run here; None: it could."""
    unfit = card and unfit_adapter(card, gate)
    if unfit is not None:
        return unfit
    reason = never_fits(
        request,
        num_pages=gate.num_pages,
        tokens_per_page=gate.tokens_per_page,
        max_model_len=gate.max_model_len,
        adapter_share_pages=gate.adapter_share_pages,
        max_tenant_pages=gate.max_tenant_pages,
    )
    return RequestTooLarge(reason, field="max_new_tokens") if reason else None


def unfit_adapter(card: AdapterCard, gate: Gate) -> Exception | None:
    """Why no request could run on it here, not for its tokens; None: one might."""
    if card.max_rank <= gate.max_rank:
        return None
    return AdapterTooLarge(
        f"adapter {card.key.name!r} has rank {card.max_rank}; this server was started with "
        f"--max-rank {gate.max_rank}",
        field="adapter",
        value=card.max_rank,
        limit=gate.max_rank,
        unit="ranks",
    )
