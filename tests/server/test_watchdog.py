"""Children that do nothing are noticed; those that only take long are left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from lorry.server.errors import (
    EngineUnavailable,
)
from lorry.server.seam import Progress, Submit
from lorry.server.watchdog import MAX_BUSY, MAX_LOST, MAX_QUIET, Watch, Watched
from lorry.tests.rpc_builders import (
    FakeEngine,
    FakeStore,
)
from lorry.tests.supervisor_builders import (
    Loading,
    Stage,
    generate,
    run_stage,
)


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

    run_stage(body, Stopped(), FakeEngine())


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

    run_stage(body, Slow())


def test_an_engine_that_hangs_in_its_start_is_killed_and_started_again():
    """Broken: a server whose engine waits for a dead disk is never up, and never says why."""

    async def body(stage: Stage) -> None:
        await stage.until(lambda: stage.supervisor.front.store.ready)
        for _ in range(MAX_LOST + 1):  # the first look has nothing to compare with
            await stage.tick()
        await stage.until_ready()
        assert stage.said("the engine has said nothing for 120 s")
        stage.supervisor.signalled()
        assert await stage.running == 0

    run_stage(body, Loading(), FakeEngine())


def test_a_long_start_is_left_alone_while_it_works():
    """Broken: a model that takes ten minutes to load is killed every two."""

    async def body(stage: Stage) -> None:
        await stage.until(lambda: stage.supervisor.front.store.ready)
        for _ in range(3 * MAX_LOST):
            await stage.tick()
        assert not stage.said("nothing for")
        stage.supervisor.signalled()
        assert await stage.running == 0

    run_stage(body, Loading(is_busy=True))


def test_a_store_that_answers_nobody_is_killed_and_started_again():
    """Broken: uploads and new adapters wait for ever for a worker that was stopped."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        front = stage.supervisor.front
        stage.store.is_stuck = True
        stage.later_stores.append(FakeStore("upper"))

        async def look() -> None:
            num_heard = front.engine.num_heard
            await stage.tick()
            await stage.until(lambda: front.engine.num_heard > num_heard)

        for _ in range(MAX_LOST):
            await look()
        assert front.store.ready
        asking = asyncio.create_task(front.store.get_card("default", "upper"))
        for _ in range(3):
            await look()
        with pytest.raises(EngineUnavailable):
            await asking
        await stage.until(lambda: front.storing)
        assert stage.said("the store has said nothing for 120 s")
        assert front.engine_restarts == 0
        assert (await front.store.get_card("default", "upper")).key.name == "upper"
        stage.supervisor.signalled()
        assert await stage.running == 0

    run_stage(body, FakeEngine())


class _Working:
    """A child whose processor time grows from look to look."""

    num_ticks = 0

    def work(self) -> int:
        self.num_ticks += 500
        return self.num_ticks


def test_a_step_of_many_minutes_is_no_hang():
    """Broken: a long prompt of a large model on a CPU kills its engine, and again when retried."""
    child: Any = _Working()
    given_up: list[float] = []
    quiet: list[bool] = []
    watch = Watch(
        Watched(
            child=lambda: child,
            is_up=lambda: True,
            num_heard=lambda: 7,
            ask=lambda: None,
            set_quiet=quiet.append,
            give_up=given_up.append,
        )
    )
    for _ in range(MAX_BUSY):  # the first look still sees it come up
        watch.look()
    assert quiet[MAX_QUIET] and not given_up
    watch.look()
    assert given_up == [1800.0]
