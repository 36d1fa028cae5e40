"""A cell's load sent from a process of its own, and what came back: stamps, and what was told.

The open loop is the one of `lorry bench slo`; here it is given a client that keeps its streams.
Owns the child's side. Called by world.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ..slo.client import SendOptions, send_open_loop
from ..slo.stamps import Run
from ..throughput.child import Child
from ..workload.records import Workload
from .told import TellingClient, Told


@dataclass(frozen=True, slots=True)
class Answered:
    """One load, sent once."""

    run: Run
    told: tuple[Told, ...]  # of each request, as `run.requests`


class ColdSender:
    """Lives in the child."""

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, workload: Workload, options: SendOptions) -> Answered:
        return asyncio.run(send_and_listen(self._address, workload, options))


async def send_and_listen(address: str, workload: Workload, options: SendOptions) -> Answered:
    async with TellingClient(address) as client:
        run = await send_open_loop(client, workload, options)
        return Answered(run, client.told())


def send_in_child(address: str, workload: Workload, options: SendOptions) -> Answered:
    """Raises:
    ChildFailed: the child died, or the server could not be reached before the start.
    """
    with Child(ColdSender, address) as child:
        return child.call("send", workload, options)
