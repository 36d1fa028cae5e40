"""What a workload looks like: moments, percentiles and shares of what was really drawn.

Pure: a workload in, numbers out. Knows no settings and no tables (report.py puts the published
figures beside these). Called by `__main__.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .records import BASE, Workload
from .streams import Floats

WINDOWS_S = (1.0, 10.0, 60.0)
TOPS = (1, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class Tokens:
    mean: float
    sd: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Moments:
    num_requests: int
    rate_per_s: float  # over the span from 0 to the last request
    gap_cv: float  # NaN: fewer than three requests
    idc: tuple[float, ...]  # of counts in WINDOWS_S; NaN: fewer than two whole windows
    prompt: Tokens
    answer: Tokens
    rank_correlation: float  # Spearman's, of prompt and answer; NaN: one of them is constant
    base_share: float
    top_shares: tuple[float, ...]  # of requests with adapters, to the TOPS most asked for
    rank_shares: dict[int, float]  # of requests with adapters
    mean_turns: float  # of conversations; 1: requests stand alone


def moments_of(workload: Workload) -> Moments:
    requests = workload.requests
    at_s = np.array([request.at_s for request in requests])
    prompt = np.array([request.num_prompt_tokens for request in requests])
    answer = np.array([request.num_new_tokens for request in requests])
    asked = Counter(request.adapter for request in requests if request.adapter != BASE)
    counts = sorted(asked.values(), reverse=True)
    num_asked = max(sum(counts), 1)
    ranks = {adapter.name: adapter.rank for adapter in workload.adapters}
    by_rank: Counter[int] = Counter()
    for name, count in asked.items():
        by_rank[ranks[name]] += count
    num_first = sum(request.turn == 0 for request in requests)
    return Moments(
        num_requests=len(requests),
        rate_per_s=len(requests) / workload.span_s if workload.span_s else math.nan,
        gap_cv=_cv(np.diff(at_s)),
        idc=tuple(dispersion(at_s, window_s) for window_s in WINDOWS_S),
        prompt=_tokens(prompt),
        answer=_tokens(answer),
        rank_correlation=_spearman(prompt, answer),
        base_share=1 - sum(counts) / len(requests) if requests else math.nan,
        top_shares=tuple(sum(counts[:top]) / num_asked for top in TOPS),
        rank_shares={rank: count / num_asked for rank, count in sorted(by_rank.items())},
        mean_turns=len(requests) / num_first if num_first else math.nan,
    )


def dispersion(at_s: Floats, window_s: float) -> float:
    """Variance over mean of the counts in whole windows: 1 for Poisson, whatever the window."""
    num_windows = int(at_s[-1] // window_s) if len(at_s) else 0
    if num_windows < 2:
        return math.nan
    counts = np.bincount((at_s // window_s).astype(np.int64), minlength=num_windows)[:num_windows]
    return float(counts.var(ddof=1) / counts.mean()) if counts.any() else math.nan


def _cv(gaps: Floats) -> float:
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.any() else math.nan


def _tokens(column: Floats) -> Tokens:
    if not len(column):
        return Tokens(*[math.nan] * 6)
    p50, p90, p95, p99 = np.percentile(column, (50, 90, 95, 99)).tolist()
    return Tokens(float(column.mean()), float(column.std()), p50, p90, p95, p99)


def _spearman(left: Floats, right: Floats) -> float:
    if len(left) < 2 or left.min() == left.max() or right.min() == right.max():
        return math.nan
    return float(np.corrcoef(_places(left), _places(right))[0, 1])


def _places(column: Floats) -> Floats:
    """Equal values share the mean of their places."""
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2)[inverse]
