"""Processes that run per adapter: what each one's gaps are like.

Owns the two records and how they become a process for every adapter; superposition.py lets them
run. Called by make.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import must
from .pools import POOLS, draw_gaps_of
from .renewal import Gaps
from .streams import Floats


@dataclass(frozen=True, slots=True)
class PerAdapter:
    """Gaps of one CV, a process an adapter, at the rate of its popularity."""

    cv: float
    is_weibull: bool = False  # else Gamma

    def __post_init__(self) -> None:
        Gaps(self.cv, is_weibull=self.is_weibull)


@dataclass(frozen=True, slots=True)
class PoolClients:
    """CVs and families of a ServeGen pool's clients."""

    pool: str  # of POOLS

    def __post_init__(self) -> None:
        must(self.pool in POOLS, f"pool {self.pool!r}: not one of {', '.join(POOLS)}")


Senders = PerAdapter | PoolClients


def gaps_of(senders: Senders, weights: Floats, rng: np.random.Generator) -> tuple[Gaps, ...]:
    if isinstance(senders, PerAdapter):
        return (Gaps(senders.cv, is_weibull=senders.is_weibull),) * len(weights)
    return draw_gaps_of(POOLS[senders.pool], weights, rng)
