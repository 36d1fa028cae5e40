"""A supervisor on a stage: fakes in place of its processes, sleeps that are noted, not slept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from multiprocessing import Pipe
from typing import Any

import grpc

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.clock import MonotonicClock
from lorry.server.config import ServerConfig
from lorry.server.errors import (
    LorryError,
)
from lorry.server.rpc.text import Text
from lorry.server.seam import StartFailed
from lorry.server.supervisor import Parts, Supervisor
from lorry.server.watchdog import ASK_EVERY_S
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    FakeStore,
    make_config,
    make_text,
)


class FakeChild:
    """A fake behind the face of a process."""

    def __init__(self, fake: Any) -> None:
        self.fake = fake
        self.conn = fake.front_end
        self.ticks = 0  # of work done so far

    def end(self, patience_s: float) -> int | None:
        return 0

    def kill(self) -> None:
        self.fake.die()

    def work(self) -> int | None:
        self.ticks += getattr(self.fake, "is_busy", False)
        return self.ticks


class Stillborn:
    """A child whose pipe ends at once, perhaps after one last word."""

    def __init__(self, error: LorryError | None = None) -> None:
        self.front_end, theirs = Pipe()
        if error is not None:
            theirs.send(StartFailed(error))
        theirs.close()

    def die(self) -> None:
        pass


class Loading(FakeEngine):
    """Reads its model for ever; whether that is work its test says."""

    def __init__(self, *, is_busy: bool = False) -> None:
        super().__init__()
        self.is_busy = is_busy
        _ = self.front_end.recv()  # its info is never heard


class StoppableStore(FakeStore):
    """Once told to, it reads on and answers nobody until it dies."""

    def __init__(self, *names: str) -> None:
        self.is_stuck = False
        self._died = threading.Event()
        super().__init__(*names)

    def _answer(self, request: Any) -> Any:
        if self.is_stuck:
            self._died.wait()
        return super()._answer(request)

    def die(self) -> None:
        super().die()
        self._died.set()


class Stage:
    """A supervisor whose children are made by the test; sleeps are noted, not slept.

    Between two looks at the engine the watchdog sleeps until the test says `tick`.
    """

    def __init__(self, config: ServerConfig, engines: list[Any], text: Text | Exception) -> None:
        self.lines: list[str] = []
        self.sleeps: list[float] = []
        self._ticks = asyncio.Semaphore(0)
        self._looks = asyncio.Semaphore(0)
        self.engines = engines
        self.store = StoppableStore("upper")
        self.later_stores = [self.store]  # spawned in this order
        self._text = text
        self._coming = list(engines)
        self.supervisor = Supervisor(
            config,
            Parts(
                spawn_engine=self._spawn_engine,
                spawn_store=lambda: FakeChild(self.later_stores.pop(0)),
                load_text=self._load,
                say=self.lines.append,
                clock=MonotonicClock(),
                sleep=self._sleep,
            ),
        )
        self.running = asyncio.create_task(self.supervisor.run())

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0.001)

    async def until_ready(self) -> None:
        await self.until(lambda: self.said("lorry ready on"))

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.supervisor.port}")

    def _spawn_engine(self) -> FakeChild:
        fake = self._coming.pop(0)
        if isinstance(fake, OSError):
            raise fake
        return FakeChild(fake)

    def _load(self) -> Text:
        if isinstance(self._text, Exception):
            raise self._text
        return self._text

    async def tick(self) -> None:
        """The watchdog looks once; a store that answers has done so before the next look."""
        store = self.supervisor.front.store
        num_heard = store.num_heard
        await self._looks.acquire()  # it sleeps
        answers = store.ready and not self.store.is_stuck
        self._ticks.release()
        await self._looks.acquire()  # it has looked and sleeps again
        self._looks.release()
        if answers:
            await self.until(lambda: store.num_heard > num_heard)

    async def _sleep(self, delay_s: float) -> None:
        if delay_s == ASK_EVERY_S:
            self._looks.release()
            await self._ticks.acquire()
            return
        self.sleeps.append(delay_s)
        await asyncio.sleep(0)


def run_stage(
    body: Callable[[Stage], Awaitable[None]],
    *engines: Any,
    text: Text | Exception | None = None,
    **service: Any,
) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await body(Stage(make_config(**service), list(engines), text or make_text()))

    asyncio.run(main())


async def generate(channel: grpc.aio.Channel) -> int:
    stub = pb_grpc.GenerationStub(channel)
    num_messages = 0
    async for _ in stub.Generate(pb.GenerateRequest(text="ab"), timeout=PATIENCE_S):
        num_messages += 1
    return num_messages
