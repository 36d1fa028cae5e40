"""The open-loop client: each request leaves at its instant, whatever the server does.

Every request has a task of its own, nothing limits how many are out, and none waits for another.
All share one HTTP/2 connection: servers of gRPC set no limit of streams on it (a test holds ours
to that), and a request counts as sent when gRPC has taken it. Makes the prompts before the clock
starts, keeps every stamp, judges nothing. Called by send.py, in a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ...proto.async_client import AsyncClient
from ...proto.errors import DeadlineExceeded, LorryClientError, Overloaded
from ..workload.records import Piece, Workload, WorkloadRequest
from .stamps import Outcome, RequestStamps, Run

PATIENCE_S = 120.0
LEAD_S = 0.1


class PromptIds(Protocol):
    """Makes the tokens of a prompt's recipe."""

    def __call__(self, prompt: tuple[Piece, ...], *, vocab_size: int) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class SendOptions:
    policy: str  # that the server runs: goes into the record
    vocab_size: int  # of the server's model
    prompt_ids: PromptIds
    timeout_s: float = PATIENCE_S  # of each request, from when it leaves
    lead_s: float = LEAD_S  # from the start of the clock to the workload's instant 0
    now_s: Callable[[], float] = time.perf_counter


async def send_open_loop(client: AsyncClient, workload: Workload, options: SendOptions) -> Run:
    """Returns when the last answer has ended; any end of a request is a stamp, not an error."""
    prompts = [
        options.prompt_ids(request.prompt, vocab_size=options.vocab_size)
        for request in workload.requests
    ]
    await client.info()  # the connection stands before the first request is due
    with quiet_memory():
        clock = RunClock(options.now_s, options.now_s() + options.lead_s)
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[RequestStamps]] = []
            for index, request in enumerate(workload.requests):
                await clock.wait_until(request.at_s)
                one = _Sending(client, index, request, prompts[index], options.timeout_s, clock)
                tasks.append(group.create_task(one.send()))
    return Run(options.policy, tuple(task.result() for task in tasks))


@dataclass(frozen=True, slots=True)
class RunClock:
    """Counts from the start of the run."""

    read_s: Callable[[], float]
    start_s: float

    def now_s(self) -> float:
        return self.read_s() - self.start_s

    async def wait_until(self, instant_s: float) -> None:
        """Yields even when it is too late, so that answers are stamped while many are sent."""
        left_s = instant_s - self.now_s()
        await asyncio.sleep(max(0.0, left_s))
        while (left_s := instant_s - self.now_s()) > 0:
            await asyncio.sleep(left_s)


@dataclass(slots=True)
class _Sending:
    """One request on its way, and what it has left behind so far."""

    client: AsyncClient
    index: int
    request: WorkloadRequest
    prompt: Sequence[int]
    timeout_s: float
    clock: RunClock
    sent_s: float = 0.0
    piece_s: list[float] = field(default_factory=list[float])
    piece_tokens: list[int] = field(default_factory=list[int])

    async def send(self) -> RequestStamps:
        self.sent_s = self.clock.now_s()  # stands if it is refused before it leaves
        try:
            await self._stream()
        except Overloaded as error:
            return self._stamps(Outcome.REFUSED, _said(error))
        except DeadlineExceeded as error:
            return self._stamps(Outcome.TIMEOUT, _said(error))
        except LorryClientError as error:
            return self._stamps(Outcome.FAILED, _said(error))
        came, asked = sum(self.piece_tokens), self.request.num_new_tokens
        if came != asked:
            return self._stamps(Outcome.FAILED, f"{came} of {asked} tokens came")
        return self._stamps(Outcome.OK)

    async def _stream(self) -> None:
        request = self.request
        stream = self.client.generate(
            self.prompt,
            adapter=request.adapter,
            max_new_tokens=request.num_new_tokens,
            ignore_eos=True,
            temperature=0.0,
            ttft_s=_bound(request.ttft_s),
            tpot_s=_bound(request.tpot_s),
            timeout_s=self.timeout_s,
        )
        async with stream:
            # gRPC hands the request over in a task that it has just made: that one runs first.
            await asyncio.sleep(0)
            self.sent_s = self.clock.now_s()
            async for piece in stream.pieces():
                if piece.token_ids:  # else only text that was held back
                    self.piece_s.append(self.clock.now_s())
                    self.piece_tokens.append(len(piece.token_ids))

    def _stamps(self, outcome: Outcome, error: str = "") -> RequestStamps:
        return RequestStamps(
            index=self.index,
            due_s=self.request.at_s,
            sent_s=self.sent_s,
            outcome=outcome,
            end_s=self.clock.now_s(),
            piece_s=tuple(self.piece_s),
            piece_tokens=tuple(self.piece_tokens),
            error=error,
        )


@contextmanager
def quiet_memory() -> Generator[None]:
    """No garbage collection inside: it stops everything for as long as there are objects."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _bound(seconds: float) -> float | None:
    """None: the request carries none, and the server's own default holds."""
    return seconds if 0 < seconds < math.inf else None


def _said(error: LorryClientError) -> str:
    return f"{error.code}: {error.message}"
