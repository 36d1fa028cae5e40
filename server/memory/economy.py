"""What idle things are worth: one order over adapters that nobody uses and cached pages of KV.

Owns the arithmetic that makes a number of how often something was used and what it costs to bring
back; smaller goes first. Does not know pages, tokens, adapters or who waits: the planner keeps
what somebody in line needs, whatever it is worth. Called by the prefix cache and by residency,
at each use: between two uses a worth stays what it is, so nothing is sorted anew as time passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

ECONOMY, LRU, SPLIT = "economy", "lru", "split"
NAMES = (ECONOMY, LRU, SPLIT)
# Seconds: below it a cost is nothing that anyone has measured, and its logarithm a wild number.
MIN_COST_S = 1e-9
# Turnovers of the pool in which a use fades to 1/e: 4 to 16 were alike when it was chosen.
SPAN_TURNOVERS = 4.0


class Use(NamedTuple):
    """How much something has been wanted; of an adapter also kept while it is away."""

    heat: float  # logarithm of its uses, each fading with time; comparable, no unit
    num_uses: int
    last_s: float  # instant of the last use, or of the end of it


class Economy(Protocol):
    name: str

    def touched(self, use: Use | None, now_s: float) -> Use:
        """Somebody begins to use it; None: nothing is known of it."""
        ...

    def rested(self, use: Use, now_s: float) -> Use:
        """The last who used it has ended."""
        ...

    def adapter_worth(self, use: Use, *, num_pages: int, reload_s: float) -> float: ...

    def block_worth(self, use: Use, *, recompute_s: float) -> float:
        """Of one page."""
        ...

    def params(self) -> tuple[tuple[str, float], ...]:
        """By name, for the metrics."""
        ...


class Lru:
    """Whatever was used least recently goes first. `split` is this with a wall: the planner gives
    adapters a share of the pool and KV the rest (StepLimits.adapter_share_pages).
    """

    def __init__(self, name: str = LRU) -> None:
        self.name = name

    def touched(self, use: Use | None, now_s: float) -> Use:
        return Use(now_s, use.num_uses + 1 if use else 1, now_s)

    def rested(self, use: Use, now_s: float) -> Use:
        return Use(now_s, use.num_uses, now_s)

    def adapter_worth(self, use: Use, *, num_pages: int, reload_s: float) -> float:
        del num_pages, reload_s
        return use.last_s

    def block_worth(self, use: Use, *, recompute_s: float) -> float:
        del recompute_s
        return use.last_s

    def params(self) -> tuple[tuple[str, float], ...]:
        return ()


class FadingEconomy:
    """worth = log(need x seconds to bring it back / pages).

    Need is the number of uses, each fading at the same rate: sum of exp((t_i - now) / span). The
    factor exp(-now / span) is common to everything, so it is left out: the order of worths never
    changes as time passes, only by uses. The clock t is the pool's: how often all its pages have
    been handed out anew. In seconds the span would have to be another one for each pool and load.
    Frequency, recency, cost and size in one number, after ELORA's value (arXiv 2505.03756) and
    GreedyDual-Size-Frequency.
    """

    name = ECONOMY

    def __init__(self, turnovers: Callable[[], float], *, span_turnovers: float) -> None:
        self._turnovers, self._span = turnovers, span_turnovers

    def touched(self, use: Use | None, now_s: float) -> Use:
        now = self._turnovers() / self._span
        if use is None:
            return Use(now, 1, now_s)
        return Use(_log_add(use.heat, now), use.num_uses + 1, now_s)

    def rested(self, use: Use, now_s: float) -> Use:
        return Use(use.heat, use.num_uses, now_s)

    def adapter_worth(self, use: Use, *, num_pages: int, reload_s: float) -> float:
        return use.heat + math.log(max(reload_s, MIN_COST_S) / max(num_pages, 1))

    def block_worth(self, use: Use, *, recompute_s: float) -> float:
        return use.heat + math.log(max(recompute_s, MIN_COST_S))

    def params(self) -> tuple[tuple[str, float], ...]:
        return (("span_turnovers", self._span),)


def _log_add(one: float, other: float) -> float:
    """log(exp(one) + exp(other)), of numbers whose exponentials no float can hold."""
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high))


def _never() -> float:
    return 0.0


def make_economy(
    name: str,
    turnovers: Callable[[], float] = _never,
    *,
    span_turnovers: float = SPAN_TURNOVERS,
) -> Economy:
    """`turnovers`: how often the pool has been handed out (pool.turnovers); without one, uses
    never fade.

    Raises:
        ValueError: no such name, or a span that is none.
    """
    if name not in NAMES:
        raise ValueError(f"eviction is {name!r}; it must be one of {', '.join(NAMES)}")
    if not (span_turnovers > 0 and math.isfinite(span_turnovers)):
        raise ValueError(f"span_turnovers is {span_turnovers}; it must be finite and above 0")
    if name != ECONOMY:
        return Lru(name)
    return FadingEconomy(turnovers, span_turnovers=span_turnovers)
