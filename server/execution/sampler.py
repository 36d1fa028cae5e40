"""From logits to tokens: greedy, or drawn by temperature and filters; a pure function.

The Gumbel-max trick: the token with the largest logit / temperature + noise follows the softmax
when the noise of each token is Gumbel's. Logits that another order of a sum has moved by little
change a token only where its two best are as close as that; the inverse of the distribution
function, which adds up the vocabulary, moves every later boundary. Each row is a function of its
own logits, wish and history; rows of one kind are worked on together. Called by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..scheduling.sampling import SamplingParams
from .filters import keep_likely, scale, temperatures
from .first_max import first_max
from .noise import gumbel, noise_keys
from .penalties import Seen, adjust
from .sampler_device import ON_CPU, SamplerDevice


@dataclass(frozen=True, slots=True)
class Wish:
    """How one token is to be chosen."""

    sampling: SamplingParams
    position: int  # of the token to be sampled
    seen: Seen | None = None  # None: no penalty is asked for


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One token id per row, int64 on the logits' device, and whether it means anything."""

    tokens_B: Tensor
    # False where the largest logit is NaN or infinite. A single -inf is a token ruled out.
    finite_B: Tensor


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a row's choice takes; rows of one kind share every operation."""

    drawn: bool
    top_k_bits: int = 0  # 0: no top-k. Few and many likeliest do not wait for each other.
    top_p: bool = False
    min_p: bool = False

    @property
    def filters(self) -> bool:
        return self.top_k_bits > 0 or self.top_p or self.min_p


def sample(logits_BV: Tensor, wishes: Sequence[Wish], *, on: SamplerDevice = ON_CPU) -> Choice:
    """Logits in any float dtype; they stay as they are. Of equal maxima the first is taken."""
    top_B, tokens_B = first_max(logits_BV)
    vocab = logits_BV.shape[-1]
    for kind, rows in _by_kind(wishes, vocab).items():
        for block in on.blocks(len(rows), vocab):
            some = [rows[i] for i in block]
            idx = on.put(some)
            scores_BV = logits_BV.index_select(0, idx).float()
            chosen = [wishes[i] for i in some]
            params, seen = [wish.sampling for wish in chosen], [wish.seen for wish in chosen]
            adjust(scores_BV, params, seen, on=on)
            if kind.drawn:
                scores_BV = _add_noise(scores_BV, chosen, on, filters=kind.filters)
            tokens_B.index_copy_(0, idx, first_max(scores_BV)[1])
    return Choice(tokens_B, top_B.isfinite())


def _by_kind(wishes: Sequence[Wish], vocab: int) -> dict[_Kind, list[int]]:
    """Rows that are greedy on the logits as they are belong to no kind: nothing is left to do."""
    kinds: dict[_Kind, list[int]] = {}
    for row, wish in enumerate(wishes):
        one = wish.sampling
        if one.temperature > 0:
            top_k_bits = one.top_k.bit_length() if one.top_k < vocab else 0
            kind = _Kind(True, top_k_bits, one.top_p < 1, one.min_p > 0)
        elif one.logit_bias or one.needs_history:
            kind = _Kind(False)
        else:
            continue
        kinds.setdefault(kind, []).append(row)
    return kinds


def _add_noise(
    scores_BV: Tensor, wishes: Sequence[Wish], on: SamplerDevice, *, filters: bool
) -> Tensor:
    """What comes out largest is the draw. Changes the scores given."""
    params = [wish.sampling for wish in wishes]
    peak_B1 = scores_BV.amax(dim=-1, keepdim=True)
    left_BV = (
        keep_likely(scale(scores_BV, peak_B1, params, on=on), params, on=on) if filters else None
    )
    # Largest first to zero: a tiny temperature then overflows nowhere. A filter only rules out:
    # one that lets everything pass changes no draw.
    scores_BV.sub_(peak_B1).div_(temperatures(params, on))
    keys_B = on.put(noise_keys([(wish.sampling.seed, wish.position) for wish in wishes]))
    if left_BV is None or not on.may_look:
        token_V = torch.arange(scores_BV.shape[1], dtype=torch.int64, device=scores_BV.device)
        scores_BV.add_(gumbel(keys_B[:, None], token_V))
        return scores_BV if left_BV is None else left_BV.where(left_BV == -torch.inf, scores_BV)
    # Noise is the larger part of a draw: made for those alone who may win.
    row, token = (left_BV > -torch.inf).nonzero(as_tuple=True)
    return left_BV.index_put_((row, token), scores_BV[row, token] + gumbel(keys_B[row], token))
