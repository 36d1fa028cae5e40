"""What was drawn beside what was published: the lines that the command line prints.

Owns the published moments of the traces whose percentiles are in quantiles.py. Pure; called by
`__main__.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .fit import Scale
from .lengths import FromTable, PoolLengths
from .moments import TOPS, WINDOWS_S, Moments, Tokens
from .pools import POOLS, Spread
from .popularity import PoolShares
from .settings import WorkloadSettings


@dataclass(frozen=True, slots=True)
class Published:
    """Of a whole trace. Sources: quantiles.py."""

    rate_per_s: float
    gap_cv: float
    idc: tuple[float, float, float]  # at 1, 10, 60 s
    prompt: Tokens
    answer: Tokens
    rank_correlation: float


PUBLISHED = {
    "azure-code": Published(
        2.57,
        13.2,
        (13, 72, 164),
        Tokens(2048, 1974, 1469, 5187, 7303, 7436),
        Tokens(28, 60, 13, 55, 90, 251),
        -0.02,
    ),
    "azure-conv": Published(
        5.53,
        1.09,
        (1.4, 3.9, 16),
        Tokens(1155, 1109, 1020, 2734, 4083, 4142),
        Tokens(211, 163, 129, 424, 451, 601),
        0.07,
    ),
    "mooncake-conv": Published(
        3.40,
        3.0,
        (7.9, 2.1, 2.9),
        Tokens(12035, 15800, 6909, 27367, 39550, 85400),
        Tokens(343, 250, 350, 597, 698, 1118),
        0.07,
    ),
}


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    drawn: float
    published: float  # NaN: nothing is, or the settings differ from it


def lines_of(settings: WorkloadSettings, moments: Moments) -> list[Line]:
    lengths = settings.lengths
    trace = PUBLISHED.get(settings.name)  # instants are the preset's, at its own rate
    prompt = answer = Tokens(*[math.nan] * 6)
    if settings.scale == Scale() and settings.sessions is None:
        if isinstance(lengths, FromTable):
            prompt, answer = PUBLISHED[lengths.table].prompt, PUBLISHED[lengths.table].answer
        elif isinstance(lengths, PoolLengths):
            prompt = _of_spread(POOLS[lengths.pool].prompt)
            answer = _of_spread(POOLS[lengths.pool].answer)
    lines = [
        Line("rate, 1/s", moments.rate_per_s, settings.rate_per_s or math.nan),
        Line("CV of gaps", moments.gap_cv, trace.gap_cv if trace else math.nan),
    ]
    for i, window_s in enumerate(WINDOWS_S):
        published = trace.idc[i] if trace else math.nan
        lines.append(Line(f"IDC at {window_s:g} s", moments.idc[i], published))
    for name, drawn, published in (
        ("prompt", moments.prompt, prompt),
        ("answer", moments.answer, answer),
    ):
        lines += [
            Line(f"{name} {item.name}", getattr(drawn, item.name), getattr(published, item.name))
            for item in fields(Tokens)
        ]
    shares = [math.nan] * len(TOPS)
    if isinstance(settings.popularity, PoolShares):
        shares = list(POOLS[settings.popularity.pool].top_shares)
    lines += [
        Line(f"share of the top {top}", drawn, published)
        for top, drawn, published in zip(TOPS, moments.top_shares, shares, strict=True)
    ]
    lines += [
        Line(f"share of rank {rank}", share, math.nan)
        for rank, share in moments.rank_shares.items()
    ]
    return [*lines, Line("turns a conversation", moments.mean_turns, math.nan)]


def _of_spread(spread: Spread) -> Tokens:
    return Tokens(spread.mean, math.nan, spread.p50, spread.p90, math.nan, spread.p99)
