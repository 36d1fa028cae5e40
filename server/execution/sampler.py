"""From logits to tokens: greedy, or by temperature with a counter-based generator.

The Gumbel-max trick: the token with the largest logit / temperature + noise follows the softmax
when the noise of each token is Gumbel's. The noise is a hash of (seed, position, token id), a
counter-based generator in the sense of Salmon et al. (SC'11), so who else is in the batch or how
often a request was preempted changes nothing. Logits that another order of a sum has moved by
little change a token only where its two best are as close as that; the inverse of the
distribution function, which adds up the vocabulary, moves every later boundary.
Does not know requests or stop conditions. Called by the runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
# SplitMix64 (Steele, Lea, Flood 2014): its step and the two factors of its finalizer.
_GOLDEN, _FACTORS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
NOISE_ELEMENTS = 1 << 20  # rows of noise made at once: bounds temporaries


@dataclass(frozen=True, slots=True)
class Wish:
    """How one token is to be chosen."""

    temperature: float  # 0: greedy
    seed: int  # taken modulo 2**64
    position: int  # of the token to be sampled


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One token id per row, int64 on the logits' device, and whether it means anything."""

    tokens_B: Tensor
    # False where the largest logit is NaN or infinite. A single -inf is a token ruled out.
    finite_B: Tensor


def sample(logits_BV: Tensor, wishes: Sequence[Wish]) -> Choice:
    """Greedy takes the first of equal maxima, any other row the largest noisy score."""
    top_B, tokens_B = logits_BV.max(dim=-1)
    drawn = [i for i, wish in enumerate(wishes) if wish.temperature > 0]
    vocab = logits_BV.shape[-1]
    rows = max(1, NOISE_ELEMENTS // vocab)
    for first in range(0, len(drawn), rows):
        some = drawn[first : first + rows]
        idx = torch.tensor(some, dtype=torch.int64, device=logits_BV.device)
        scores_BV = gumbel([(wishes[i].seed, wishes[i].position) for i in some], vocab, idx.device)
        # Largest first to zero: a tiny temperature then overflows nowhere.
        logits = logits_BV.index_select(0, idx).float() - top_B.index_select(0, idx)[:, None]
        scores_BV += logits.div_(_temperatures([wishes[i] for i in some], idx.device))
        tokens_B.index_copy_(0, idx, scores_BV.argmax(dim=-1))
    return Choice(tokens_B, top_B.isfinite())


def gumbel(
    seeds_and_positions: Sequence[tuple[int, int]], vocab: int, device: torch.device
) -> Tensor:
    """Noise [B, V] in fp32: element v is a pure function of (seed, position, v).

    The integers are the same on every device, the logarithms to the last place or so.
    """
    keys = [_signed(_key(seed, position)) for seed, position in seeds_and_positions]
    keys_B1 = torch.tensor(keys, dtype=torch.int64, device=device)[:, None]
    steps_V = torch.arange(1, vocab + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)
    bits_BV = _finalize(keys_B1 + steps_V)
    # 53 bits in (0, 1). Small ones win: fp32 keeps all their digits, and log1p as well. The
    # largest would round to 1, and its noise to minus infinity.
    uniform_BV = _shift_right(bits_BV, 11).float().add_(0.5).mul_(2.0**-53)
    uniform_BV.clamp_max_(1 - 2.0**-24)
    return uniform_BV.neg_().log1p_().neg_().log_().neg_()


def _key(seed: int, position: int) -> int:
    """Where the SplitMix64 sequence of one token's noise begins."""
    return _mix(_mix(seed & _MASK) + position * _GOLDEN)


def _mix(value: int) -> int:
    """One number of SplitMix64 from the state `value`; `_finalize` is the same on tensors."""
    value = (value + _GOLDEN) & _MASK
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value ^ (value >> _SHIFTS[-1])


def _finalize(state: Tensor) -> Tensor:
    """Changes `state` in place. int64 arithmetic wraps around, which makes it that of uint64."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        state.bitwise_xor_(_shift_right(state, shift)).mul_(_signed(factor))
    return state.bitwise_xor_(_shift_right(state, _SHIFTS[-1]))


def _shift_right(value: Tensor, shift: int) -> Tensor:
    """Zeros come in from the left: torch's own shift of int64 repeats the sign."""
    return value.bitwise_right_shift(shift).bitwise_and_((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


def _temperatures(wishes: Sequence[Wish], device: torch.device) -> Tensor:
    limits = torch.finfo(torch.float32)
    values = [min(max(wish.temperature, limits.tiny), limits.max) for wish in wishes]
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
