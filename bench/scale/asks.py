"""A server of this bench and what is asked of it: closed loops of fresh prompts.

Owns the server's start with a store that was prepared, and the prompts: each is drawn anew, so
that no cache of prefixes helps anybody. Knows no order of turns and no ratio.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from ... import Client
from ...proto.async_client import AsyncClient
from ..server_process import ServerProcess
from ..slo.asking import AskOne, asker
from ..slo.live import CALL_TIMEOUT_S, START_TIMEOUT_S, LiveServer
from ..slo.rates import Capacity, measure_capacity, run_closed_loop
from ..workload.records import Piece, WorkloadRequest
from ..workload.tokens import prompt_ids
from .sizes import IN_FLIGHT, NUM_NEW_TOKENS, NUM_PROMPT_TOKENS

FIRST_SEED = 1 << 40  # of prompts; those of other benches are smaller
Found = TypeVar("Found")


@dataclass(slots=True)
class Prompts:
    """No two begin alike."""

    seeds: itertools.count[int] = field(default_factory=lambda: itertools.count(FIRST_SEED))

    def request(
        self,
        name: str,
        *,
        num_prompt: int = NUM_PROMPT_TOKENS,
        num_new: int = NUM_NEW_TOKENS,
    ) -> WorkloadRequest:
        return WorkloadRequest(0.0, name, (Piece(next(self.seeds), num_prompt),), num_new)


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server and the prompts that it has not seen."""

    live: LiveServer
    prompts: Prompts
    start_s: float  # from the command to the line that says ready

    def tokens_per_s(self, names: Sequence[str]) -> float:
        """Of a closed loop, a request for each name; counted while it is full.

        Raises:
            NoCapacity: a request failed.
        """
        requests = [self.prompts.request(name) for name in names]

        async def measure(ask: AskOne) -> Capacity:
            return await measure_capacity(
                ask, requests, in_flight=IN_FLIGHT, now_s=time.perf_counter
            )

        found = self.run(measure)
        self.live.settle()
        return found.tokens_per_s

    def touch(self, names: Sequence[str]) -> None:
        """A short request for each: its image has been read once, and is known to be whole.

        Raises:
            NoCapacity: a request failed.
        """
        requests = [self.prompts.request(name, num_prompt=4, num_new=1) for name in names]

        async def ask_all(ask: AskOne) -> None:
            await run_closed_loop(ask, requests, in_flight=IN_FLIGHT, now_s=time.perf_counter)

        self.run(ask_all)
        self.live.settle()

    def run(self, work: Callable[[AskOne], Awaitable[Found]]) -> Found:
        """To the end of `work`, which asks this server."""

        async def ask_all() -> Found:
            async with AsyncClient(self.live.address) as client:
                ids = partial(prompt_ids, vocab_size=self.live.vocab_size)
                return await work(asker(client, ids))

        return asyncio.run(ask_all())


@contextmanager
def serving(base: Path, store: Path, flags: Sequence[str], prompts: Prompts) -> Generator[Serving]:
    """Started with a store as it is; stopped at the end.

    Raises:
        ServerFailed: it does not start, or does not stop as it should.
    """
    began_s = time.perf_counter()
    with ServerProcess(base, store, *flags, start_timeout_s=START_TIMEOUT_S) as process:
        start_s = time.perf_counter() - began_s
        with Client(process.address, timeout_s=CALL_TIMEOUT_S) as client:
            live = LiveServer(store.name, process.address, client, client.info().vocab_size)
            yield Serving(live, prompts, start_s)
        process.stop()
