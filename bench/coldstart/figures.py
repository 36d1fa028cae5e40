"""What the cells say: a row's figures by label, its ratios, and what two equal servers differ by.

Pure. Times to first tokens count from the instants at which requests were due; requests of all
rounds of a row count alike. A ratio is one label's mean over another's; the spread of two equal
servers is the largest ratio, whichever is above, of their figures round by round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from ..slo.stamps import RequestStamps
from .sizes import AGAIN, AUTO, CACHED, LABELS, SINGLE_WAYS, WAIT
from .study import Cell
from .told import Told
from .workloads import is_bystander

MIN_WAIT_RATIO = 1.3  # of waiting over the ideal: below, there is no problem to be solved


@dataclass(frozen=True, slots=True)
class Times:
    """Of times; infinite: somebody never got his token."""

    mean_s: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """One label of a row, over all its rounds."""

    label: str
    num_requests: int  # cold ones, or in their place
    ttft: Times
    tpot_s: float  # mean of the cold requests'
    bystander_tpot_s: float  # mean of the bystanders'; NaN: there were none
    bystander_gap_p99_s: float  # between two of their tokens
    chosen: Mapping[str, int]  # way -> cold requests that started so; empty: all were warm
    foretold: float  # median of predicted / measured, from choice to first token; NaN: none was
    load_s: float  # mean time of a load, from order to resident; NaN: there was none
    ttft_by_round_s: tuple[float, ...]  # means
    bystander_tpot_by_round_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RowFigures:
    name: str
    part: str
    ratio: float
    num_rounds: int
    by_label: Mapping[str, LabelFigures]

    def ttft_ratio(self, label: str, over: str = CACHED) -> float:
        """NaN: one of them was not run."""
        if not {label, over} <= self.by_label.keys():
            return math.nan
        return self.by_label[label].ttft.mean_s / self.by_label[over].ttft.mean_s

    def p99_ratio(self, label: str, over: str = CACHED) -> float:
        if not {label, over} <= self.by_label.keys():
            return math.nan
        return self.by_label[label].ttft.p99_s / self.by_label[over].ttft.p99_s

    @property
    def best_single(self) -> str:
        """The way that was the best of those that are always taken; empty: none was run."""
        there = [way for way in SINGLE_WAYS if way in self.by_label]
        return min(there, key=lambda way: self.by_label[way].ttft.mean_s, default="")

    @property
    def bystander_ratio(self) -> float:
        """Of `auto` over the ideal."""
        if not {AUTO, CACHED} <= self.by_label.keys():
            return math.nan
        return self.by_label[AUTO].bystander_tpot_s / self.by_label[CACHED].bystander_tpot_s

    @property
    def spread(self) -> float:
        """Of mean times to first tokens; NaN: not measured."""
        return self._of_equals(lambda one: one.ttft_by_round_s)

    @property
    def bystander_spread(self) -> float:
        return self._of_equals(lambda one: one.bystander_tpot_by_round_s)

    def _of_equals(self, values: Callable[[LabelFigures], Sequence[float]]) -> float:
        if not {CACHED, AGAIN} <= self.by_label.keys():
            return math.nan
        one, other = values(self.by_label[CACHED]), values(self.by_label[AGAIN])
        ratios = [a / b for a, b in zip(one, other, strict=True) if a > 0 and b > 0]
        return max((max(ratio, 1 / ratio) for ratio in ratios), default=math.nan)

    @property
    def counts(self) -> bool:
        """Whether there is a problem to be solved: waiting costs enough."""
        return self.ttft_ratio(WAIT) >= MIN_WAIT_RATIO


def rows_of(cells: Sequence[Cell]) -> list[RowFigures]:
    """In the order of the cells."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.row.name, []).append(cell)
    return [_row(of_row) for of_row in by_name.values()]


def _row(cells: Sequence[Cell]) -> RowFigures:
    row = cells[0].row
    by_label = {
        label: label_figures(label, of_label)
        for label in LABELS
        if (of_label := [cell for cell in cells if cell.label == label])
    }
    return RowFigures(row.name, row.part, row.ratio, row.num_rounds, by_label)


def label_figures(label: str, cells: Sequence[Cell]) -> LabelFigures:
    cold = [one for cell in cells for one in cold_of(cell)]
    beside = [stamps for cell in cells for stamps in bystanders_of(cell)]
    told = [told for _, told in cold]
    loads_s = [load_s for cell in cells for load_s in cell.loads_s.values()]
    foretold = [
        one.predicted_s / one.measured_s
        for one in told
        if one.predicted_s > 0 and one.measured_s > 0
    ]
    return LabelFigures(
        label,
        len(cold),
        times_of(ttft_s(stamps) for stamps, _ in cold),
        tpot_s=mean_tpot_s(stamps for stamps, _ in cold),
        bystander_tpot_s=mean_tpot_s(beside),
        bystander_gap_p99_s=_p99(gaps_s(beside)),
        chosen=dict(Counter(one.way for one in told if one.way)),
        foretold=median(foretold) if foretold else math.nan,
        load_s=fmean(loads_s) if loads_s else math.nan,
        ttft_by_round_s=tuple(
            fmean(ttft_s(stamps) for stamps, _ in cold_of(cell)) for cell in cells
        ),
        bystander_tpot_by_round_s=tuple(mean_tpot_s(bystanders_of(cell)) for cell in cells),
    )


def cold_of(cell: Cell) -> Iterator[tuple[RequestStamps, Told]]:
    """Requests that are judged, in the workload's order."""
    answered = cell.answered
    for request, stamps, told in zip(
        cell.workload.requests, answered.run.requests, answered.told, strict=True
    ):
        if not is_bystander(request):
            yield stamps, told


def bystanders_of(cell: Cell) -> list[RequestStamps]:
    pairs = zip(cell.workload.requests, cell.answered.run.requests, strict=True)
    return [stamps for request, stamps in pairs if is_bystander(request)]


def ttft_s(stamps: RequestStamps) -> float:
    """From the instant it was due; infinite without a token."""
    return math.inf if math.isnan(stamps.first_s) else stamps.first_s - stamps.due_s


def mean_tpot_s(requests: Iterable[RequestStamps]) -> float:
    """NaN: none has two tokens."""
    found = [
        (stamps.last_s - stamps.first_s) / (stamps.num_tokens - 1)
        for stamps in requests
        if stamps.num_tokens > 1
    ]
    return fmean(found) if found else math.nan


def gaps_s(requests: Iterable[RequestStamps]) -> list[float]:
    """From one piece of an answer to the next."""
    return [after - before for stamps in requests for before, after in pairwise(stamps.piece_s)]


def times_of(times_s: Iterable[float]) -> Times:
    found = sorted(times_s)
    return Times(fmean(found), median(found), _p99(found))


def _p99(values: Sequence[float]) -> float:
    """The smallest value that 99 of 100 do not exceed; NaN: there are none."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else math.nan
