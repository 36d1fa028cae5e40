"""The servers of a run: one `lorry serve` for each policy, all up at once, all with the fleet.

Owns their start and end, the upload of the adapters under the workload's names, and the look at a
server between cells: idle, its engine still the same, its counters. Knows neither figures nor the
order of cells. Used by `lorry bench slo` and by the simulator's comparison with a live server.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ... import Client
from ...proto import lorry_pb2 as pb
from ...proto.async_client import AsyncClient
from ..server_process import ServerProcess
from ..throughput.workload import Place
from .counters import Counters, counters_of
from .fleet import FleetFiles

# All adapters of the quick run fit beside the requests, of the full run's 64 about half: there
# some have to be loaded again.
POOL_BYTES = "96MiB"
# So that a full batch can still keep bounds on TPOT: a CPU computes a batch faster than its
# requests one by one, but not by much, and a step's prompts wait for nobody.
MAX_RUNNING = 12
MAX_STEP_TOKENS = 256
START_TIMEOUT_S = 300.0
SETTLE_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 120.0


class ServerUnfit(Exception):
    """A server does not get idle, or its engine died: what it does next measures nothing."""


class StatsClient(Protocol):
    """The part of the blocking client that is used between cells."""

    def stats(self) -> pb.Stats: ...


@dataclass(frozen=True, slots=True)
class LiveServer:
    policy: str
    address: str
    client: StatsClient
    vocab_size: int  # of its model
    now_s: Callable[[], float] = time.perf_counter

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> Counters:
        """Asks until nobody is in; the counters then.

        A request whose client has its last token is over for the server within milliseconds; one
        that timed out once its cancel has arrived. Each answer takes its way through the engine,
        which is pause enough.

        Raises:
            ServerUnfit: somebody is still in, or the engine was restarted.
        """
        end_s = self.now_s() + timeout_s
        while (stats := self.client.stats()).num_running or stats.num_waiting:
            if self.now_s() > end_s:
                raise ServerUnfit(
                    f"{self.policy}: {stats.num_running} running and {stats.num_waiting} waiting "
                    f"{timeout_s:g} s after the last request had ended"
                )
        if stats.engine_restarts_total:
            raise ServerUnfit(
                f"{self.policy}: the engine was restarted {stats.engine_restarts_total} times"
            )
        return counters_of(stats)


def default_place(device: str = "cpu", *, dtype: str = "bfloat16") -> Place:
    """One core of a CPU is left to the front end and the client, who share the machine."""
    return Place(device, dtype, num_threads=max(1, len(os.sched_getaffinity(0)) - 1))


def server_flags(place: Place) -> tuple[str, ...]:
    """What differs from the server's defaults; policies differ in nothing else."""
    return (
        *("--device", place.device, "--dtype", place.dtype, "--threads", str(place.num_threads)),
        *("--pool-bytes", POOL_BYTES, "--max-running", str(MAX_RUNNING)),
        *("--max-step-tokens", str(MAX_STEP_TOKENS)),
    )


@contextmanager
def live_servers(
    files: FleetFiles, policies: Sequence[str], flags: Sequence[str]
) -> Generator[dict[str, LiveServer]]:
    """By policy, adapters uploaded; stopped at the end.

    Raises:
        ServerFailed: one does not start, or does not stop as it should.
    """
    with ExitStack() as stack:
        servers: dict[str, LiveServer] = {}
        processes: list[ServerProcess] = []
        for policy in policies:
            store = stack.enter_context(tempfile.TemporaryDirectory(prefix="lorry-slo-"))
            process = ServerProcess(
                *(files.base, Path(store), "--policy", policy, *flags),
                start_timeout_s=START_TIMEOUT_S,
            )
            processes.append(stack.enter_context(process))
            asyncio.run(_upload(process.address, files))
            client = stack.enter_context(Client(process.address, timeout_s=CALL_TIMEOUT_S))
            vocab_size = client.info().vocab_size
            servers[policy] = LiveServer(policy, process.address, client, vocab_size)
        yield servers
        for process in processes:
            process.stop()


async def _upload(address: str, files: FleetFiles) -> None:
    async with AsyncClient(address, timeout_s=CALL_TIMEOUT_S) as client:
        for name, folder in files.adapters.items():
            await client.adapters.upload(folder, name)
