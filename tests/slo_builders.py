"""Workloads, stamps and runs of the SLO bench, small and made by hand; an event loop whose time
passes only when nobody has anything to do, and a client that answers by a script.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from lorry.bench.machine import Machine
from lorry.bench.slo.bounds import FixedBounds
from lorry.bench.slo.client import SendOptions
from lorry.bench.slo.figures import Figures, figures
from lorry.bench.slo.stamps import Outcome, RequestStamps, Run
from lorry.bench.workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest
from lorry.proto.completion import Piece as AnswerPiece
from lorry.proto.errors import LorryClientError

MACHINE = Machine("a cpu", 2, "", "Linux", "3.12", {"numpy": "2"}, "abc")


def make_request(at_s: float = 0.0, adapter: str = "a", **fields: Any) -> WorkloadRequest:
    values: dict[str, Any] = {"prompt": (Piece(1, 10),), "num_new_tokens": 4} | fields
    return WorkloadRequest(at_s, adapter, **values)


def make_workload(
    requests: Sequence[WorkloadRequest] = (), *, adapters: Sequence[WorkloadAdapter] = ()
) -> Workload:
    """One adapter `a` of rank 8 unless told."""
    known = tuple(adapters) or (WorkloadAdapter("a", 8, 1.0),)
    return Workload("made", 1, "", known, tuple(requests) or (make_request(),))


def make_stamps(
    index: int = 0, due_s: float = 0.0, pieces_s: Sequence[float] = (), **fields: Any
) -> RequestStamps:
    """One token a piece, sent when due, ended with its last piece."""
    end_s = pieces_s[-1] if pieces_s else due_s
    values: dict[str, Any] = {
        "sent_s": due_s,
        "outcome": Outcome.OK,
        "end_s": end_s,
        "piece_s": tuple(pieces_s),
        "piece_tokens": (1,) * len(pieces_s),
    }
    return RequestStamps(index, due_s, **(values | fields))


def make_run(*requests: RequestStamps, policy: str = "fcfs", simulated: bool = False) -> Run:
    return Run(policy, requests, simulated=simulated)


def make_figures(num_met: int, num_all: int, *, policy: str = "fcfs", **options: Any) -> Figures:
    """One request a second; those that miss get their first token after their bound."""
    requests = [make_request(float(i), num_new_tokens=2) for i in range(num_all)]
    stamps = [
        make_stamps(i, float(i), (i + wait_s, i + wait_s + 0.1))
        for i in range(num_all)
        for wait_s in [0.5 if i < num_met else 5.0]
    ]
    run = make_run(*stamps, policy=policy, **options)
    return figures(run, make_workload(requests), FixedBounds(1.0, 1.0))


def prompt_ids(prompt: tuple[Piece, ...], *, vocab_size: int) -> list[int]:
    return [(piece.seed + at) % vocab_size for piece in prompt for at in range(piece.num_tokens)]


class IdleSelector(selectors.DefaultSelector):
    """Instead of waiting, time jumps: a hair further than asked, as clocks do, since the sum may
    be rounded to just before the instant.
    """

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.now_s = math.nextafter(self.now_s + timeout, math.inf)
        return super().select(0)


def run_in_jumps(work: Callable[[SendOptions], Awaitable[Any]], **options: Any) -> Any:
    """Runs with options whose clock is the loop's; no time passes while code runs."""
    selector = IdleSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    values: dict[str, Any] = {"policy": "fcfs", "vocab_size": 50, "prompt_ids": prompt_ids}
    values |= {"now_s": loop.time} | options
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(SendOptions(**values)))


Wait = float | LorryClientError  # seconds until the next piece of a token, or how it ends


class FakeStream:
    def __init__(self, waits: AsyncIterator[int]) -> None:
        self._waits = waits

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        async for count in self._waits:
            yield AnswerPiece(0, "", (1,) * count, ())


class FakeClient:
    """Stands for an AsyncClient: each request is answered by what `script` yields for it, the
    number of tokens of each piece. Remembers what was asked.
    """

    def __init__(self, script: Callable[[dict[str, Any]], AsyncIterator[int]]) -> None:
        self._script = script
        self.asked: list[dict[str, Any]] = []
        self.num_out = 0  # requests that are out now
        self.most_out = 0

    async def info(self) -> None:
        pass

    def generate(self, prompt: Sequence[int], **options: Any) -> FakeStream:
        self.asked.append({"prompt": list(prompt), **options})
        return FakeStream(self._counted(self.asked[-1]))

    async def _counted(self, asked: dict[str, Any]) -> AsyncIterator[int]:
        self.num_out += 1
        self.most_out = max(self.most_out, self.num_out)
        try:
            async for count in self._script(asked):
                yield count
        finally:
            self.num_out -= 1
