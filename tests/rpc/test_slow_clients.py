"""Clients that do not read, that leave while they are written to, and that send more than fits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.config import SchedulingConfig
from lorry.server.errors import ClientTooSlow, Overloaded
from lorry.server.rpc.encoding import SHORT_BYTES, EncodingLanes
from lorry.server.rpc.guard import answering
from lorry.server.rpc.request_stream import Backlog, ReadingLimits
from lorry.server.seam import Cancel, Progress, PromptLogprobs, Submit, TokenLogprobs
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    Service,
    make_config,
    make_finish,
    running_service,
)

STALL_S = 0.05
ENTRY = TokenLogprobs(5, -1.0, tuple((token, -2.0) for token in range(20)))


def stretch(request_id: int, num_entries: int) -> PromptLogprobs:
    return PromptLogprobs(request_id, 1, (ENTRY,) * num_entries)


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    return None


def within(body: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await body

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_not_waited_for_without_end():
    """Broken: a call whose client is a stopped process is kept for ever."""

    async def body() -> None:
        stream = Backlog(ReadingLimits(max_write_s=STALL_S)).stream()
        with pytest.raises(ClientTooSlow, match=f"nothing for {STALL_S:g} s"):
            await stream.reading(never())

    within(body())


@pytest.mark.parametrize("before", [False, True])
def test_a_call_with_more_than_is_kept_is_ended_sooner(before: bool):
    """Broken: what one client does not read fills the server's memory."""

    async def body() -> None:
        backlog = Backlog(ReadingLimits(max_stall_s=STALL_S, max_call_queued=1000))
        stream = backlog.stream()
        if before:
            stream.put(stretch(1, 100))
        reading = asyncio.ensure_future(stream.reading(never()))
        await asyncio.sleep(0)
        if not before:
            stream.put(stretch(1, 100))
        with pytest.raises(ClientTooSlow, match="more than 1000"):
            await reading
        stream.close()
        assert backlog.num_queued == 0
        stream.put(stretch(1, 100))
        assert backlog.num_queued == 0, "its late events are not kept"

    within(body())


def test_who_reads_is_not_cut_off_however_much_comes():
    """Broken: a long prompt with all log-probabilities fails although its client reads them."""

    async def body() -> None:
        backlog = Backlog(ReadingLimits(max_stall_s=STALL_S, max_call_queued=10))
        stream = backlog.stream()
        for _ in range(50):
            stream.put(stretch(1, 10))
        for _ in range(50):
            await stream.next()
            await stream.reading(at_once())
        assert backlog.num_queued == 0

    within(body())


def test_where_all_calls_have_too_much_the_one_with_most_is_ended():
    """Broken: many calls, each within its own bound, fill the server's memory; or a call that
    has read everything pays for one that has not.
    """

    async def body() -> None:
        backlog = Backlog(ReadingLimits(max_queued=5000))
        greedy, modest = backlog.stream(), backlog.stream()
        reading = asyncio.ensure_future(greedy.reading(never()))
        await asyncio.sleep(0)
        greedy.put(stretch(1, 200))
        modest.put(stretch(2, 100))
        with pytest.raises(ClientTooSlow, match="5000"):
            await reading
        with pytest.raises(ClientTooSlow, match="5000"):
            await greedy.next()
        assert await modest.next() == stretch(2, 100)
        assert backlog.num_queued == 0

    within(body())


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


def test_an_unread_answer_ends_with_the_limit_it_passed():
    """Broken: the engine's places are free again, so a client can have any number of answers
    made and read none of them.
    """

    async def body(service: Service) -> None:
        limits = ReadingLimits(max_stall_s=STALL_S, max_call_queued=10_000)
        service.front.engine.backlog = Backlog(limits)
        stub = pb_grpc.GenerationStub(service.channel)
        call: Any = stub.Generate(pb.GenerateRequest(text="abc", prompt_logprobs=20))
        submit = await service.engine.heard(Submit)
        for _ in range(40):
            service.engine.say(stretch(submit.request_id, 1024))
        service.engine.say(Progress(submit.request_id, (5,)), make_finish(submit, 1))
        assert await service.front.drain(PATIENCE_S), "it ends although nobody reads"
        assert service.front.engine.backlog.num_queued == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 10000" in (caught.value.details() or "")

    run(body, engine=FakeEngine(behaviour="silent"))


def test_no_more_calls_are_open_than_the_engine_could_have():
    """Broken: calls whose answers are made and not read are counted by nobody."""

    async def body(service: Service) -> None:
        stub = pb_grpc.GenerationStub(service.channel)
        calls: list[Any] = [stub.Generate(pb.GenerateRequest(text="a")) for _ in range(3)]
        submits = [await service.engine.heard(Submit) for _ in calls]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(text="a")).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 3" in (caught.value.details() or "")
        calls[0].cancel()
        await service.engine.heard(Cancel)
        again: Any = stub.Generate(pb.GenerateRequest(text="a"))
        submits.append(await service.engine.heard(Submit))
        service.engine.say(make_finish(submits[-1], 0))
        assert (await again.read()).HasField("final")

    config = replace(make_config(), scheduling=SchedulingConfig(max_running=1, max_waiting=2))
    run(body, engine=FakeEngine(behaviour="silent"), config=config)


class LeavingContext:
    """A call as a handler sees it."""

    def __init__(self, *, left: bool) -> None:
        self.left = left
        self.aborted: list[Any] = []

    def cancelled(self) -> bool:
        return self.left

    def done(self) -> bool:
        return self.left

    async def abort(self, *answer: Any) -> None:
        self.aborted.append(answer)


@pytest.mark.parametrize("left", [True, False])
def test_a_write_to_a_caller_who_has_left_is_no_bug(left: bool, caplog: pytest.LogCaptureFixture):
    """Broken: each client that leaves at the wrong moment is an error in the operator's log."""

    @answering
    async def handler(_request: object, _context: LeavingContext) -> None:
        raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")

    context = LeavingContext(left=left)

    async def body() -> None:
        if left:
            with pytest.raises(asyncio.CancelledError):
                await handler(object(), context)
        else:
            await handler(object(), context)

    asyncio.run(body())
    assert bool(context.aborted) is not left
    assert ("a handler failed" in caplog.text) is not left


def test_a_short_prompt_does_not_wait_for_long_ones_and_a_full_lane_says_so():
    """Broken: one client's long texts hold everybody's chats, or gather without a bound."""

    async def body() -> None:
        lanes = EncodingLanes(max_waiting_bytes=4 * SHORT_BYTES)
        gate = threading.Event()
        size_bytes = 2 * SHORT_BYTES
        try:
            long = [asyncio.ensure_future(lanes.run(size_bytes, gate.wait)) for _ in range(2)]
            await asyncio.sleep(0)
            assert await lanes.run(10, str.upper, "short") == "SHORT"
            with pytest.raises(Overloaded, match=str(4 * SHORT_BYTES)) as caught:
                await lanes.run(size_bytes, gate.wait)
            assert caught.value.retry_after_s > 0
            long[1].cancel()
            await asyncio.wait(long[1:])
            third = asyncio.ensure_future(lanes.run(size_bytes, gate.wait))
            await asyncio.sleep(0)
        finally:
            gate.set()
        assert await asyncio.gather(long[0], third) == [True, True]
        big_bytes = 99 * SHORT_BYTES
        assert await lanes.run(big_bytes, gate.wait), "whatever is alone fits"

    within(body())
