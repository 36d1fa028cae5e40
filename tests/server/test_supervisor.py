"""Starting, restarting and stopping, with fakes in place of the two processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from multiprocessing import Pipe
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.clock import MonotonicClock
from lorry.server.config import ServerConfig
from lorry.server.errors import ConfigError, InternalError, LorryError, ModelRefused
from lorry.server.rpc.text import Text
from lorry.server.seam import Cancel, Progress, Shutdown, StartFailed, Submit
from lorry.server.store_messages import BeginUpload
from lorry.server.supervisor import (
    MAX_DELAY_S,
    MAX_FAILED_STARTS,
    STABLE_S,
    Parts,
    Supervisor,
    restart_delay_s,
)
from lorry.server.watchdog import ASK_EVERY_S, MAX_LOST, MAX_QUIET
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    FakeStore,
    make_config,
    make_finish,
    make_text,
)


class FakeChild:
    """A fake behind the face of a process."""

    def __init__(self, fake: Any) -> None:
        self.fake = fake
        self.conn = fake.front_end

    def end(self, patience_s: float) -> int | None:
        return 0

    def kill(self) -> None:
        self.fake.die()


class Stillborn:
    """A child whose pipe ends at once, perhaps after one last word."""

    def __init__(self, error: LorryError | None = None) -> None:
        self.front_end, theirs = Pipe()
        if error is not None:
            theirs.send(StartFailed(error))
        theirs.close()

    def die(self) -> None:
        pass


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
        self.store = FakeStore("upper")
        self._text = text
        self._coming = list(engines)
        self.supervisor = Supervisor(
            config,
            Parts(
                spawn_engine=lambda: FakeChild(self._coming.pop(0)),
                spawn_store=lambda: FakeChild(self.store),
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

    def _load(self) -> Text:
        if isinstance(self._text, Exception):
            raise self._text
        return self._text

    async def tick(self) -> None:
        """The watchdog looks once."""
        await self._looks.acquire()  # it sleeps
        self._ticks.release()
        await self._looks.acquire()  # it has looked and sleeps again
        self._looks.release()

    async def _sleep(self, delay_s: float) -> None:
        if delay_s == ASK_EVERY_S:
            self._looks.release()
            await self._ticks.acquire()
            return
        self.sleeps.append(delay_s)
        await asyncio.sleep(0)


def run(
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


def test_backoff_doubles_to_its_limit_and_forgets_after_a_stable_life():
    """Broken: a crash loop eats the machine, or one late crash waits half a minute."""
    delays = [0.0]
    for _ in range(12):
        delays.append(restart_delay_s(delays[-1], 1.0))
    assert delays[1:4] == [0.1, 0.2, 0.4]
    assert delays[-1] == MAX_DELAY_S
    assert restart_delay_s(MAX_DELAY_S, STABLE_S) == 0.1


def test_start_says_what_is_served_and_where():
    """Broken: a script that waits for the ready line connects too early or for ever."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        assert stage.said(f"lorry ready on 127.0.0.1:{stage.supervisor.port}")
        assert stage.said("32 pages of 4 KiB")
        async with stage.channel() as channel:
            assert await generate(channel) == 4
        stage.supervisor.signalled()
        assert await stage.running == 0

    run(body, FakeEngine())


@pytest.mark.parametrize(
    ("error", "code"),
    [(ModelRefused("no RoPE"), 2), (ConfigError("no pool"), 2), (InternalError("a bug"), 1)],
)
def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(error: LorryError, code: int):
    """Broken: an unservable model is retried for ever instead of explained."""

    async def body(stage: Stage) -> None:
        assert await stage.running == code
        assert stage.said(error.message)
        assert stage.sleeps == []

    run(body, Stillborn(error))


def test_a_tokenizer_that_cannot_be_read_ends_the_server():
    """Broken: a server without a tokenizer looks alive and answers nobody."""

    async def body(stage: Stage) -> None:
        assert await stage.running == 2
        assert stage.said("no tokenizer that fits")
        assert not any("\n" in line for line in stage.lines)

    run(body, FakeEngine(), text=ModelRefused("no tokenizer\nthat fits"))


def test_an_engine_that_never_comes_up_is_given_up():
    """Broken: an engine that is killed at every start keeps a terminal busy for ever."""

    async def body(stage: Stage) -> None:
        assert await stage.running == 1
        assert stage.sleeps == [0.1, 0.2]

    run(body, *(Stillborn() for _ in range(MAX_FAILED_STARTS)))


def test_a_dead_engine_is_restarted_and_counted():
    """Broken: a crash ends the service, or is hidden from who operates it."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        front = stage.supervisor.front
        stage.engines[0].die()
        await stage.until(lambda: front.engine_restarts == 2)
        await stage.until(lambda: front.serving)
        assert stage.sleeps == [0.1, 0.2]
        async with stage.channel() as channel:
            assert await generate(channel) == 4
        stage.supervisor.signalled()
        assert await stage.running == 0

    # The second life refuses to start, which only ends a server that was never up.
    run(body, FakeEngine(), Stillborn(ConfigError("memory is still held")), FakeEngine())


def test_a_drain_waits_for_open_requests_then_tells_the_children():
    """Broken: SIGTERM cuts answers, leaves children behind or never ends."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        engine = stage.engines[0]
        async with stage.channel() as channel:
            asking = asyncio.create_task(generate(channel))
            submit = await engine.heard(Submit)
            stage.supervisor.signalled()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            engine.say(make_finish(submit, 0))
            assert await asking == 1
        await engine.heard(Shutdown)
        assert await stage.running == 0
        assert not stage.said("ended")

    run(body, FakeEngine(behaviour="silent"))


def test_what_outlives_the_grace_is_answered():
    """Broken: a stream longer than the grace ends without a reason, or blocks the stop."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        engine = stage.engines[0]
        async with stage.channel() as channel:
            asking = asyncio.create_task(generate(channel))
            submit = await engine.heard(Submit)
            stage.supervisor.signalled()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asking
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "grace" in (caught.value.details() or "")
        assert (await engine.heard(Cancel)).request_id == submit.request_id
        assert await stage.running == 0

    run(body, FakeEngine(behaviour="silent"), drain_s=0.05)


def test_a_second_signal_ends_at_once():
    """Broken: an operator in a hurry waits for the whole grace."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        async with stage.channel() as channel:
            asking = asyncio.create_task(generate(channel))
            await stage.engines[0].heard(Submit)
            stage.supervisor.signalled()
            stage.supervisor.signalled()
            assert await stage.running == 1
            with pytest.raises(grpc.aio.AioRpcError):
                await asking

    run(body, FakeEngine(behaviour="silent"), drain_s=3600.0)


def test_a_stop_while_the_engine_starts_does_not_wait_for_it():
    """Broken: Ctrl-C during the load of a large model does nothing for minutes."""

    async def body(stage: Stage) -> None:
        await stage.until(lambda: stage.supervisor.front.store.ready)
        stage.supervisor.signalled()
        assert await stage.running == 0
        assert not stage.said("lorry ready")

    class Loading(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            _ = self.front_end.recv()  # its info is never heard: it is still loading

    run(body, Loading())


def test_a_second_signal_answers_an_upload_that_is_stuck():
    """Broken: the hurried stop waits seconds for a silent upload, then cuts it without a word."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        async with stage.channel() as channel:
            call = pb_grpc.AdaptersStub(channel).Upload()
            header = pb.UploadHeader(name="new", size_bytes=6, sha256="ab")
            await call.write(pb.UploadRequest(header=header))
            await stage.store.heard(BeginUpload)
            stage.supervisor.signalled()
            stage.supervisor.signalled()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "stopping" in (caught.value.details() or "")
        assert await stage.running == 1

    run(body, FakeEngine(), drain_s=3600.0)


def test_an_engine_that_says_nothing_is_killed_and_started_again():
    """Broken: a stopped engine is called SERVING, and its requests wait for ever."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        front = stage.supervisor.front
        async with stage.channel() as channel:
            asking = asyncio.create_task(generate(channel))
            await stage.engines[0].heard(Submit)
            for _ in range(MAX_QUIET + 1):  # the first look still sees it come up
                assert front.serving
                await stage.tick()
            assert not front.serving
            for _ in range(MAX_LOST - MAX_QUIET):
                await stage.tick()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asking
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await stage.until(lambda: front.serving)
            assert stage.said("said nothing for 120 s")
            assert front.engine_restarts == 1
            assert await generate(channel) == 4
        stage.supervisor.signalled()
        assert await stage.running == 0

    class Stopped(FakeEngine):
        def _obey(self, command: Any) -> None:
            """Reads and says nothing."""

    run(body, Stopped(), FakeEngine())


def test_an_engine_that_answers_late_is_left_alone():
    """Broken: a long step of a large model costs every request of the batch."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        front, engine = stage.supervisor.front, stage.engines[0]
        num_heard = front.engine.num_heard
        for _ in range(2):
            for _ in range(MAX_LOST - 2):
                await stage.tick()
            assert not front.serving
            engine.say(Progress(12345, (1,)))  # of a request that has left: a sign of life
            num_heard += 1
            await stage.until(lambda wanted=num_heard: front.engine.num_heard == wanted)
            await stage.tick()
            assert front.serving
        assert front.engine_restarts == 0
        stage.supervisor.signalled()
        assert await stage.running == 0

    class Slow(FakeEngine):
        def _obey(self, command: Any) -> None:
            """Its answers come when the test says so."""

    run(body, Slow())
