"""Which tokens may still be drawn: top-k, top-p and min-p, each on what the one before left.

Each gives what transformers' warper of that name gives on the same fp32 scores, bit for bit; of
equals at the edge of top-p the later ids stay, which is what its ascending sort would leave were
it stable. Rows of one call want the same kinds of work. Knows no seeds and no history; whoever
draws from what is left finds at least the likeliest token. Called by sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..scheduling.sampling import SamplingParams
from .sampler_device import ON_CPU, SamplerDevice

# Likeliest tokens that top-p looks at before it sorts a whole vocabulary: of 32,000 tokens to find
# these takes 0.05 and 0.4 ms a row, to sort them 1.8.
HEAD_TOKENS = (256, 4096)
# How far the definition's own sums in fp32 are from the true ones, with a margin. Where scores
# differ 1.1e-6 at most was found, from 32,000 to 256,000 tokens; where many are equal, as those
# made of bf16 logits are, roundings go one way: 5e-10 for each token of the vocabulary.
SUM_ERROR, TIED_SUM_ERROR = 4e-6, 1.5e-9
TIED_SHARE = 1 / 16  # of neighbours in the head


def scale(
    scores_BV: Tensor,
    peak_B1: Tensor,
    params: Sequence[SamplingParams],
    *,
    on: SamplerDevice = ON_CPU,
) -> Tensor:
    """Semantics: out = scores / temperature.

    Where that would overflow, the row's peak is moved to zero first; the filters see differences
    only.
    """
    temperature_B1 = temperatures(params, on)
    shift_B1 = peak_B1.masked_fill((peak_B1 / temperature_B1).isfinite(), 0.0)
    return (scores_BV - shift_B1).div_(temperature_B1)


def temperatures(params: Sequence[SamplingParams], on: SamplerDevice) -> Tensor:
    """[B, 1] in fp32, inside of what it holds."""
    limits = torch.finfo(torch.float32)
    return on.column([min(max(one.temperature, limits.tiny), limits.max) for one in params])


def keep_likely(
    scaled_BV: Tensor, params: Sequence[SamplingParams], *, on: SamplerDevice = ON_CPU
) -> Tensor:
    """The scores with -inf for what may not be drawn."""
    vocab, first = scaled_BV.shape[-1], params[0]
    if 0 < first.top_k < vocab:
        scaled_BV = _keep_top_k(scaled_BV, [one.top_k for one in params], on)
    if first.top_p < 1:
        scaled_BV = _keep_top_p(scaled_BV, [one.top_p for one in params], on)
    if first.min_p > 0:
        scaled_BV = _keep_min_p(scaled_BV, [one.min_p for one in params], on)
    return scaled_BV


def _keep_top_k(scores_BV: Tensor, top_ks: Sequence[int], on: SamplerDevice) -> Tensor:
    """Everything as likely as the k-th."""
    rank_B1 = on.put(top_ks)[:, None] - 1
    edge_B1 = scores_BV.topk(max(top_ks)).values.gather(1, rank_B1)
    return scores_BV.masked_fill(scores_BV < edge_B1, -torch.inf)


def _keep_top_p(scores_BV: Tensor, top_ps: Sequence[float], on: SamplerDevice) -> Tensor:
    """The fewest likeliest tokens that reach p: away goes who has, with everyone less likely, at
    most 1 - p.
    """
    rest_B1 = on.column([1 - top_p for top_p in top_ps])
    find_edge = _find_edge if on.may_look else _find_edge_by_sorting
    edge_B1, kept_B1 = find_edge(scores_BV, rest_B1)
    gone_BV = scores_BV < edge_B1
    equal_BV = scores_BV == edge_B1
    surplus_B1 = (~gone_BV).sum(1, keepdim=True) - kept_B1
    if not on.may_look or bool(surplus_B1.any()):
        gone_BV |= equal_BV & (equal_BV.cumsum(1) <= surplus_B1)
    return scores_BV.masked_fill(gone_BV, -torch.inf)


def _find_edge(scores_BV: Tensor, rest_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the smallest score that stays, and how many tokens do.

    Most rows are decided by their likeliest tokens, or by a few more. Where a sum's rounding could
    decide, and where no head is long enough, the definition does.
    """
    edge_B1, kept_B1 = torch.empty_like(rest_B1), torch.empty_like(rest_B1, dtype=torch.int64)
    open_B = torch.arange(len(scores_BV), device=scores_BV.device)
    doubtful: list[Tensor] = []
    for size in HEAD_TOKENS:
        if size >= scores_BV.shape[1] or not len(open_B):
            break
        edge, kept, sure_B = _find_edge_in_head(scores_BV[open_B], rest_B1[open_B], size)
        edge_B1[open_B], kept_B1[open_B] = edge, kept
        short_B = kept[:, 0] == size
        doubtful.append(open_B[~short_B & ~sure_B])
        open_B = open_B[short_B]
    doubt_B = torch.cat([*doubtful, open_B])
    if len(doubt_B):
        edge, kept = _find_edge_by_sorting(scores_BV[doubt_B], rest_B1[doubt_B])
        edge_B1[doubt_B], kept_B1[doubt_B] = edge, kept
    return edge_B1, kept_B1


def _find_edge_in_head(
    scores_BV: Tensor, rest_B1: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Also which rows are sure; one that keeps the whole head is not decided."""
    head_BN = scores_BV.topk(size).values
    peak_B1 = head_BN[:, :1]  # taken off first: a logarithm of large scores has no digits left
    # What underflows is slow and adds nothing.
    total_B1 = (scores_BV - peak_B1).clamp_min_(-80).exp_().sum(1, keepdim=True)
    share_BN = (head_BN - peak_B1).exp_().double().div_(total_B1)
    tied_B = (head_BN[:, 1:] == head_BN[:, :-1]).float().mean(1) > TIED_SHARE
    error_B = torch.where(tied_B, TIED_SUM_ERROR * scores_BV.shape[1], SUM_ERROR)
    # A token with everyone less likely: all but those likelier. The likeliest always stays.
    mass_BN = 1 - share_BN.cumsum(1)[:, :-1]
    kept_B1 = 1 + (mass_BN > rest_B1).sum(1, keepdim=True)
    sure_B = (mass_BN - rest_B1).abs().amin(1) > error_B
    return head_BN.gather(1, kept_B1 - 1), kept_B1, sure_B


def _find_edge_by_sorting(scores_BV: Tensor, rest_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: sums of probabilities from the least likely upwards."""
    rising_BV = scores_BV.sort(dim=1).values
    # A GPU adds up a row alone in another order than rows together, and in an order that may
    # change: in fp64 that moves no edge.
    dtype = torch.float64 if scores_BV.is_cuda else torch.float32
    kept_BV = rising_BV.softmax(1).cumsum(1, dtype=dtype) > rest_B1
    kept_B1 = kept_BV.sum(1, keepdim=True).clamp_min_(1)
    return rising_BV.gather(1, scores_BV.shape[1] - kept_B1), kept_B1


def _keep_min_p(scores_BV: Tensor, min_ps: Sequence[float], on: SamplerDevice) -> Tensor:
    """Everything at least this much as likely as the likeliest."""
    share_BV = scores_BV.softmax(1)
    least_B1 = on.column(min_ps) * share_BV.amax(1, keepdim=True)
    return scores_BV.masked_fill(share_BV < least_B1, -torch.inf)
