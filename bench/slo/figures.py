"""The figures of a run: attainment, goodput, latencies, by class and by adapter. Pure.

Stamps, the workload and the bounds go in; the same function judges live and simulated runs. A
refusal, a timeout and a failure are misses like a late token. Goodput is requests that met both
bounds per second of the *offered span*: first due to last due, and one mean gap for the last
request's own. So it is attainment times the offered rate, and neither the time that the server
needs to drain nor what it is spared by refusing can move it. What was really made per second
(`completed_per_s`, `tokens_per_s`) counts over the makespan, drain included.

The spreads of TTFT are of every request that got a token, those of TPOT and TPT of whole answers: a
policy that refuses many has spreads of few. So policies are compared by medians of all requests, in
which who got no token waited for ever.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ..workload.records import BASE, Workload
from .bounds import BoundsRule
from .classes import popularity_classes, rank_classes
from .intervals import Interval, Sample, wilson
from .judge import Judged, judge_run
from .lag import LagReport, lag_of
from .stamps import Outcome, RequestStamps, Run

Instants = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of durations; NaN in all but `count` where there is none."""

    count: int
    mean: float
    p50: Interval
    p90: Interval
    p99: Interval


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one class."""

    name: str
    num_requests: int
    num_met: int
    attainment: Interval  # share that met both bounds
    ttft_s: Spread


@dataclass(frozen=True, slots=True)
class AdapterSpread:
    """How attainment is shared out among the adapters that were asked for; the base is none."""

    num_adapters: int
    mean: float  # of the adapters' attainments, each counting once
    p10: float  # a tenth of them have less
    p50: float
    num_full: int  # all of whose requests met
    num_none: int  # none of whose requests did


@dataclass(frozen=True, slots=True)
class Figures:
    policy: str
    simulated: bool
    num_requests: int
    outcomes: dict[str, int]  # by Outcome's value, all of them
    num_late: int  # whole answers past the bound on TTFT
    num_slow: int  # whole answers past the bound on TPOT
    num_met: int
    attainment: Interval  # num_met / num_requests
    offered_span_s: float
    offered_per_s: float  # requests
    goodput_per_s: Interval  # requests that met both bounds
    makespan_s: float  # first due to last end
    completed_per_s: float  # whole answers over the makespan
    tokens_per_s: float  # tokens that came, of whole answers and others, over the makespan
    ttft_s: Spread
    ttft_median_of_all_s: float  # inf: half of them got no token
    tpot_s: Spread
    tpot_median_of_all_s: float  # inf: half are not whole; NaN: all have one token
    tpt_s: Spread
    itl_s: Spread  # gaps between tokens, all requests together; see `token_gaps_s`
    by_rank: tuple[Group, ...]
    by_popularity: tuple[Group, ...]
    adapters: AdapterSpread
    lag: LagReport


def figures(run: Run, workload: Workload, bounds: BoundsRule) -> Figures:
    """Raises:
    ValueError: no request at all, or a run of another workload.
    """
    judged = judge_run(run, workload, bounds)
    if not judged:
        raise ValueError(f"workload {workload.name!r} has no requests, so there are no figures")
    counts = Counter(stamps.outcome for stamps in run.requests)
    met = sum(one.met for one in judged)
    attainment = wilson(met, len(judged))
    span_s, makespan_s = offered_span_s(run), _makespan_s(run)
    per_s = len(judged) / span_s
    return Figures(
        policy=run.policy,
        simulated=run.simulated,
        num_requests=len(judged),
        outcomes={outcome.value: counts[outcome] for outcome in Outcome},
        num_late=sum(one.is_late for one in judged),
        num_slow=sum(one.is_slow for one in judged),
        num_met=met,
        attainment=attainment,
        offered_span_s=span_s,
        offered_per_s=per_s,
        goodput_per_s=scaled(attainment, per_s),
        makespan_s=makespan_s,
        completed_per_s=counts[Outcome.OK] / makespan_s,
        tokens_per_s=sum(stamps.num_tokens for stamps in run.requests) / makespan_s,
        ttft_s=spread_of([one.ttft_s for one in judged]),
        ttft_median_of_all_s=_median_of_all(judged, lambda one: one.ttft_s),
        tpot_s=spread_of([one.tpot_s for one in judged]),
        tpot_median_of_all_s=_median_of_all(
            [one for one in judged if not one.has_one_token], lambda one: one.tpot_s
        ),
        tpt_s=spread_of([one.tpt_s for one in judged]),
        itl_s=spread_of(*token_gaps_s(run.requests)),
        by_rank=_groups(judged, rank_classes(workload)),
        by_popularity=_groups(judged, popularity_classes(workload)),
        adapters=_adapters(judged, workload),
        lag=lag_of(run),
    )


def offered_span_s(run: Run) -> float:
    """Of a single instant, where no rate was offered, the makespan."""
    dues_s = [stamps.due_s for stamps in run.requests]
    gaps_s = max(dues_s) - min(dues_s)
    return gaps_s * len(dues_s) / (len(dues_s) - 1) if gaps_s else _makespan_s(run)


def token_gaps_s(requests: Sequence[RequestStamps]) -> tuple[Instants, Instants]:
    """Time between each token and the one before it, and how often each such gap counts.

    The k tokens of a piece share its gap evenly. So a run whose stamps keep first and last piece
    only has its mean here, and no tail.
    """
    piece_s = np.asarray([at_s for one in requests for at_s in one.piece_s], dtype=np.float64)
    tokens = np.asarray([count for one in requests for count in one.piece_tokens], np.float64)
    firsts = np.cumsum([0, *(len(one.piece_s) for one in requests if one.piece_s)])[:-1]
    gaps_s = np.delete(np.diff(piece_s, prepend=0.0), firsts)
    counts = np.delete(tokens, firsts)
    return gaps_s / np.maximum(counts, 1), counts


def spread_of(values: Sequence[float] | Instants, counts: Instants | None = None) -> Spread:
    """NaN among them do not count; `counts`: how often each does."""
    found = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(found)
    sample = Sample(found[known], None if counts is None else counts[known])
    p50, p90, p99 = map(sample.quantile, (0.5, 0.9, 0.99))
    return Spread(sample.count, sample.mean, p50, p90, p99)


def scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def _median_of_all(judged: Sequence[Judged], of_s: Callable[[Judged], float]) -> float:
    """Who has none waited for ever."""
    values_s = [math.inf if math.isnan(of_s(one)) else of_s(one) for one in judged]
    return median(values_s) if values_s else math.nan


def _makespan_s(run: Run) -> float:
    begin_s = min(stamps.due_s for stamps in run.requests)
    span_s = max(stamps.end_s for stamps in run.requests) - begin_s
    if span_s <= 0:
        raise ValueError(f"the run of {run.policy!r} took {span_s} s; it must have lasted")
    return span_s


def _groups(judged: Sequence[Judged], classes: Sequence[tuple[int, str]]) -> tuple[Group, ...]:
    """`classes`: of each request its class, with a number that orders them in front."""
    members: dict[tuple[int, str], list[Judged]] = defaultdict(list)
    for one, key in zip(judged, classes, strict=True):
        members[key].append(one)
    return tuple(_group(key[1], members[key]) for key in sorted(members))


def _group(name: str, members: Sequence[Judged]) -> Group:
    met = sum(one.met for one in members)
    ttft_s = spread_of([one.ttft_s for one in members])
    return Group(name, len(members), met, wilson(met, len(members)), ttft_s)


def _adapters(judged: Sequence[Judged], workload: Workload) -> AdapterSpread:
    mets: dict[str, list[bool]] = defaultdict(list)
    for one, request in zip(judged, workload.requests, strict=True):
        if request.adapter != BASE:
            mets[request.adapter].append(one.met)
    shares = np.asarray([sum(met) / len(met) for met in mets.values()])
    p10, p50 = np.quantile(shares, (0.1, 0.5)) if mets else (math.nan, math.nan)
    return AdapterSpread(
        num_adapters=len(shares),
        mean=float(shares.mean()) if mets else math.nan,
        p10=float(p10),
        p50=float(p50),
        num_full=int((shares == 1).sum()),
        num_none=int((shares == 0).sum()),
    )
