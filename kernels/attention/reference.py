"""The definition of correct paged attention: one request after the other, softmax in fp32.

Called by tests and benches; a PagedModel may be built with it, as a test does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .scatter import TorchBackend
from .work import AttentionOptions, AttentionWork


class ReferenceBackend(TorchBackend):
    """See the Semantics in kernels/attention/__init__.py."""

    def paged_attention(
        self,
        query_THK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        out_THK = torch.empty_like(query_THK)
        tokens_per_page = kv_PL2GZK.shape[4]
        start_row = 0
        for i, (num_rows, context_len) in enumerate(
            zip(work.query_lens, work.context_lens, strict=True)
        ):
            rows = slice(start_row, start_row + num_rows)
            pages = work.block_table_BM[i, : -(-context_len // tokens_per_page)]
            # [pages, 2, G, Z, K] -> [2, G, pages * Z, K], without the cells past the context
            kv = kv_PL2GZK[pages, layer].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context_len]
            out_THK[rows] = _attend(
                query_THK[rows].float(), kv[0].float(), kv[1].float(), options
            ).to(out_THK.dtype)
            start_row += num_rows
        return out_THK


def _attend(
    query_QHK: Tensor, key_GCK: Tensor, value_GCK: Tensor, options: AttentionOptions
) -> Tensor:
    """One request: its last Q tokens over its C tokens of context."""
    num_queries, num_heads, _ = query_QHK.shape
    group = num_heads // key_GCK.shape[0]
    key_HCK, value_HCK = key_GCK.repeat_interleave(group, 0), value_GCK.repeat_interleave(group, 0)
    scores_HQC = torch.einsum("qhk,hck->hqc", query_QHK, key_HCK) * options.scaling
    if options.softcap is not None:
        scores_HQC = options.softcap * torch.tanh(scores_HQC / options.softcap)
    context_len = key_GCK.shape[1]
    position_Q1 = torch.arange(context_len - num_queries, context_len, device=query_QHK.device)[
        :, None
    ]
    position_C = torch.arange(context_len, device=query_QHK.device)
    seen_QC = position_C <= position_Q1
    if options.sliding_window is not None:
        seen_QC &= position_C > position_Q1 - options.sliding_window
    scores_HQC = scores_HQC.masked_fill(~seen_QC, -torch.inf)
    if options.sinks_H is not None:
        sinks_HQ1 = options.sinks_H.float()[:, None, None].expand(-1, num_queries, 1)
        scores_HQC = torch.cat([scores_HQC, sinks_HQ1], dim=-1)
    weights_HQC = torch.softmax(scores_HQC, dim=-1)[:, :, :context_len]
    return torch.einsum("hqc,hck->qhk", weights_HQC, value_HCK)
