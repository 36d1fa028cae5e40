"""Starting, restarting and stopping, with fakes in place of the two processes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.errors import (
    ConfigError,
    InternalError,
    LorryError,
    ModelRefused,
)
from lorry.server.keeper import MAX_FAILED_STARTS
from lorry.server.seam import Cancel, Shutdown, Submit
from lorry.server.store_messages import BeginUpload
from lorry.tests.rpc_builders import (
    FakeEngine,
    make_finish,
)
from lorry.tests.supervisor_builders import (
    Loading,
    Stage,
    Stillborn,
    generate,
    run_stage,
)


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

    run_stage(body, FakeEngine())


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

    run_stage(body, Stillborn(error))


def test_a_tokenizer_that_cannot_be_read_ends_the_server():
    """Broken: a server without a tokenizer looks alive and answers nobody."""

    async def body(stage: Stage) -> None:
        assert await stage.running == 2
        assert stage.said("no tokenizer that fits")
        assert not any("\n" in line for line in stage.lines)

    run_stage(body, FakeEngine(), text=ModelRefused("no tokenizer\nthat fits"))


def test_an_engine_that_never_comes_up_is_given_up():
    """Broken: an engine that is killed at every start keeps a terminal busy for ever."""

    async def body(stage: Stage) -> None:
        assert await stage.running == 1
        assert stage.sleeps == [0.1, 0.2]

    run_stage(body, *(Stillborn() for _ in range(MAX_FAILED_STARTS)))


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
    run_stage(body, FakeEngine(), Stillborn(ConfigError("memory is still held")), FakeEngine())


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

    run_stage(body, FakeEngine(behaviour="silent"))


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

    run_stage(body, FakeEngine(behaviour="silent"), drain_s=0.05)


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

    run_stage(body, FakeEngine(behaviour="silent"), drain_s=3600.0)


def test_a_stop_while_the_engine_starts_does_not_wait_for_it():
    """Broken: Ctrl-C during the load of a large model does nothing for minutes."""

    async def body(stage: Stage) -> None:
        await stage.until(lambda: stage.supervisor.front.store.ready)
        stage.supervisor.signalled()
        assert await stage.running == 0
        assert not stage.said("lorry ready")

    run_stage(body, Loading())


@pytest.mark.parametrize("who", ["client", "store"])
def test_a_second_signal_answers_an_upload_that_is_stuck(who: str):
    """Broken: the hurried stop waits seconds for a silent upload, then cuts it without a word.

    Or the upload waits for the store just then, and is promised a restart that never comes.
    """

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        if who == "store":
            stage.store.before_answer[BeginUpload] = threading.Event()
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

    run_stage(body, FakeEngine(), drain_s=3600.0)


def test_a_child_that_cannot_be_started_now_is_started_later():
    """Broken: a machine that is short of memory after a crash loses the whole server."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        stage.engines[0].die()
        await stage.until(lambda: stage.supervisor.front.engine_restarts == 2)
        await stage.until(lambda: stage.supervisor.front.serving)
        assert stage.said("it could not be started: Cannot allocate memory")
        stage.supervisor.signalled()
        assert await stage.running == 0

    no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    run_stage(body, FakeEngine(), no_memory, FakeEngine())


def test_who_asks_while_the_engine_is_down_hears_why_and_when():
    """Broken: UNAVAILABLE without a reason, or clients that come back all the time."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        stage.engines[0].die()
        await stage.until(lambda: stage.said("started again"))
        async with stage.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "its last life ended: exit code 0" in (caught.value.details() or "")
        assert stage.supervisor.front.engine.outlook().retry_after_s > 0
        stage.supervisor.signalled()
        assert await stage.running == 0

    run_stage(body, FakeEngine(), Loading())


def test_an_engine_that_dies_while_draining_stays_down():
    """Broken: a stopping server loads its model once more, and takes that long to end."""

    async def body(stage: Stage) -> None:
        await stage.until_ready()
        async with stage.channel() as channel:
            asking = asyncio.create_task(generate(channel))
            await stage.engines[0].heard(Submit)
            stage.supervisor.signalled()
            stage.engines[0].die()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asking
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await stage.running == 0
        assert stage.sleeps == []

    run_stage(body, FakeEngine(behaviour="silent"))
