"""Noise for drawing tokens: Gumbel numbers hashed from (seed, position, token id).

A counter-based generator in the sense of Salmon et al. (SC'11): no state, so who else is in the
batch or how often a request was preempted changes nothing. The integers are the same on every
device. Knows no logits and no requests. Called by sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_MASK = (1 << 64) - 1
# SplitMix64 (Steele, Lea, Flood 2014): its step and the two factors of its finalizer.
_GOLDEN, _FACTORS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def noise_keys(seeds_and_positions: Sequence[tuple[int, int]]) -> list[int]:
    """Where the sequence of each token's noise begins, as signed 64-bit integers."""
    return [_signed(_key(seed, position)) for seed, position in seeds_and_positions]


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Noise in fp32 for each key and token id, one shape after broadcasting.

    The integers are the same on every device, the logarithms to the last place or so.
    """
    bits = _finalize(keys + (token_ids + 1) * _signed(_GOLDEN))
    # 53 bits in (0, 1). Small ones win: fp32 keeps all their digits, and log1p as well. The
    # largest would round to 1, and its noise to minus infinity.
    uniform = _shift_right(bits, 11).float().add_(0.5).mul_(2.0**-53)
    uniform.clamp_max_(1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


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
