"""Lengths: tokens of each request's prompt and answer.

Records for what is published, and one pure function from record and chance to two columns. Prompt
and answer are drawn apart: on the Azure and Mooncake conversation traces their rank correlation
is below 0.1. What fits a model is fit.py's business. Called by make.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .errors import must
from .pools import POOLS, pool_lengths
from .quantiles import TABLES, QuantileTable
from .streams import Floats, Ints

# How much of a pool's spread lies between clients: with it the clients' own mean prompts spread as
# published for m-large and m-mid (tests/bench/test_workload_lengths.py).
BETWEEN_CLIENTS = 0.93
_GRID = np.linspace(-12, 12, 1201)


@dataclass(frozen=True, slots=True)
class FromTable:
    """By the percentiles of a public trace."""

    table: str  # of TABLES

    def __post_init__(self) -> None:
        must(self.table in TABLES, f"table {self.table!r}: not one of {', '.join(TABLES)}")


@dataclass(frozen=True, slots=True)
class Fixed:
    prompt_tokens: int
    answer_tokens: int

    def __post_init__(self) -> None:
        must(self.prompt_tokens > 0, f"prompt_tokens {self.prompt_tokens}: must be above 0")
        must(self.answer_tokens > 0, f"answer_tokens {self.answer_tokens}: must be above 0")


@dataclass(frozen=True, slots=True)
class UniformLengths:
    """Half open, as S-LoRA draws them: from 8 to 511 tokens for U[8, 512]."""

    prompt: tuple[int, int] = (8, 512)
    answer: tuple[int, int] = (8, 512)

    def __post_init__(self) -> None:
        for name, (low, high) in (("prompt", self.prompt), ("answer", self.answer)):
            must(0 < low < high, f"{name} {low}..{high}: must rise and begin above 0")


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Defaults: LMSYS-Chat-1M. Prompts P90 about 256 and P99 about 1,000 (Toppings), fitted;
    answers have the published mean of 214.5, and their sigma is assumed.
    """

    prompt_mu: float = 3.845  # of log tokens
    prompt_sigma: float = 1.327
    answer_mu: float = math.log(214.5) - 0.5
    answer_sigma: float = 1.0

    def __post_init__(self) -> None:
        must(self.prompt_sigma >= 0, f"prompt_sigma {self.prompt_sigma}: must not be negative")
        must(self.answer_sigma >= 0, f"answer_sigma {self.answer_sigma}: must not be negative")


@dataclass(frozen=True, slots=True)
class PoolLengths:
    """All requests together as the pool's, and each client with lengths of its own."""

    pool: str  # of POOLS

    def __post_init__(self) -> None:
        must(self.pool in POOLS, f"pool {self.pool!r}: not one of {', '.join(POOLS)}")


Lengths = FromTable | Fixed | UniformLengths | LogNormal | PoolLengths


def draw_lengths(
    lengths: Lengths, rng: np.random.Generator, *, adapters: Ints, weights: Floats
) -> tuple[Ints, Ints]:
    """Tokens of prompt and answer of each request, given whose it is."""
    count = len(adapters)
    if isinstance(lengths, FromTable):
        tables = TABLES[lengths.table]
        drawn = tables.prompt.at(rng.random(count)), tables.answer.at(rng.random(count))
    elif isinstance(lengths, Fixed):
        drawn = np.full(count, lengths.prompt_tokens), np.full(count, lengths.answer_tokens)
    elif isinstance(lengths, UniformLengths):
        drawn = rng.integers(*lengths.prompt, count), rng.integers(*lengths.answer, count)
    elif isinstance(lengths, LogNormal):
        drawn = (
            rng.lognormal(lengths.prompt_mu, lengths.prompt_sigma, count),
            rng.lognormal(lengths.answer_mu, lengths.answer_sigma, count),
        )
    else:
        tables, busy = pool_lengths(lengths.pool), POOLS[lengths.pool].shorter_when_busy
        drawn = (
            _by_client(tables.prompt, rng, adapters=adapters, weights=weights, busy=busy),
            _by_client(tables.answer, rng, adapters=adapters, weights=weights, busy=0.0),
        )
    prompt, answer = (np.maximum(np.rint(column), 1).astype(np.int64) for column in drawn)
    return prompt, answer


def _by_client(
    table: QuantileTable, rng: np.random.Generator, *, adapters: Ints, weights: Floats, busy: float
) -> Floats:
    """A place of each client and noise of each request, added; then what share of all requests
    lies below that sum is the share of the table. So the whole has the table's percentiles,
    however unequal the clients are.
    """
    num_clients = len(weights)
    normal = NormalDist()
    # The hottest gets the lowest place where busy clients send less.
    steady = np.empty(num_clients)
    steady[np.argsort(-weights, kind="stable")] = [
        normal.inv_cdf((i + 0.5) / num_clients) for i in range(num_clients)
    ]
    places = busy * steady + math.sqrt(1 - busy**2) * rng.standard_normal(num_clients)
    centres = BETWEEN_CLIENTS * places
    # Logistic, of the variance that is left: its distribution function has a closed form.
    width = math.sqrt(1 - BETWEEN_CLIENTS**2) * math.sqrt(3) / math.pi
    below = np.zeros(len(_GRID))
    for centre, weight in zip(centres.tolist(), weights.tolist(), strict=True):
        below += weight / (1 + np.exp(np.clip((centre - _GRID) / width, -60, 60)))
    sums = centres[adapters] + width * rng.logistic(size=len(adapters))
    return table.at(np.interp(sums, _GRID, below / weights.sum()))
