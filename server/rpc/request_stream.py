"""What the engine has said to one call and its client has not read yet.

Owns how much of that is kept: the engine never waits for a client, and its own limits end with the
last token, so a client that reads nothing would otherwise have the front end remember everything.
Knows no gRPC and no pipe: engine_client.py puts in, generation.py takes out and waits for the
client through `reading`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from ..errors import ClientTooSlow
from ..seam import Finish, Progress, PromptLogprobs, Reject, TokenLogprobs

StreamEvent = Progress | PromptLogprobs | Finish | Reject


@dataclass(frozen=True, slots=True)
class ReadingLimits:
    """`queued`: tokens and ranked tokens, each about 140 bytes here."""

    # A token a minute is slow; two minutes without a byte is nobody.
    max_write_s: float = 120.0
    # Of a call that has more than `max_call_queued`. Long prompts with all log-probabilities come
    # faster than they can be put on the wire: who reads meanwhile is not cut off.
    max_stall_s: float = 5.0
    max_call_queued: int = 1 << 18  # some 35 MiB
    max_queued: int = 1 << 21  # of all calls; beyond it the one with most is ended


class Backlog:
    """All open streams of a front end."""

    def __init__(self, limits: ReadingLimits | None = None) -> None:
        self.limits = limits or ReadingLimits()
        self.num_queued = 0
        self._streams: set[RequestStream] = set()

    def stream(self) -> RequestStream:
        stream = RequestStream(self)
        self._streams.add(stream)
        return stream

    def add(self, num: int) -> None:
        """Negative: that many less."""
        self.num_queued += num
        if self.num_queued <= self.limits.max_queued:
            return
        worst = max(self._streams, key=lambda stream: stream.num_queued)
        worst.end(
            ClientTooSlow(
                f"the client reads too slowly: {worst.num_queued} tokens and log-probabilities of "
                f"this call wait for it, and those of all calls may be {self.limits.max_queued}",
                field="stream",
            )
        )

    def drop(self, stream: RequestStream) -> None:
        self._streams.discard(stream)


class RequestStream:
    """The events of the requests of one call, each one's in order and ended by a Finish or Reject.

    An event says itself whose it is.
    """

    def __init__(self, backlog: Backlog) -> None:
        self.num_queued = 0
        self._backlog = backlog
        self._events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        self._error: ClientTooSlow | None = None
        self._closed = False
        self._waiting: asyncio.Timeout | None = None  # for the client
        self._asked_s = 0.0  # since when, on the loop's clock

    def put(self, event: StreamEvent) -> None:
        if self._closed:
            return
        self._events.put_nowait(event)
        limit = self._backlog.limits
        before = self.num_queued
        self._count(weight(event))
        crossed = before <= limit.max_call_queued < self.num_queued
        if crossed and self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._asked_s + limit.max_stall_s)

    async def next(self) -> StreamEvent:
        """Raises:
        ClientTooSlow: too much of it was not read.
        """
        event = await self._events.get()
        if event is None or self._error is not None:
            raise self._error or ClientTooSlow("the call is over")
        self._count(-weight(event))
        return event

    async def reading(self, write: Awaitable[None]) -> None:
        """Waits until the client has room for what is written.

        Raises:
            ClientTooSlow: it takes too long, or more has come meanwhile than is kept for it.
        """
        limits = self._backlog.limits
        full = self.num_queued > limits.max_call_queued
        patience_s = limits.max_stall_s if full else limits.max_write_s
        self._asked_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(patience_s) as self._waiting:
                await write
        except TimeoutError as error:
            raise self._error or self._too_slow() from error
        finally:
            self._waiting = None

    def end(self, error: ClientTooSlow) -> None:
        """The handler hears of it wherever it waits."""
        self._error = error
        self.close()
        self._events.put_nowait(None)
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._asked_s)

    def close(self) -> None:
        """Forgets what nobody will read."""
        self._closed = True
        self._backlog.drop(self)
        while not self._events.empty():
            self._events.get_nowait()
        self._count(-self.num_queued)

    def _count(self, num: int) -> None:
        self.num_queued += num
        self._backlog.add(num)

    def _too_slow(self) -> ClientTooSlow:
        limits = self._backlog.limits
        if self.num_queued > limits.max_call_queued:
            said = (
                f"{self.num_queued} tokens and log-probabilities wait for it, more than "
                f"{limits.max_call_queued}, and it has read nothing for {limits.max_stall_s:g} s"
            )
        else:
            said = f"it has read nothing for {limits.max_write_s:g} s"
        return ClientTooSlow(f"the client reads too slowly: {said}", field="stream")


def weight(event: StreamEvent) -> int:
    """What it holds in memory, in tokens and ranked tokens."""
    match event:
        case Progress(token_ids=token_ids, logprobs=logprobs):
            return 4 + len(token_ids) + _weight(logprobs)
        case PromptLogprobs(logprobs=logprobs):
            return 4 + _weight(logprobs)
        case _:
            return 4


def _weight(entries: Sequence[TokenLogprobs]) -> int:
    return sum(2 + len(entry.top) for entry in entries)
