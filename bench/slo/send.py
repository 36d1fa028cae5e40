"""A workload sent from a process of its own, so that nothing of the caller delays a request.

Owns the child's life. Workload and options travel over its pipe before the clock starts, the
stamps after it has stopped; in between the pipe is silent. Called by `lorry bench slo` and by the
simulator's comparison with a live server.
"""

from __future__ import annotations

import asyncio

from ...proto.async_client import AsyncClient
from ..throughput.child import Child
from ..workload.records import Workload
from .client import SendOptions, send_open_loop
from .stamps import Run


class Sender:
    """Lives in the child."""

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, workload: Workload, options: SendOptions) -> Run:
        return asyncio.run(send_to(self._address, workload, options))


async def send_to(address: str, workload: Workload, options: SendOptions) -> Run:
    async with AsyncClient(address) as client:
        return await send_open_loop(client, workload, options)


def send_in_child(address: str, workload: Workload, options: SendOptions) -> Run:
    """`options` must be picklable: functions of modules, no closures.

    Raises:
        ChildFailed: the child died, or the server could not be reached before the start.
    """
    with Child(Sender, address) as child:
        return child.call("send", workload, options)
