"""For tests of attention: a step over a poisoned pool, and what plain attention makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from lorry.kernels.attention import (
    AttentionBackend,
    AttentionOptions,
    AttentionRoom,
    AttentionWork,
    choose_backend,
    clear_fresh,
    paged_attention,
    view_kv,
    write_kv,
)
from lorry.tests.kernels_builders import make_work

if TYPE_CHECKING:
    from lorry.kernels.attention.triton_backend import TritonBackend

Z, K, LAYERS = 16, 8, 2
# (tokens before this step, tokens of this step) of each request
CASES = {
    "one-token": ([0], [1]),
    "decode": ([40, 3, 15, 16, 17], [1, 1, 1, 1, 1]),
    "short-prefill": ([0, 0, 0], [10, 3, 16]),
    "chunks": ([19, 0, 33], [23, 17, 7]),
    "long-prefill": ([5], [600]),
    "mixed": ([40, 0, 7, 100, 16], [1, 37, 1, 20, 9]),
}
OPTIONS = {
    "plain": AttentionOptions(scaling=0.35),
    "window": AttentionOptions(scaling=0.35, sliding_window=11),
    "softcap": AttentionOptions(scaling=1.0, softcap=2.0),
    "sinks": AttentionOptions(scaling=0.35, sinks_H=torch.tensor([0.5, -1.0, 2.0, 1.0])),
    "all": AttentionOptions(0.5, 9, 3.0, torch.tensor([0.5, -1.0, 2.0, 1.0])),
}
CPU = torch.device("cpu")


class Step:
    """A step over a poisoned pool in which every earlier token has been stored.

    `cleared`: as a server leaves it where the backend `needs_clear`: every token was once new, and
    its page was cleared then. Otherwise every cell that holds no token is NaN.
    """

    def __init__(
        self,
        case: str | tuple[list[int], list[int]],
        heads: int,
        kv_heads: int,
        *,
        head_dim: int = K,
        tokens_per_page: int = Z,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        cleared: bool = True,
    ) -> None:
        starts, lens = CASES[case] if isinstance(case, str) else case
        generator = torch.Generator().manual_seed(1)
        totals = [start + n for start, n in zip(starts, lens, strict=True)]

        def random(count: int, num_heads: int) -> torch.Tensor:
            values = torch.randn(count, num_heads, head_dim, generator=generator)
            return values.to(device, dtype)

        self.heads, self.dtype, self.device = heads, dtype, device
        self.q = [random(n, heads) for n in lens]
        self.k = [random(n, kv_heads) for n in totals]
        self.v = [random(n, kv_heads) for n in totals]
        work, num_pages = make_work(starts, lens, tokens_per_page)
        history, _ = make_work([0] * len(starts), totals, tokens_per_page)
        self.work, history = on_device(work, device), on_device(history, device)
        page_elements = LAYERS * 2 * kv_heads * tokens_per_page * head_dim
        self.kv = view_kv(
            torch.full((num_pages + 2, page_elements), torch.nan, dtype=dtype, device=device),
            num_layers=LAYERS,
            num_kv_heads=kv_heads,
            tokens_per_page=tokens_per_page,
            head_dim=head_dim,
        )
        if cleared:
            clear_fresh(self.kv, history)
        keys, values = torch.cat(self.k), torch.cat(self.v)
        reference = choose_backend("reference")
        write_kv(keys, values, self.kv, history, layer=1, backend=reference)

    def run(
        self,
        options: AttentionOptions,
        backend: AttentionBackend,
        *,
        work: AttentionWork | None = None,
        query_THK: torch.Tensor | None = None,
        fixed: bool = False,
    ) -> torch.Tensor:
        """The step, or another over the same pages."""
        work = self.work if work is None else work
        query_THK = torch.cat(self.q) if query_THK is None else query_THK
        backend.prepare(work, fixed=fixed)
        return paged_attention(query_THK, self.kv, work, layer=1, options=options, backend=backend)

    def expected(self, options: AttentionOptions) -> torch.Tensor:
        """torch's own attention in fp64, or written out where it lacks the option."""
        per_request = zip(self.q, self.k, self.v, strict=True)
        return torch.cat([_expected(*(x.double() for x in qkv), options) for qkv in per_request])

    def room(self, **changes: int) -> AttentionRoom:
        """Just enough for this step."""
        _, _, _, kv_heads, tokens_per_page, head_dim = self.kv.shape
        room = AttentionRoom(
            max_rows=self.work.num_tokens,
            max_requests=len(self.work.query_lens),
            max_pages=self.work.block_table_BM.shape[1],
            num_heads=self.heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            tokens_per_page=tokens_per_page,
            dtype=self.dtype,
            device=self.device,
        )
        return replace(room, **changes)

    def alone(self, request: int) -> tuple[AttentionWork, slice]:
        """The step of one of the requests by itself, and its rows in the whole."""
        work, lens = self.work, self.work.query_lens
        first = sum(lens[:request])
        rows = slice(first, first + lens[request])
        own = replace(
            work,
            query_lens=lens[request : request + 1],
            context_lens=work.context_lens[request : request + 1],
            block_table_BM=work.block_table_BM[request : request + 1],
            page_T=work.page_T[rows],
            offset_T=work.offset_T[rows],
            position_T=work.position_T[rows],
        )
        return own, rows


def triton_backend(step: Step, **room: int) -> TritonBackend:
    """Made for this step, in memory that shows where a kernel reads what no step has put there:
    partial results are NaN, pages and cells one that is NaN, and an item more is NaN in row 1."""
    from lorry.kernels.attention.lists import ITEM
    from lorry.kernels.attention.triton_backend import TritonBackend  # loads Triton

    backend = TritonBackend(step.room(**room))
    memory, foreign_page = backend._memory, len(step.kv) - 1
    memory.part_SHK.fill_(torch.nan)
    memory.stat_SH2.fill_(torch.nan)
    memory.table_BM.fill_(foreign_page)
    memory.cell_T.fill_(foreign_page * step.kv.shape[4])
    memory.lists.fill_(1)
    memory.lists[memory.limits.first_item :].view(-1, ITEM)[:, -2] = -1  # no slot
    return backend


def on_device(work: AttentionWork, device: torch.device) -> AttentionWork:
    """The same work with its tensors there."""
    return replace(
        work,
        block_table_BM=work.block_table_BM.to(device),
        page_T=work.page_T.to(device),
        offset_T=work.offset_T.to(device),
        position_T=work.position_T.to(device),
        fresh_pages=work.fresh_pages.to(device),
    )


def _expected(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    num_new, total, fold = len(q), len(k), q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    k, v = k.repeat_interleave(fold, 0), v.repeat_interleave(fold, 0)
    distance = torch.arange(total - num_new, total)[:, None] - torch.arange(total)[None]
    distance = distance.to(q.device)
    seen = (distance >= 0) & (distance < (options.sliding_window or total))
    if options.softcap is None and options.sinks_H is None:
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=options.scaling)
        return out.transpose(0, 1)
    scores = q @ k.transpose(1, 2) * options.scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    weights = torch.where(seen, scores, -torch.inf).exp()
    total_weight = weights.sum(-1, keepdim=True)
    if options.sinks_H is not None:
        total_weight = total_weight + options.sinks_H.double().exp()[:, None, None]
    return (weights / total_weight @ v).transpose(0, 1)
