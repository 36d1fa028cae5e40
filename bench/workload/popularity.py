"""Popularity: which adapter a request asks for.

Weights fall with an adapter's index, the hottest first; what rank each has is ranks.py's business.
Pure functions from record and chance to indices. Knows no arrival process; called by make.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import WorkloadError, must
from .pools import POOLS, pool_shares
from .streams import Floats, Ints


@dataclass(frozen=True, slots=True)
class Distinct:
    """Each request another adapter than those before, round after round."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """All the same."""


@dataclass(frozen=True, slots=True)
class Zipf:
    """The k-th is asked for in proportion to k^-s."""

    s: float

    def __post_init__(self) -> None:
        must(self.s >= 0, f"s {self.s}: must not be negative")


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """S-LoRA's: floor(n * x), x from the power distribution of density alpha x^(alpha - 1).

    Alpha 1 is uniform, and less is more skewed: not the other way about.
    """

    alpha: float

    def __post_init__(self) -> None:
        must(0 < self.alpha <= 1, f"alpha {self.alpha}: above 0, at most 1")


@dataclass(frozen=True, slots=True)
class Shifting:
    """Zipf whose ranking is drawn anew every so often: what is hot cools down."""

    s: float
    every_s: float

    def __post_init__(self) -> None:
        must(self.s >= 0, f"s {self.s}: must not be negative")
        must(self.every_s > 0, f"every_s {self.every_s}: must be above 0")


@dataclass(frozen=True, slots=True)
class PoolShares:
    """The clients of a ServeGen pool: an adapter each."""

    pool: str  # of POOLS

    def __post_init__(self) -> None:
        must(self.pool in POOLS, f"pool {self.pool!r}: not one of {', '.join(POOLS)}")


Popularity = Distinct | Uniform | Zipf | PowerLaw | Shifting | PoolShares


def steady_weights(popularity: Popularity, num_adapters: int) -> Floats:
    """Of each adapter, in sum 1. Of a shifting one, those of the ranking's places."""
    if isinstance(popularity, PoolShares):
        return pool_shares(POOLS[popularity.pool], num_adapters)
    if isinstance(popularity, Zipf | Shifting):
        weights = np.arange(1, num_adapters + 1, dtype=np.float64) ** -popularity.s
        return weights / weights.sum()
    if isinstance(popularity, PowerLaw):
        edges = (np.arange(num_adapters + 1) / num_adapters) ** popularity.alpha
        return np.diff(edges)
    return np.full(num_adapters, 1 / num_adapters)


def draw_adapters(
    popularity: Popularity, rng: np.random.Generator, *, num_adapters: int, instants_s: Floats
) -> tuple[Ints, Floats]:
    """An index for each request (-1: there are no adapters), and each one's weight over the run."""
    count = len(instants_s)
    if num_adapters == 0:
        return np.full(count, -1), np.empty(0)
    weights = steady_weights(popularity, num_adapters)
    if isinstance(popularity, Distinct):
        return np.arange(count) % num_adapters, weights
    places = _by_weight(weights, rng.random(count))
    if not isinstance(popularity, Shifting):
        return places, weights
    last_s = float(instants_s[-1]) if count else math.inf
    must(
        last_s >= popularity.every_s,
        f"every_s {popularity.every_s}: the run is over at {last_s:.1f} s, before anything shifts",
    )
    epochs = (instants_s // popularity.every_s).astype(np.int64)
    mean_weights = np.zeros(num_adapters)
    adapters = np.empty(count, np.int64)
    for epoch in range(int(epochs[-1]) + 1 if count else 0):
        ranking = rng.permutation(num_adapters)
        now = epochs == epoch
        adapters[now] = ranking[places[now]]
        mean_weights[ranking] += weights * (np.count_nonzero(now) / count)
    return adapters, mean_weights if count else weights


def check_steady(popularity: Popularity, why: str) -> None:
    """A process per adapter needs a rate per adapter."""
    if isinstance(popularity, Distinct | Shifting):
        raise WorkloadError(f"popularity {type(popularity).__name__}: has no steady rates, {why}")


def _by_weight(weights: Floats, chances: Floats) -> Ints:
    edges = np.cumsum(weights)
    found = np.searchsorted(edges / edges[-1], chances, side="right")
    return np.minimum(found, len(weights) - 1).astype(np.int64)
