"""What the server said of each request, kept beside the client's own stamps.

Owns the client that keeps its streams, and the reading of their final messages: how a request
whose adapter was not in the pool started, and where its time went by the server's clock. These
explain a figure; figures are of the client's stamps. Picklable, for it comes from a child.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from ...proto.async_client import AsyncClient, AsyncTextStream
from ...proto.completion import Completion
from ...proto.errors import LorryClientError
from ...proto.messages import GenerateOptions


@dataclass(frozen=True, slots=True)
class Told:
    """Durations by the server's clock; all empty: it said nothing."""

    way: str = ""  # wait, stream, assist; empty: its adapter was in the pool as it came
    reason: str = ""
    predicted_s: float = 0.0  # from the choice to the first token; 0: nothing was known
    measured_s: float = 0.0  # the same, as it came
    queue_s: float = 0.0  # receipt -> first scheduled
    load_s: float = 0.0  # part of that while the adapter was on its way
    prefill_s: float = 0.0  # first scheduled -> first token
    ttft_s: float = 0.0  # receipt by the front end -> first token


def told_of(final: Completion) -> Told:
    start, timing = final.usage.cold_start, final.timing
    times = (timing.queue_s, timing.load_s, timing.prefill_s, timing.ttft_s)
    if start is None:
        return Told("", "", 0.0, 0.0, *times)
    return Told(start.way, start.reason, start.predicted_s, start.measured_s, *times)


class TellingClient(AsyncClient):
    """Keeps every stream it begins, in order."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._streams: list[AsyncTextStream | None] = []

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        place = len(self._streams)
        self._streams.append(None)  # also where there will be no stream: places are requests
        stream = super().generate(prompt, timeout_s=timeout_s, **options)
        self._streams[place] = stream
        return stream

    def told(self) -> tuple[Told, ...]:
        """Of every request, in the order in which they were begun."""
        return tuple(map(_told, self._streams))


def _told(stream: AsyncTextStream | None) -> Told:
    """A request that failed has no final message."""
    try:
        return Told() if stream is None else told_of(stream.final)
    except LorryClientError:
        return Told()
