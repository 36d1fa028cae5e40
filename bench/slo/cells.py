"""The cells of a run in their order: each load and policy of each round, one after the other.

Owns the order (policies take turns on the same load, and change places from round to round, so
that no policy always comes after another), what makes a cell no result, and the one repetition
of a cell whose sender was late. No server meets the same tokens in two cells, and all policies
meet the same in one. Knows no process and no figure: servers and sender are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..workload.records import Workload
from .counters import Counters, counted_between
from .lag import LAG_LIMIT_MS, LagReport, lag_of
from .other_tokens import with_other_tokens
from .stamps import Outcome, Run

NUM_TRIES = 2


class Server(Protocol):
    @property
    def policy(self) -> str: ...

    def settle(self) -> Counters: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A load that every policy gets."""

    label: str  # "1.2x": of the capacity; "6/s": an absolute rate
    rate_per_s: float  # requests, on average
    workload: Workload  # at that rate, each request with its bounds


@dataclass(frozen=True, slots=True)
class Turn:
    """Where in the run a cell stands."""

    round_idx: int
    offer_idx: int
    policy: str


@dataclass(frozen=True, slots=True)
class Cell:
    turn: Turn
    run: Run
    lag: LagReport
    counters: Counters  # the server's, from before to after
    late: tuple[LagReport, ...]  # of tries before this one, which do not count
    failures: tuple[str, ...]  # why it is no result; empty when it is one


Send = Callable[[str, Workload], Run]  # policy, workload
WarmUp = Callable[[str], None]  # by policy: one request, answered in full


def cell_order(num_rounds: int, num_offers: int, policies: Sequence[str]) -> Iterator[Turn]:
    for round_idx in range(num_rounds):
        ordered = policies if round_idx % 2 == 0 else policies[::-1]
        for offer_idx in range(num_offers):
            for policy in ordered:
                yield Turn(round_idx, offer_idx, policy)


def run_cells(
    servers: Mapping[str, Server],
    offers: Sequence[Offer],
    *,
    num_rounds: int,
    warm_up: WarmUp,
    send: Send,
    tell: Callable[[str], None],
) -> list[Cell]:
    """Every cell, those that are no result among them.

    Raises:
        ServerUnfit: a server is not there any more, or never idle again.
    """
    cells: list[Cell] = []
    for turn in cell_order(num_rounds, len(offers), list(servers)):
        offer = offers[turn.offer_idx]
        cell = _run_cell(turn, servers[turn.policy], offer, warm_up=warm_up, send=send)
        cells.append(cell)
        tell(f"round {turn.round_idx + 1}, {offer.label}, {turn.policy}: {_told(cell)}")
    return cells


def _run_cell(turn: Turn, server: Server, offer: Offer, *, warm_up: WarmUp, send: Send) -> Cell:
    """A late sender says nothing of the server, so its load is sent once more, and the file says
    so. Where anything else is wrong too, it counts the first time.
    """
    late: list[LagReport] = []
    while True:
        server.settle()
        warm_up(turn.policy)
        before = server.settle()
        salt = f"round {turn.round_idx}, offer {turn.offer_idx}, try {len(late)}"
        run = send(turn.policy, with_other_tokens(offer.workload, salt))
        counters = counted_between(before, server.settle())
        lag = lag_of(run)
        failures = cell_failures(run, offer.workload, lag, counters)
        is_late_alone = lag.p99_ms > LAG_LIMIT_MS and len(failures) == 1
        if not is_late_alone or len(late) + 1 == NUM_TRIES:
            return Cell(turn, run, lag, counters, tuple(late), failures)
        late.append(lag)


def cell_failures(
    run: Run, workload: Workload, lag: LagReport, counters: Counters
) -> tuple[str, ...]:
    """Refusals and timeouts are answers of a full server; these are not."""
    found: list[str] = []
    if lag.p99_ms > LAG_LIMIT_MS:
        found.append(
            f"send lag P99 is {lag.p99_ms:.1f} ms, the limit {LAG_LIMIT_MS:g} ms: "
            "the load sent is not the load asked for"
        )
    if lost := len(workload.requests) - len(run.requests):
        found.append(f"{lost} of {len(workload.requests)} requests are lost")
    if failed := [one for one in run.requests if one.outcome is Outcome.FAILED]:
        found.append(f"{len(failed)} requests failed, the first with: {failed[0].error}")
    num_ok = sum(one.outcome is Outcome.OK for one in run.requests)
    if counters["requests_finished_total"] < num_ok:
        found.append(
            f"the server finished {counters['requests_finished_total']} requests, "
            f"the client has {num_ok} whole answers"
        )
    return tuple(found)


def _told(cell: Cell) -> str:
    ok = sum(one.outcome is Outcome.OK for one in cell.run.requests)
    told = f"{ok} of {len(cell.run.requests)} answered, send lag P99 {cell.lag.p99_ms:.1f} ms"
    if cell.late:
        told += f", after {len(cell.late)} late try"
    return told + "".join(f"; FAILED: {why}" for why in cell.failures)
