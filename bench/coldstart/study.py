"""The cells of a run in their order: every row on servers of every label, one after the other.

Owns the order (labels take turns on the same load, and the other way round in every second round),
what makes a cell no result, and the one repetition of a cell whose sender was late. A request
counts as cold only if the server says that its adapter was not in the pool as it came. Knows no
process: servers and sender are behind `World` (world.py has the real ones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from ..slo.cells import cell_failures
from ..slo.counters import Counters, counted_between
from ..slo.lag import LAG_LIMIT_MS, LagReport, lag_of
from ..slo.other_tokens import with_other_tokens
from ..workload.records import Workload
from .send import Answered
from .sizes import BURST, IDEALS, LOAD, Row, Sizes
from .workloads import Fleet, draw_fleet, is_bystander, make_load

NUM_TRIES = 2
# Requests of a burst are due at one instant and leave one after the other.
BURST_LAG_LIMIT_MS = 150.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What the servers can do without a link to wait for."""

    prefill_s: float  # of 256 tokens and a warm adapter of rank 64, alone: the unit of time
    capacity_per_s: float  # requests of the sustained load, in a closed loop, all adapters cached


@dataclass(frozen=True, slots=True)
class Link:
    """Of the servers of one ratio."""

    ratio: float  # that was asked for: load(rank 64) / prefill(256); 0: it is the device's own
    bytes_per_s: float  # emulated; 0: none
    adapter_bytes: int  # that cross for an adapter of rank 64


class Stage(Protocol):
    """Servers of one ratio, all up."""

    @property
    def link(self) -> Link: ...

    def prepare(self, label: str, workload: Workload, *, on_disk: bool) -> None:
        """The cell's cold adapters into host memory (or not even there) and out of the pool; of an
        ideal, into the pool. Raises what tells that it did not come to that.
        """
        ...

    def settle(self, label: str) -> Counters: ...

    def send(self, label: str, workload: Workload) -> Answered: ...

    def loads_s(self, label: str, workload: Workload) -> Mapping[str, float]:
        """Adapter -> what its load took, from order to resident, where it had one."""
        ...


class World(Protocol):
    def probe(self) -> Probe: ...

    def stage(self, ratio: float, prefill_s: float) -> AbstractContextManager[Stage]: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One load on one server."""

    row: Row
    round_idx: int
    label: str
    workload: Workload  # as it was sent
    answered: Answered
    loads_s: Mapping[str, float]
    lag: LagReport
    late: tuple[LagReport, ...]  # of tries before this one, which do not count
    failures: tuple[str, ...]  # why it is no result; empty when it is one

    @property
    def told(self) -> str:
        return f"round {self.round_idx + 1}, {self.row.name}, {self.label}"


@dataclass(frozen=True, slots=True)
class Study:
    probe: Probe
    links: tuple[Link, ...]
    cells: tuple[Cell, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"{cell.told}: {why}" for cell in self.cells for why in cell.failures)


@dataclass(frozen=True, slots=True)
class Turn:
    row: Row
    round_idx: int
    label: str


def turns_of(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[Turn]:
    """Of the rows of one ratio."""
    for round_idx in range(max(row.num_rounds for row in rows)):
        ordered = labels if round_idx % 2 == 0 else labels[::-1]
        for row in rows:
            if round_idx < row.num_rounds:
                for label in ordered:
                    yield Turn(row, round_idx, label)


def run_study(sizes: Sizes, world: World, *, tell: Callable[[str], None]) -> Study:
    """Every cell, those that are no result among them."""
    fleet, probe = draw_fleet(sizes), world.probe()
    tell(
        f"alone, a prefill of 256 tokens takes {1e3 * probe.prefill_s:.1f} ms; capacity "
        f"{probe.capacity_per_s:.2f} requests/s, offered {LOAD * probe.capacity_per_s:.2f}"
    )
    cells: list[Cell] = []
    links: list[Link] = []
    for ratio in sizes.ratios:
        rows = [row for row in sizes.rows if row.ratio == ratio]
        with world.stage(ratio, probe.prefill_s) as stage:
            links.append(stage.link)
            for turn in turns_of(rows, sizes.labels):
                cells.append(_run_cell(turn, stage, _load(turn, sizes, fleet, probe)))
                tell(line_of(cells[-1]))
    return Study(probe, tuple(links), tuple(cells))


def _load(turn: Turn, sizes: Sizes, fleet: Fleet, probe: Probe) -> Workload:
    """The same for all labels of a round, in tokens that no other round has."""
    rate_per_s = LOAD * probe.capacity_per_s
    load = make_load(turn.row, sizes, fleet, rate_per_s=rate_per_s, prefill_s=probe.prefill_s)
    return with_other_tokens(load, f"{turn.row.name}, round {turn.round_idx}")


def _run_cell(turn: Turn, stage: Stage, workload: Workload) -> Cell:
    """A late sender says nothing of the server: its load is sent once more, and the file says so.
    Where anything else is wrong too, it counts the first time.
    """
    late: list[LagReport] = []
    while True:
        stage.prepare(turn.label, workload, on_disk=turn.row.is_disk_cold)
        before = stage.settle(turn.label)
        answered = stage.send(turn.label, workload)
        counters = counted_between(before, stage.settle(turn.label))
        lag, limit_ms = lag_of(answered.run), lag_limit_ms(turn.row)
        failures = (
            *cell_failures(answered.run, workload, replace(lag, p99_ms=0.0), counters),
            *temperature_failures(turn.label, workload, answered),
        )
        if lag.p99_ms > limit_ms and not failures and len(late) + 1 < NUM_TRIES:
            late.append(lag)
            continue
        if lag.p99_ms > limit_ms:
            told = f"send lag P99 is {lag.p99_ms:.1f} ms, the limit {limit_ms:g} ms"
            failures = (*failures, told)
        loads_s = stage.loads_s(turn.label, workload)
        return Cell(
            *(turn.row, turn.round_idx, turn.label, workload, answered, loads_s, lag),
            late=tuple(late),
            failures=failures,
        )


def lag_limit_ms(row: Row) -> float:
    """Of the P99; time to a first token counts from the due instant in any case."""
    return BURST_LAG_LIMIT_MS if row.part == BURST else LAG_LIMIT_MS


def temperature_failures(label: str, workload: Workload, answered: Answered) -> list[str]:
    """Requests that were to be cold and were warm, or the other way about."""
    wrong = [
        request.adapter
        for request, told in zip(workload.requests, answered.told, strict=True)
        if bool(told.way) == (label in IDEALS or is_bystander(request))
    ]
    if not wrong:
        return []
    asked, found = ("cold", "warm") if label not in IDEALS else ("warm", "cold")
    return [f"{len(wrong)} requests of {asked} adapters were {found}, the first of {wrong[0]}"]


def line_of(cell: Cell) -> str:
    ttfts_ms = [
        1e3 * (stamps.first_s - stamps.due_s)
        for request, stamps in zip(cell.workload.requests, cell.answered.run.requests, strict=True)
        if not is_bystander(request)
    ]
    mean_ms = sum(ttfts_ms) / len(ttfts_ms)
    told = f"{cell.told}: mean TTFT {mean_ms:.1f} ms, send lag P99 {cell.lag.p99_ms:.1f} ms"
    if cell.late:
        told += f", after {len(cell.late)} late try"
    return told + "".join(f"; FAILED: {why}" for why in cell.failures)
