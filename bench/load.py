"""Many requests at once from one event loop, stamped by the client's clock.

Closed and small: everything is sent at the same instant and all answers are awaited. Knows the
client and nothing of servers, adapters' files or what an answer ought to be. Used by the demo
and by the throughput benches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..proto.async_client import AsyncClient
from ..proto.errors import LorryClientError


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: str | Sequence[int]  # text, or token ids
    adapter: str = ""  # empty: the base
    max_new_tokens: int = 64
    ignore_eos: bool = False
    ttft_s: float | None = None  # bound on the first token; None: the server's default


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request; durations by the client's clock."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    ttft_s: float = 0.0  # sent -> first piece of the answer
    tpot_s: float = 0.0  # (last piece - first) / (tokens - 1)
    preemptions: int = 0  # times the server took its pages and computed it again
    error: str = ""  # why there is no answer


@dataclass(frozen=True, slots=True)
class Load:
    """All replies, in the order of what was asked, and how long the whole took."""

    replies: tuple[Reply, ...]
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(len(reply.token_ids) for reply in self.replies) / self.wall_s


async def send_all(client: AsyncClient, asks: Sequence[Ask], *, timeout_s: float = 120) -> Load:
    start_s = time.perf_counter()
    replies = await asyncio.gather(*(send_one(client, ask, timeout_s) for ask in asks))
    return Load(tuple(replies), time.perf_counter() - start_s)


async def send_one(client: AsyncClient, ask: Ask, timeout_s: float) -> Reply:
    """A refusal is a reply too: it is the caller who says whether that is a failure."""
    sent_s = time.perf_counter()
    stamps_s: list[float] = []
    try:
        stream = client.generate(
            ask.prompt,
            adapter=ask.adapter,
            max_new_tokens=ask.max_new_tokens,
            ignore_eos=ask.ignore_eos,
            ttft_s=ask.ttft_s,
            timeout_s=timeout_s,
        )
        async with stream:
            async for _ in stream:
                stamps_s.append(time.perf_counter())
            final = stream.final
    except LorryClientError as error:
        return Reply(error=str(error))
    first_s, last_s = (stamps_s[0], stamps_s[-1]) if stamps_s else (sent_s, sent_s)
    return Reply(
        token_ids=final.token_ids,
        text=final.text,
        ttft_s=first_s - sent_s,
        tpot_s=(last_s - first_s) / max(1, len(final.token_ids) - 1),
        preemptions=final.usage.preemptions,
    )
