"""What a load on its way costs the steps of others, on an emulated link that is never idle.

Bystanders decode; beside them a client asks for one token at the pace of the link, an adapter's
time after the other, whatever became of the one before. In every other turn it names adapters that
are in the pool, and the link rests; else cold ones, so that a load is always on its way. So both
rows answer as many requests, and only the loads differ. Judged are the steps in the server's log in
which every bystander decodes, be an asker's prompt of a few tokens in them or not: both rows
have as many of those. Called by command.py.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import Client
from ...server.step_meter import MeteredStep
from ..cost.step_logs import Span, read_step_log, steps_within
from ..slo.asking import AskOne
from ..slo.live import CALL_TIMEOUT_S
from ..slo.rates import NoCapacity
from ..workload.records import WorkloadRequest
from .asks import Prompts, Serving, serving
from .registered import in_turn
from .sizes import NUM_BYSTANDERS, NUM_HOT, NUM_WARM, Sizes

QUIET, LOADING = "quiet", "loading"
MIN_STEPS = 40  # of a turn


@dataclass(frozen=True, slots=True)
class Crossing:
    p95_step_s: dict[str, tuple[float, ...]]  # of QUIET and LOADING, a figure a turn
    num_steps: dict[str, tuple[int, ...]]  # that were judged, of each turn
    num_asks: dict[str, tuple[int, ...]]  # beside the bystanders' own, of each turn
    num_loads: dict[str, tuple[int, ...]]  # of each turn; none in QUIET's
    loading_share: float  # of LOADING's turns in which a load was on its way, at least
    link_bytes_per_s: float


class TooFewSteps(Exception):
    """A turn had hardly a step in which everyone decodes."""


class NotQuiet(Exception):
    """An adapter was loaded in a turn that has none to compare with."""


@dataclass(frozen=True, slots=True)
class Turn:
    """As it was asked; its steps are read later."""

    span: Span
    num_asks: int  # beside the bystanders' own
    num_loads: int  # into the pool


@dataclass(slots=True)
class _Askers:
    """Who is asked for, by row; the warm ones are pinned, in both rows alike."""

    hot: Sequence[str]
    warm: Sequence[str]
    cold: Sequence[str]
    adapter_s: float  # between two asks
    names: Mapping[str, Iterator[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {QUIET: itertools.cycle(self.warm), LOADING: itertools.cycle(self.cold)}


def measure_crossing(
    base: Path,
    store: Path,
    names: Sequence[str],
    flags: Sequence[str],
    sizes: Sizes,
    *,
    link_bytes_per_s: float,
    adapter_s: float,
    tell: Callable[[str], None],
) -> Crossing:
    """`adapter_s`: what one adapter takes on that link.

    Raises:
        ServerFailed, ServerUnfit: the server does not start, stop, or stay as it was.
        NoCapacity, TooFewSteps: a request failed, or the turns are too short.
        NotQuiet: a quiet turn had a load.
    """
    turns: dict[str, list[Turn]] = {QUIET: [], LOADING: []}
    num_here = NUM_HOT + NUM_WARM
    who = _Askers(names[:NUM_HOT], names[NUM_HOT:num_here], names[num_here:], adapter_s)
    with tempfile.TemporaryDirectory(prefix="lorry-scale-") as home:
        log = Path(home) / "steps.csv"
        flags = (*flags, "--step-log", str(log), "--link-bytes-per-s", f"{link_bytes_per_s:.0f}")
        # Popular ones that a loading turn has asked for would come back in the quiet turn after it.
        flags = (*flags, "--no-prefetch")
        with serving(base, store, flags, Prompts()) as server:
            with Client(server.live.address, timeout_s=CALL_TIMEOUT_S) as client:
                for name in (*who.hot, *who.warm):
                    client.adapters.prefetch(name, pin=True)
            for round_idx in range(2 * sizes.num_rounds):
                for row in in_turn(list(turns), round_idx):
                    turns[row].append(_turn(server, who, row, sizes))
        steps = read_step_log(log)
    refuse_loads([turn.num_loads for turn in turns[QUIET]])
    judged = {row: [decode_steps_s(steps, one.span) for one in turns[row]] for row in turns}
    found = Crossing(
        {row: tuple(map(p95_of, of_row)) for row, of_row in judged.items()},
        {row: tuple(map(len, of_row)) for row, of_row in judged.items()},
        {row: tuple(turn.num_asks for turn in of_row) for row, of_row in turns.items()},
        {row: tuple(turn.num_loads for turn in of_row) for row, of_row in turns.items()},
        loading_share(turns[LOADING], adapter_s),
        link_bytes_per_s,
    )
    for row, p95s in found.p95_step_s.items():
        tell(
            f"{row}: P95 of decode steps, ms: {', '.join(f'{1e3 * s:.1f}' for s in p95s)}; "
            f"asks {sum(found.num_asks[row])}, loads {sum(found.num_loads[row])}"
        )
    return found


def _turn(server: Serving, who: _Askers, row: str, sizes: Sizes) -> Turn:
    server.touch([*who.hot, *who.warm])
    before = server.live.client.stats().adapter_loads_total
    prompts = server.prompts
    bystanders = [
        prompts.request(who.hot[idx % len(who.hot)], num_new=sizes.num_bystander_tokens)
        for idx in range(NUM_BYSTANDERS)
    ]

    async def ask_all(ask: AskOne) -> tuple[float, int]:
        """The instant at which the last bystander had its answer; the asks beside them."""

        async def short() -> None:
            await _ask(ask, prompts.request(next(who.names[row]), num_prompt=4, num_new=1))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_ask(ask, request)) for request in bystanders]
                over = asyncio.gather(*tasks, return_exceptions=True)  # the group tells
                num_asks = await ask_at_pace(short, group, over, every_s=who.adapter_s)
                ended_s = time.monotonic()
        except* NoCapacity as failures:
            raise failures.exceptions[0] from None
        return ended_s, num_asks

    began_s = time.monotonic()
    ended_s, num_asks = server.run(ask_all)
    server.live.settle()
    loads = server.live.client.stats().adapter_loads_total - before
    return Turn(Span(began_s, ended_s), num_asks, loads)


async def ask_at_pace(
    ask: Callable[[], Coroutine[Any, Any, None]],
    group: asyncio.TaskGroup,
    over: asyncio.Future[Any],
    *,
    every_s: float,
    now_s: Callable[[], float] = time.monotonic,
) -> int:
    """An open loop until `over`, in tasks of the group; how many. All that fell due are asked."""
    began_s, number = now_s(), 0
    while not over.done():
        since_s = now_s() - began_s
        for _ in range(due_by(since_s, every_s=every_s) - number):
            group.create_task(ask())
            number += 1
        await asyncio.wait([over], timeout=max(0.0, number * every_s - since_s))
    return number


def due_by(since_s: float, *, every_s: float) -> int:
    """Asks that are due so long after the first."""
    return 1 + int(since_s / every_s)


async def _ask(ask: AskOne, request: WorkloadRequest) -> None:
    reply = await ask(request)
    if reply.error:
        raise NoCapacity(f"a request of {request.adapter} failed: {reply.error}")


def refuse_loads(loads: Sequence[int]) -> None:
    """Of the quiet turns. Raises NotQuiet."""
    for idx, num_loads in enumerate(loads):
        if num_loads:
            raise NotQuiet(
                f"quiet turn {idx} had {num_loads} loads, where 0 are allowed: "
                f"the adapters that it asks for did not stay in the pool"
            )


def loading_share(turns: Sequence[Turn], adapter_s: float) -> float:
    span_s = sum(turn.span.ended_s - turn.span.began_s for turn in turns)
    return min(1.0, sum(turn.num_loads for turn in turns) * adapter_s / span_s)


def decode_steps_s(steps: Sequence[MeteredStep], span: Span) -> list[float]:
    """Seconds of those in which every bystander decodes."""
    return [
        step.seconds
        for step in steps_within(steps, span)
        if step.work.decode_rows == NUM_BYSTANDERS
    ]


def p95_of(seconds: Sequence[float]) -> float:
    """Raises TooFewSteps."""
    if len(seconds) < MIN_STEPS:
        raise TooFewSteps(f"{len(seconds)} steps in which everyone decodes; {MIN_STEPS} are needed")
    return float(np.quantile(seconds, 0.95))
