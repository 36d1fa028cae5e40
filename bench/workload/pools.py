"""ServeGen's client pools (2505.09999; Apache-2.0): real senders, each with traffic of its own.

Owns the published statistics of four pools and the clients drawn to have them; here a client is
an adapter. The measured data are not among us: what a table does not say is held constant beyond
its ends (CV below P25 and above P95), or assumed and marked so. The drift of rates over a day
(peak over mean 2 to 3) is left out. Called by popularity.py, senders.py and lengths.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from .errors import must
from .quantiles import LengthTables, curve_through
from .renewal import Gaps
from .streams import Floats

_TOPS = (1, 5, 10, 20)  # whose shares of all requests are published
_CV_SHARES = (0.25, 0.50, 0.75, 0.95)
MIN_CLIENTS = _TOPS[-1] + 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Three percentiles and the mean of a pool's tokens."""

    p50: float
    p90: float
    p99: float
    mean: float


@dataclass(frozen=True, slots=True)
class PoolFigures:
    num_clients: int
    top_shares: tuple[float, float, float, float]  # of the first 1, 5, 10, 20 clients
    head_slope: float  # of the first 20, log share over log place: a check, not used
    cvs: tuple[float, float, float, float]  # P25, 50, 75, 95, weighted by rate
    weibull_share: float  # of the clients; the others' gaps are Gamma
    prompt: Spread
    answer: Spread
    # How far busy clients send shorter prompts, from 0 to 1: chosen so that the P10/50/90 of the
    # clients' own means come near those published for m-large and m-mid; for the others unknown: 0.
    shorter_when_busy: float = 0.0
    client_means: tuple[float, float, float] | None = None  # those P10/50/90, of prompts


POOLS = {
    "m-large": PoolFigures(
        162,
        (0.16, 0.43, 0.63, 0.78),
        0.94,
        (1.0, 1.2, 2.2, 10),
        0.30,
        Spread(688, 2369, 5850, 1023),
        Spread(67, 461, 971, 162),
        shorter_when_busy=0.07,
        client_means=(135, 950, 2392),
    ),
    "m-mid": PoolFigures(
        109,
        (0.52, 0.67, 0.79, 0.89),
        1.12,
        (1.3, 2.0, 7.7, 57),
        0.40,
        Spread(174, 649, 3538, 334),
        Spread(36, 100, 511, 58),
        shorter_when_busy=0.62,
        client_means=(178, 674, 4478),
    ),
    "m-small": PoolFigures(
        43,
        (0.30, 0.77, 0.93, 0.99),
        1.76,
        (1.1, 1.2, 2.2, 9.8),
        0.24,
        Spread(40, 386, 1525, 147),
        Spread(3, 58, 180, 20),
    ),
    "deepseek-r1": PoolFigures(
        73,
        (0.29, 0.53, 0.68, 0.86),
        0.91,
        (0.9, 1.0, 1.9, 9.0),
        0.26,
        Spread(260, 2349, 23612, 1377),
        Spread(730, 3465, 12584, 1502),
    ),
}


def pool_shares(figures: PoolFigures, num_clients: int) -> Floats:
    """A share for each client, falling, with the pool's sums over the first 1, 5, 10, 20.

    Between two published sums the shares fall from one bound to the next along a power whose
    exponent gives the sum; the bounds are geometric means of the neighbouring averages. More
    clients than the pool has, or fewer, change the tail alone.
    """
    must(
        num_clients >= MIN_CLIENTS, f"num_adapters {num_clients}: at least {MIN_CLIENTS} of a pool"
    )
    places = (0, *_TOPS, num_clients)
    sums = np.array((0.0, *figures.top_shares, 1.0))
    sizes = np.diff(places)
    means = np.diff(sums) / sizes
    bounds = [means[0], *np.sqrt(means[:-1] * means[1:]), 0.0]
    # The first stretch is a single client, whose share is known.
    parts = [means[:1]]
    for size, mean, high, low in zip(sizes[1:], means[1:], bounds[1:], bounds[2:], strict=False):
        parts.append(_falling(int(size), float(mean), float(high), float(low)))
    return np.concatenate(parts)


def draw_gaps_of(
    figures: PoolFigures, shares: Floats, rng: np.random.Generator
) -> tuple[Gaps, ...]:
    """CVs whose percentiles, weighted by rate, are the pool's, whoever has which."""
    order = rng.permutation(len(shares))
    middles = np.cumsum(shares[order]) - shares[order] / 2
    cvs = np.empty(len(shares))
    cvs[order] = np.exp(np.interp(middles, _CV_SHARES, np.log(figures.cvs)))
    is_weibull = rng.random(len(shares)) < figures.weibull_share
    return tuple(
        Gaps(cv, is_weibull=flag)
        for cv, flag in zip(cvs.tolist(), is_weibull.tolist(), strict=True)
    )


@cache
def pool_lengths(pool: str) -> LengthTables:
    """Of all requests of a pool."""
    figures = POOLS[pool]
    prompt, answer = (
        curve_through(spread.p50, spread.p90, spread.p99, mean=spread.mean)
        for spread in (figures.prompt, figures.answer)
    )
    return LengthTables(prompt, answer)


def _falling(size: int, mean: float, high: float, low: float) -> Floats:
    """From `high` to `low`, of that mean."""
    x = 1 - (np.arange(size) + 0.5) / size
    wanted = (mean - low) / (high - low)
    least, most = 1e-4, 1e4
    for _ in range(100):
        power = math.sqrt(least * most)
        least, most = (power, most) if float((x**power).mean()) > wanted else (least, power)
    return low + (high - low) * x ** math.sqrt(least * most)
