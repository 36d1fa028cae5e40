"""Ranks: what rank each adapter has, and whether hot adapters have the small ones.

Every mix is dealt out exactly (a rank of weight 1/4 goes to a quarter of the adapters, within one),
then ordered against popularity. Knows no requests; called by make.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .errors import must

RankOrder = Literal["random", "interleaved", "hot-low", "hot-high"]


@dataclass(frozen=True, slots=True)
class RankMix:
    ranks: tuple[int, ...]
    weights: tuple[float, ...] = ()  # in proportion; empty: all alike
    # random: nothing to do with popularity. interleaved: in turn by popularity, as S-LoRA does.
    # hot-low: the hottest adapters have the lowest ranks. hot-high: the other way about.
    order: RankOrder = "random"

    def __post_init__(self) -> None:
        must(bool(self.ranks), "ranks: at least one")
        must(min(self.ranks) > 0, f"ranks {self.ranks}: must be above 0")
        if self.weights:
            must(
                len(self.weights) == len(self.ranks),
                f"weights {self.weights}: one for each of {len(self.ranks)} ranks",
            )
            must(
                min(self.weights) >= 0 and sum(self.weights) > 0,
                f"weights {self.weights}: not negative, and not all 0",
            )
        must(self.order in get_args(RankOrder), f"order {self.order!r}: not one of its kinds")


def fixed(rank: int) -> RankMix:
    return RankMix((rank,))


# As in S-LoRA's settings of these names, and what deployments use.
MIXES = {
    "s-lora-s1": fixed(8),
    "s-lora-s2": RankMix((64, 32, 16, 8), order="interleaved"),
    "s-lora-s4": RankMix((64, 32, 16), order="interleaved"),
    "deployments": RankMix((8, 16, 32, 64)),
}


def deal_ranks(mix: RankMix, rng: np.random.Generator, *, num_adapters: int) -> tuple[int, ...]:
    """One an adapter, the hottest first."""
    weights = np.array(mix.weights or (1.0,) * len(mix.ranks))
    exact = weights / weights.sum() * num_adapters
    counts = np.floor(exact).astype(int)
    # Largest remainders get what is left; of equal ones the first in the list.
    missing = num_adapters - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    if mix.order == "interleaved":
        ranks = _in_turn(mix.ranks, counts.tolist())
    else:
        ranks = sorted(
            rank for rank, n in zip(mix.ranks, counts.tolist(), strict=True) for _ in range(n)
        )
    if mix.order == "hot-high":
        ranks.reverse()
    elif mix.order == "random":
        ranks = [ranks[i] for i in rng.permutation(num_adapters)]
    return tuple(ranks)


def _in_turn(ranks: tuple[int, ...], counts: list[int]) -> list[int]:
    dealt: list[int] = []
    left = list(counts)
    while any(left):
        for i, rank in enumerate(ranks):
            if left[i]:
                dealt.append(rank)
                left[i] -= 1
    return dealt
