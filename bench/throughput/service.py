"""Lorry's rows: workload W through the whole service, from gRPC to gRPC.

Owns one `lorry serve` with the workload's files, the upload of its adapters and the load of one
round. The clock is the client's, from the first send to the last answer. Knows no peer.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from ...proto.async_client import AsyncClient
from ..load import Ask, send_all
from ..server_process import ServerProcess
from .answers import Answers
from .workload import Place, Workload
from .workload_files import WorkloadFiles

# Adapters, KV of all requests and room to spare: this bench is not about memory.
POOL_BYTES = 0
TIMEOUT_S = 900.0


class ReplyMissing(Exception):
    """A request of the load failed or was cut short, so its round measures nothing."""


class Service:
    """A running server that knows the workload's adapters."""

    def __init__(self, server: ServerProcess, workload: Workload) -> None:
        self._server = server
        self._workload = workload

    def generate(self, *, mixed: bool) -> Answers:
        """All requests at once; with `mixed` each names its adapter."""
        return asyncio.run(self._generate(self._workload.names(mixed=mixed)))

    def cpu_s(self) -> float:
        """Processor time its processes have used since they began."""
        root = psutil.Process(self._server.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    async def _generate(self, names: Sequence[str]) -> Answers:
        workload = self._workload
        asks = [
            Ask(prompt, name, workload.num_new_tokens, ignore_eos=True)
            for prompt, name in zip(workload.prompts(), names, strict=True)
        ]
        async with AsyncClient(self._server.address) as client:
            load = await send_all(client, asks, timeout_s=TIMEOUT_S)
        errors = [reply.error for reply in load.replies if reply.error]
        if errors:
            raise ReplyMissing(f"{len(errors)} of {len(load.replies)} failed: {errors[0]}")
        lens = {len(reply.token_ids) for reply in load.replies}
        if lens != {workload.num_new_tokens}:
            raise ReplyMissing(f"answers have {sorted(lens)} tokens, not {workload.num_new_tokens}")
        return Answers(load.wall_s, tuple(reply.token_ids for reply in load.replies))


def server_flags(place: Place) -> tuple[str, ...]:
    """What differs from the server's defaults."""
    # Every round asks the very same prompts, and what it is compared with computes them all.
    return (
        "--no-prefix-cache",
        *("--device", place.device, "--dtype", place.dtype),
        *("--threads", str(place.num_threads), "--pool-bytes", str(POOL_BYTES)),
    )


@contextmanager
def serving(
    files: WorkloadFiles, workload: Workload, flags: Sequence[str], *, with_adapters: bool = True
) -> Generator[Service]:
    """Started, adapters uploaded, stopped at the end.

    Raises:
        ServerFailed: it does not start, or does not stop as it should.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lorry-throughput-") as store,
        ServerProcess(files.base, Path(store), *flags, start_timeout_s=300) as server,
    ):
        if with_adapters:
            asyncio.run(_upload(server.address, files))
        yield Service(server, workload)
        server.stop()


async def _upload(address: str, files: WorkloadFiles) -> None:
    async with AsyncClient(address) as client:
        for name, folder in files.adapters.items():
            await client.adapters.upload(folder, name)
