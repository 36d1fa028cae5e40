"""The arithmetic of refusal: what could not run even alone in an empty pool.

Pure; asked at the door (server/intake.py), so that the planner never meets a request it would try
for ever.
"""

from __future__ import annotations

from .records import Request


def never_fits(
    request: Request,
    num_pages: int,
    tokens_per_page: int,
    max_model_len: int,
    *,
    adapter_share_pages: int | None = None,
    max_tenant_pages: int | None = None,
) -> str | None:
    """Why this request could not run even alone in an empty pool; None: it could."""
    num_prompt, num_new = len(request.prompt_ids), request.max_new_tokens
    if num_prompt + num_new > max_model_len:
        return (
            f"{num_prompt} prompt tokens + max_new_tokens {num_new} = {num_prompt + num_new}, "
            f"the model's context holds {max_model_len}"
        )
    kv_pages, adapter_pages = -(-(num_prompt + num_new) // tokens_per_page), request.adapter_pages
    tokens = (
        f"{num_prompt} prompt tokens + max_new_tokens {num_new} take {kv_pages} pages of "
        f"{tokens_per_page} tokens"
    )
    both = f"{tokens}, the adapter takes {adapter_pages}: {kv_pages + adapter_pages} pages"
    if kv_pages + adapter_pages > num_pages:
        return f"{both}, the pool has {num_pages}"
    if max_tenant_pages is not None and kv_pages + adapter_pages > max_tenant_pages:
        return f"{both}, --tenant-share leaves each tenant {max_tenant_pages} of {num_pages}"
    if adapter_share_pages is None:
        return None
    if adapter_pages > adapter_share_pages:
        return (
            f"the adapter takes {adapter_pages} pages, --adapter-share leaves adapters "
            f"{adapter_share_pages} of {num_pages}"
        )
    if kv_pages > num_pages - adapter_share_pages:
        return f"{tokens}, --adapter-share leaves KV {num_pages - adapter_share_pages}"
    return None
