"""Arrivals: when requests come, whoever sends them.

One record a process, and one pure function from record, chance and extent to instants. Bursts and
flash crowds are a Poisson process whose rate changes: unit arrivals, seen through the inverse of
the rate's integral. Knows no adapters (superposition.py has the processes that run per adapter) and
no files (traces.py). Called by make.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import must
from .renewal import Gaps, draw_gaps, instants_until
from .streams import Floats


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is wanted: a number of requests, or a span of time."""

    num_requests: int = 0
    span_s: float = 0.0

    def __post_init__(self) -> None:
        must(
            (self.num_requests > 0) != (self.span_s > 0),
            f"num_requests {self.num_requests} and span_s {self.span_s}: one of them, above 0",
        )


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals at a steady rate."""


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps of shape 1/cv^2, as in S-LoRA: cv 1 is Poisson, more comes in clumps."""

    cv: float


@dataclass(frozen=True, slots=True)
class OnOff:
    """Busy and quiet times in turns, each exponential: a Markov-modulated Poisson process."""

    busy_s: float  # mean dwell time
    quiet_s: float
    quiet_ratio: float = 0.0  # rate when quiet over rate when busy; 0: silent

    def __post_init__(self) -> None:
        must(self.busy_s > 0, f"busy_s {self.busy_s}: must be above 0")
        must(self.quiet_s > 0, f"quiet_s {self.quiet_s}: must be above 0")
        must(0 <= self.quiet_ratio <= 1, f"quiet_ratio {self.quiet_ratio}: from 0 to 1")

    @property
    def busy_share(self) -> float:
        """Of the time."""
        return self.busy_s / (self.busy_s + self.quiet_s)

    @property
    def busy_factor(self) -> float:
        """Rate when busy over the mean rate."""
        return 1 / (self.busy_share + (1 - self.busy_share) * self.quiet_ratio)


@dataclass(frozen=True, slots=True)
class FlashCrowd:
    """The steady rate, and a spike: factor x the rate, for so long, from then on."""

    factor: float
    at_s: float
    for_s: float

    def __post_init__(self) -> None:
        must(self.factor > 0, f"factor {self.factor}: must be above 0")
        must(self.at_s >= 0, f"at_s {self.at_s}: must not be negative")
        must(self.for_s > 0, f"for_s {self.for_s}: must be above 0")


@dataclass(frozen=True, slots=True)
class Batched:
    """Poisson, written down in steps: all of a step at its beginning (Mooncake's trace: 3 s)."""

    every_s: float

    def __post_init__(self) -> None:
        must(self.every_s > 0, f"every_s {self.every_s}: must be above 0")


_TURNS = 256  # of busy and quiet, drawn at a time

Process = Poisson | Gamma | OnOff | FlashCrowd | Batched


def draw_instants(
    process: Process, rng: np.random.Generator, *, rate_per_s: float, extent: Extent
) -> Floats:
    """Ascending, from 0. `rate_per_s` is the mean; of a flash crowd, the rate outside the spike."""
    must(rate_per_s > 0, f"rate_per_s {rate_per_s}: must be above 0")
    if isinstance(process, Gamma):
        gaps = Gaps(process.cv)
        if extent.span_s:
            return instants_until(gaps, rng, rate_per_s=rate_per_s, end_s=extent.span_s)
        return np.cumsum(draw_gaps(gaps, rng, extent.num_requests)) / rate_per_s
    if extent.span_s:
        at_s, mass = _path(process, rng, rate_per_s=rate_per_s, end_s=extent.span_s)
        masses = np.sort(rng.random(rng.poisson(mass[-1])) * mass[-1])
    else:
        # Unit arrivals are drawn first: another rate gives the same ones at other instants.
        masses = np.cumsum(rng.standard_exponential(extent.num_requests))
        at_s, mass = _path(process, rng, rate_per_s=rate_per_s, end_mass=float(masses[-1]))
    instants = np.interp(masses, mass, at_s)
    if isinstance(process, Batched):
        return np.floor(instants / process.every_s) * process.every_s
    return instants


def on_off_idc(process: OnOff, *, rate_per_s: float, window_s: float) -> float:
    """Variance over mean of the counts in windows, as theory has it (Fischer and Meier-Hellstern,
    The MMPP cookbook, 1993): what settings are chosen by, and tests judge by.
    """
    leaving_per_s = 1 / process.busy_s + 1 / process.quiet_s
    busy = process.busy_share
    step = rate_per_s * process.busy_factor * (1 - process.quiet_ratio)  # between the two rates
    limit = 2 * busy * (1 - busy) * step**2 / (rate_per_s * leaving_per_s)
    x = leaving_per_s * window_s
    return 1 + limit * (1 + math.expm1(-x) / x)


def _path(
    process: Poisson | OnOff | FlashCrowd | Batched,
    rng: np.random.Generator,
    *,
    rate_per_s: float,
    end_s: float = math.inf,
    end_mass: float = math.inf,
) -> tuple[Floats, Floats]:
    """The rate's integral, straight between corners: instants, and arrivals expected by then.

    It ends at `end_s`, or at the corner after `end_mass`.
    """
    if isinstance(process, OnOff):
        dwells_s, rates = _dwells(process, rng, rate_per_s, end_s=end_s, end_mass=end_mass)
    elif isinstance(process, FlashCrowd):
        after_s = end_mass / rate_per_s if math.isinf(end_s) else end_s
        must(
            process.at_s < after_s,
            f"at_s {process.at_s}: the run is over at {after_s:.1f} s, before the crowd comes",
        )
        dwells_s = np.array([process.at_s, process.for_s, after_s])
        rates = rate_per_s * np.array([1.0, process.factor, 1.0])
    else:
        dwells_s = np.array([min(end_s, end_mass / rate_per_s)])
        rates = np.array([rate_per_s])
    at_s = np.concatenate([[0.0], np.cumsum(dwells_s)])
    mass = np.concatenate([[0.0], np.cumsum(dwells_s * rates)])
    if math.isinf(end_s):
        return at_s, mass
    inside = at_s < end_s
    return (
        np.append(at_s[inside], end_s),
        np.append(mass[inside], np.interp(end_s, at_s, mass)),
    )


def _dwells(
    process: OnOff, rng: np.random.Generator, rate_per_s: float, *, end_s: float, end_mass: float
) -> tuple[Floats, Floats]:
    """Lengths of the turns and their rates, begun as if it had always run (exponential turns have
    no memory), until the end is passed.
    """
    busy_rate = rate_per_s * process.busy_factor
    turns = [(process.busy_s, busy_rate), (process.quiet_s, busy_rate * process.quiet_ratio)]
    if rng.random() >= process.busy_share:
        turns.reverse()
    mean_s, rates = (np.tile(column, _TURNS // 2) for column in np.array(turns).T)
    parts: list[Floats] = []
    passed_s, passed = 0.0, 0.0
    while passed_s < end_s and passed < end_mass:
        parts.append(mean_s * rng.standard_exponential(_TURNS))
        passed_s += float(parts[-1].sum())
        passed += float(parts[-1] @ rates)
    return np.concatenate(parts), np.tile(rates, len(parts))
