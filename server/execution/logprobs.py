"""Log-probabilities of tokens by the model's own distribution, before bias, penalty or filter.

Owns the arithmetic (log-softmax of the logits in fp32, in blocks of bounded size) and the
records made of it. Of equal logits the lower id comes first, as in greedy choice: what is listed
depends on the row alone. A place whose logits are not finite shows as NaN. Does not know which
places are wanted, or why. Called by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scheduling.sampling import TokenLogprobs
from .sampler_device import sampler_device


def token_logprobs(
    logits_BV: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """A record per row of logits: of this token, and of the row's own number of likeliest ones."""
    vocab = logits_BV.shape[1]
    records: list[TokenLogprobs] = []
    for some in sampler_device(logits_BV.device).blocks(len(token_ids), vocab):
        ids, tops = [token_ids[i] for i in some], [min(num_top[i], vocab) for i in some]
        block_BV = logits_BV[some[0] : some[-1] + 1].float()
        idx_B1 = torch.tensor(ids, dtype=torch.int64, device=block_BV.device)[:, None]
        logprob_BV = block_BV.log_softmax(dim=1)
        told = logprob_BV.gather(1, idx_B1)[:, 0].tolist()
        for token, value, top in zip(
            ids, told, _likeliest(block_BV, logprob_BV, tops), strict=True
        ):
            records.append(TokenLogprobs(token, value, top))
    return records


def _likeliest(
    logits_BV: Tensor, logprob_BV: Tensor, counts: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """So many tokens of each row by logit (two that differ may have the same logarithm), then id.

    torch's topk says which value is the last to be listed; which of equals it takes differs with
    the number asked for, and that is another row's affair.
    """
    most, device = max(counts), logits_BV.device
    if not most:
        return [()] * len(counts)
    counts_B = torch.tensor(counts, dtype=torch.int64, device=device)
    edge_B1 = logits_BV.topk(most, dim=1).values.gather(1, counts_B[:, None].clamp(min=1) - 1)
    row_N, token_N = (logits_BV >= edge_B1).nonzero(as_tuple=True)  # by row, then id
    by_logit_N = logits_BV[row_N, token_N].argsort(descending=True, stable=True)
    order_N = by_logit_N[row_N[by_logit_N].argsort(stable=True)]
    row_N, token_N = row_N[order_N], token_N[order_N]
    sizes_B = row_N.bincount(minlength=len(counts))
    rank_N = torch.arange(len(row_N), device=device) - (sizes_B.cumsum(0) - sizes_B)[row_N]
    kept_N = rank_N < counts_B[row_N]
    row_N, token_N = row_N[kept_N], token_N[kept_N]
    values: list[float] = logprob_BV[row_N, token_N].tolist()
    pairs = list(zip(token_N.tolist(), values, strict=True))
    # Fewer than asked for only where logits are NaN.
    ends = row_N.bincount(minlength=len(counts)).cumsum(0).tolist()
    return [tuple(pairs[first:end]) for first, end in zip([0, *ends], ends, strict=False)]
