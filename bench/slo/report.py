"""What a run of the bench measured, and its rows: one policy at one load, over all rounds.

Pure. A row's figures are means over the rounds, the ends of intervals too: rounds repeat the same
requests, so that two of them say no more about the draw than one does, and their difference is
told by the comparisons instead. Called by command.py; drawn by table.py and document.py.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..machine import Machine
from ..throughput.workload import Place
from ..workload.records import Workload
from .bounds import BoundsRule
from .cells import Cell, Offer
from .figures import Figures, figures
from .intervals import Interval, mean_of_repeats
from .pairs import Comparison, compare
from .rates import Capacity


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run."""

    command: str  # that it was asked for with
    is_quick: bool  # few requests, so nothing is claimed about the rates
    policies: tuple[str, ...]
    model: str  # what it is
    workload: Workload  # as drawn, with its bounds, before it was offered at the rates
    rule: BoundsRule
    capacity: Capacity
    offers: tuple[Offer, ...]
    cells: tuple[Cell, ...]
    place: Place  # of every server
    flags: tuple[str, ...]  # of the servers
    machine: Machine
    load_before: float  # load average of the last minute before anything ran
    wall_s: float  # of the whole run

    @property
    def failures(self) -> tuple[str, ...]:
        """Why this run is no result; empty when it is one."""
        return tuple(
            f"round {cell.turn.round_idx + 1}, {self.offers[cell.turn.offer_idx].label}, "
            f"{cell.turn.policy}: {why}"
            for cell in self.cells
            for why in cell.failures
        )


@dataclass(frozen=True, slots=True)
class Row:
    policy: str
    offer: Offer
    num_rounds: int
    attainment: Interval
    goodput_per_s: Interval
    ttft_p50_s: float  # NaN: no token in any round
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    tokens_per_s: float
    outcomes: dict[str, int]  # of all rounds together
    lag_p99_ms: float  # the largest of the rounds
    rounds: tuple[Figures, ...]


def make_rows(report: Report) -> tuple[Row, ...]:
    """By load, then by policy; none of a cell whose requests are not all there."""
    return tuple(
        _row(policy, offer, rounds)
        for offer_idx, offer in enumerate(report.offers)
        for policy in report.policies
        if (rounds := _rounds(report, offer_idx, policy))
    )


def _rounds(report: Report, offer_idx: int, policy: str) -> tuple[Figures, ...]:
    offer = report.offers[offer_idx]
    return tuple(
        figures(cell.run, offer.workload, report.rule)
        for cell in report.cells
        if (cell.turn.offer_idx, cell.turn.policy) == (offer_idx, policy)
        and len(cell.run.requests) == len(offer.workload.requests)
    )


def _row(policy: str, offer: Offer, rounds: Sequence[Figures]) -> Row:
    def mean(of: Callable[[Figures], float]) -> float:
        return statistics.fmean(of(one) for one in rounds)

    counts: Counter[str] = Counter()
    for one in rounds:
        counts.update(one.outcomes)
    return Row(
        policy=policy,
        offer=offer,
        num_rounds=len(rounds),
        attainment=mean_of_repeats(one.attainment for one in rounds),
        goodput_per_s=mean_of_repeats(one.goodput_per_s for one in rounds),
        ttft_p50_s=mean(lambda one: one.ttft_s.p50.value),
        ttft_p99_s=mean(lambda one: one.ttft_s.p99.value),
        tpot_p50_s=mean(lambda one: one.tpot_s.p50.value),
        tpot_p99_s=mean(lambda one: one.tpot_s.p99.value),
        tokens_per_s=mean(lambda one: one.tokens_per_s),
        outcomes=dict(counts),
        lag_p99_ms=max(one.lag.p99_ms for one in rounds),
        rounds=tuple(rounds),
    )


@dataclass(frozen=True, slots=True)
class Metric:
    name: str  # with its unit
    of: Callable[[Figures], float]
    higher_is_better: bool


COMPARED = (
    Metric("attainment", lambda one: one.attainment.value, higher_is_better=True),
    Metric("goodput, requests/s", lambda one: one.goodput_per_s.value, higher_is_better=True),
    Metric("TTFT median of all, s", lambda one: one.ttft_median_of_all_s, higher_is_better=False),
    Metric("TPOT median of all, s", lambda one: one.tpot_median_of_all_s, higher_is_better=False),
)


@dataclass(frozen=True, slots=True)
class LoadComparison:
    label: str  # of the offer
    comparison: Comparison


def make_comparisons(rows: Sequence[Row]) -> tuple[LoadComparison, ...]:
    """Each policy against the first, load by load, round by round."""
    found: list[LoadComparison] = []
    for offer in dict.fromkeys(row.offer.label for row in rows):
        first, *others = (row for row in rows if row.offer.label == offer)
        for other in others:
            if other.num_rounds != first.num_rounds:
                continue  # a cell of theirs failed, which is told in its place
            found += [LoadComparison(offer, _compare(metric, first, other)) for metric in COMPARED]
    return tuple(found)


def _compare(metric: Metric, first: Row, other: Row) -> Comparison:
    return compare(
        metric.name,
        (first.policy, other.policy),
        a=[metric.of(one) for one in first.rounds],
        b=[metric.of(one) for one in other.rounds],
        higher_is_better=metric.higher_is_better,
    )
