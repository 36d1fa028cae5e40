"""What a load on its way costs the steps of others, on an emulated link that is never idle.

Bystanders decode; in every other turn two clients beside them ask for one token of one cold
adapter after the other, so that a load is always on its way. Judged are the steps of the server's
log in which everyone decodes: those in which a cold adapter's prompt is computed are left out of
both sides. Called by command.py.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...server.step_meter import MeteredStep
from ..cost.step_logs import Span, read_step_log, steps_within
from ..slo.asking import AskOne
from ..slo.rates import NoCapacity
from ..workload.records import WorkloadRequest
from .asks import Prompts, Serving, serving
from .registered import in_turn
from .sizes import NUM_BYSTANDERS, NUM_HOT, Sizes

QUIET, LOADING = "quiet", "loading"
NUM_COLD_CLIENTS = 2
MIN_STEPS = 40  # of a turn


@dataclass(frozen=True, slots=True)
class Crossing:
    p95_step_s: dict[str, tuple[float, ...]]  # of QUIET and LOADING, a figure a turn
    num_loads: tuple[int, ...]  # of LOADING's turns
    loading_share: float  # of LOADING's turns in which a load was on its way, at least
    link_bytes_per_s: float


class TooFewSteps(Exception):
    """A turn had hardly a step in which everyone decodes."""


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
    """
    spans: dict[str, list[Span]] = {QUIET: [], LOADING: []}
    loads: list[int] = []
    hot, cold = list(names[:NUM_HOT]), itertools.cycle(names[NUM_HOT:])
    with tempfile.TemporaryDirectory(prefix="lorry-scale-") as home:
        log = Path(home) / "steps.csv"
        flags = (*flags, "--step-log", str(log), "--link-bytes-per-s", f"{link_bytes_per_s:.0f}")
        with serving(base, store, flags, Prompts()) as server:
            for round_idx in range(2 * sizes.num_rounds):
                for row in in_turn(list(spans), round_idx):
                    server.touch(hot)
                    before = server.live.client.stats().adapter_loads_total
                    spans[row].append(_turn(server, hot, cold if row == LOADING else None, sizes))
                    server.live.settle()
                    if row == LOADING:
                        loads.append(server.live.client.stats().adapter_loads_total - before)
        steps = read_step_log(log)
    found: dict[str, tuple[float, ...]] = {}
    for row, of_row in spans.items():
        found[row] = tuple(p95_of_decode(steps_within(steps, span)) for span in of_row)
        tell(f"{row}: P95 of decode steps, ms: {', '.join(f'{1e3 * s:.1f}' for s in found[row])}")
    span_s = sum(span.ended_s - span.began_s for span in spans[LOADING])
    return Crossing(
        found, tuple(loads), min(1.0, sum(loads) * adapter_s / span_s), link_bytes_per_s
    )


def _turn(server: Serving, hot: Sequence[str], cold: Iterator[str] | None, sizes: Sizes) -> Span:
    prompts = server.prompts
    bystanders = [
        prompts.request(hot[idx % len(hot)], num_new=sizes.num_bystander_tokens)
        for idx in range(NUM_BYSTANDERS)
    ]

    async def ask_all(ask: AskOne) -> float:
        """The instant at which the last bystander had its answer."""
        is_over = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_ask(ask, request)) for request in bystanders]
                if cold is not None:
                    for _ in range(NUM_COLD_CLIENTS):
                        group.create_task(_ask_cold(ask, cold, prompts, is_over))
                await asyncio.gather(*tasks)
                ended_s = time.monotonic()
                is_over.set()
        except* NoCapacity as failures:
            raise failures.exceptions[0] from None
        return ended_s

    began_s = time.monotonic()
    return Span(began_s, server.run(ask_all))


async def _ask_cold(
    ask: AskOne, cold: Iterator[str], prompts: Prompts, is_over: asyncio.Event
) -> None:
    """One after the other; the last one is awaited, not cancelled."""
    while not is_over.is_set():
        await _ask(ask, prompts.request(next(cold), num_prompt=4, num_new=1))


async def _ask(ask: AskOne, request: WorkloadRequest) -> None:
    reply = await ask(request)
    if reply.error:
        raise NoCapacity(f"a request of {request.adapter} failed: {reply.error}")


def p95_of_decode(steps: Sequence[MeteredStep]) -> float:
    """Raises TooFewSteps."""
    seconds = [
        step.seconds
        for step in steps
        if not step.work.prompt_tokens and step.work.decode_rows == NUM_BYSTANDERS
    ]
    if len(seconds) < MIN_STEPS:
        raise TooFewSteps(f"{len(seconds)} steps in which everyone decodes; {MIN_STEPS} are needed")
    return float(np.quantile(seconds, 0.95))
