"""What reaches the live servers of a run: single requests from here, workloads from a child.

Joins live.py's servers with the client; owns the request that warms a server up. Called through
run.py, which knows nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...proto.async_client import AsyncClient
from ..load import Reply
from ..workload.records import BASE, Piece, Workload, WorkloadRequest
from ..workload.tokens import prompt_ids
from .asking import AskOne, asker
from .client import SendOptions
from .live import LiveServer, ServerUnfit
from .offers import FRESH_SEED
from .send import send_in_child
from .stamps import Run

Found = TypeVar("Found")
WARM_UP = WorkloadRequest(0.0, BASE, (Piece(FRESH_SEED - 1, 16),), num_new_tokens=8)


@dataclass(frozen=True, slots=True)
class LiveHands:
    servers: Mapping[str, LiveServer]
    timeout_s: float  # a client's patience with each request of a cell

    def ask_alone(self, policy: str, work: Callable[[AskOne], Awaitable[Found]]) -> Found:
        async def ask_all(server: LiveServer) -> Found:
            async with AsyncClient(server.address) as client:
                return await work(asker(client, _ids_for(server.vocab_size)))

        return asyncio.run(ask_all(self.servers[policy]))

    def warm_up(self, policy: str) -> None:
        reply = self.ask_alone(policy, _ask_warm_up)
        if reply.error:
            raise ServerUnfit(f"{policy}: the request that warms it up failed: {reply.error}")

    def send(self, policy: str, workload: Workload) -> Run:
        server = self.servers[policy]
        options = SendOptions(policy, server.vocab_size, prompt_ids, timeout_s=self.timeout_s)
        return send_in_child(server.address, workload, options)


async def _ask_warm_up(ask: AskOne) -> Reply:
    return await ask(WARM_UP)


def _ids_for(vocab_size: int) -> Callable[[tuple[Piece, ...]], Sequence[int]]:
    return lambda prompt: prompt_ids(prompt, vocab_size=vocab_size)
