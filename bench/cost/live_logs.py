"""Step logs of the loads, from a live server on this machine.

Owns the arrangement: one server with `--step-log`, every adapter asked once before the clock
counts, then all traces in turns, so that the machine's drift meets all alike. Draws no
conclusions. Called by command.py.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ...proto.async_client import AsyncClient
from ...server.step_meter import MeteredStep
from ..load import Ask, send_all
from ..slo.fleet import prepare_fleet
from ..slo.live import live_servers, server_flags
from ..throughput.workload import TARGETS, Place
from .loads import Load, LogsFailed, Trace
from .step_logs import Span, read_step_log, steps_within

POOL_BYTES = "1152MiB"  # holds all adapters at once: a load beside a step is not what is studied
POLICY = "fcfs"


def make_logs(
    loads: Sequence[Load],
    place: Place,
    cache: Path,
    *,
    num_rounds: int,
    turn_s: float,
    tell: Callable[[str], None],
) -> dict[str, list[MeteredStep]]:
    """Steps by the trace's name. `turn_s`: of each trace in each round.

    Raises:
        ServerFailed: the server does not start, or does not stop as it should.
        LogsFailed: a request was not answered.
    """
    traces = [trace for load in loads for trace in (load.fit, load.judged)]
    adapters = [adapter for trace in traces for adapter in trace.adapters]
    # On every linear: at rank 256 an adapter is three quarters of the base in bytes. On attention's
    # four alone what a rank costs would drown in what an adapter costs whatever its rank.
    files = prepare_fleet(adapters, cache, targets=TARGETS)
    with tempfile.TemporaryDirectory(prefix="lorry-cost-") as home, ExitStack() as stack:
        path = Path(home) / "steps.csv"
        flags = (*server_flags(place), "--pool-bytes", POOL_BYTES, "--step-log", str(path))
        servers = stack.enter_context(live_servers(files, [POLICY], flags))
        spans = asyncio.run(
            _drive(servers[POLICY].address, traces, num_rounds=num_rounds, turn_s=turn_s, tell=tell)
        )
        stack.close()  # the log is whole once the server has ended
        steps = read_step_log(path)
    return {
        name: [step for span in of for step in steps_within(steps, span)]
        for name, of in spans.items()
    }


async def _drive(
    address: str,
    traces: Sequence[Trace],
    *,
    num_rounds: int,
    turn_s: float,
    tell: Callable[[str], None],
) -> Mapping[str, list[Span]]:
    spans: dict[str, list[Span]] = {trace.name: [] for trace in traces}
    async with AsyncClient(address) as client:
        vocab_size = (await client.info()).vocab_size
        groups = {trace.name: trace.groups(vocab_size) for trace in traces}
        for trace in traces:
            for adapter in trace.adapters:
                await _send(client, [Ask([5, 6, 7], adapter.name, 2, ignore_eos=True)])
        for round_idx in range(num_rounds):
            for trace in traces:
                began_s = time.monotonic()
                while time.monotonic() < began_s + turn_s:
                    await _send(client, next(groups[trace.name]))
                spans[trace.name].append(Span(began_s, time.monotonic()))
            tell(f"round {round_idx + 1} of {num_rounds} is over")
    return spans


async def _send(client: AsyncClient, asks: Sequence[Ask]) -> None:
    for reply in (await send_all(client, asks)).replies:
        if reply.error:
            raise LogsFailed(reply.error)
