"""Renewal processes: gaps drawn one like another, from a Gamma or a Weibull of a wanted CV.

Two ways to begin. `count` gaps from nothing (S-LoRA's way, mean rate exact over many gaps), or an
equilibrium: looked at from a moment that knows nothing of the process. The second is what many
clients in superposition need: begun together at their first gap, bursty ones would send
(cv^2 - 1) / 2 requests too many each. Called by arrivals.py and superposition.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from .errors import must
from .streams import Floats

MAX_CV = 100.0  # Weibull's shape is searched for no further
_LOW_SHAPE, _HIGH_SHAPE = 0.05, 50.0


@dataclass(frozen=True, slots=True)
class Gaps:
    """The distribution of the time between two requests, in means: scale it by 1 / rate."""

    cv: float  # standard deviation over mean; 1: exponential, whatever the family
    is_weibull: bool = False  # else Gamma

    def __post_init__(self) -> None:
        must(0 < self.cv <= MAX_CV, f"cv {self.cv}: more than 0, at most {MAX_CV:g}")

    @property
    def shape(self) -> float:
        return weibull_shape(self.cv) if self.is_weibull else 1 / self.cv**2


def draw_gaps(gaps: Gaps, rng: np.random.Generator, count: int) -> Floats:
    """Of mean 1."""
    if gaps.is_weibull:
        return rng.standard_exponential(count) ** (1 / gaps.shape) / _weibull_mean(gaps.shape)
    return rng.standard_gamma(gaps.shape, count) / gaps.shape


def draw_wait(gaps: Gaps, rng: np.random.Generator) -> float:
    """From a moment that knows nothing to the next arrival: a part of a gap, and long gaps are met
    more often. Both families keep their form when weighted by length.
    """
    if gaps.is_weibull:
        met = rng.standard_gamma(1 + 1 / gaps.shape) ** (1 / gaps.shape) / _weibull_mean(gaps.shape)
    else:
        met = rng.standard_gamma(gaps.shape + 1) / gaps.shape
    return float(rng.random() * met)


def instants_until(
    gaps: Gaps, rng: np.random.Generator, *, rate_per_s: float, end_s: float
) -> Floats:
    """In equilibrium, over [0, end_s)."""
    at = draw_wait(gaps, rng) / rate_per_s
    parts: list[Floats] = []
    expected = rate_per_s * end_s
    chunk = int(expected + 4 * min(gaps.cv, 4.0) * math.sqrt(expected)) + 8
    while at < end_s:
        steps = draw_gaps(gaps, rng, chunk) / rate_per_s
        instants = at + np.concatenate([[0.0], np.cumsum(steps)])
        parts.append(instants[:-1])
        at = float(instants[-1])
    instants = np.concatenate(parts) if parts else np.empty(0)
    return instants[instants < end_s]


@cache
def weibull_shape(cv: float) -> float:
    """Bisection: the CV falls as the shape rises."""
    low, high = _LOW_SHAPE, _HIGH_SHAPE
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _weibull_cv(middle) > cv else (low, middle)
    return math.sqrt(low * high)


def _weibull_cv(shape: float) -> float:
    log_ratio = math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)
    return math.sqrt(math.expm1(log_ratio))


def _weibull_mean(shape: float) -> float:
    return math.gamma(1 + 1 / shape)
