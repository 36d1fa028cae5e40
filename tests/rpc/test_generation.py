"""Generate through a real gRPC channel, with a fake engine and a fake store behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.errors import DeadlineExceeded, Overloaded
from lorry.server.rpc.link import Outlook
from lorry.server.scheduling.records import RowTimings
from lorry.server.seam import Cancel, Finish, Progress, Reject, Submit
from lorry.tests.rpc_builders import (
    BOS_ID,
    EOS_ID,
    PATIENCE_S,
    FakeEngine,
    Service,
    make_card,
    make_finish,
    running_service,
)


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


async def generate(service: Service, **fields: Any) -> tuple[list[pb.Chunk], pb.Final]:
    stub = pb_grpc.GenerationStub(service.channel)
    chunks: list[pb.Chunk] = []
    async for response in stub.Generate(pb.GenerateRequest(**fields), timeout=PATIENCE_S):
        if response.WhichOneof("part") == "final":
            return chunks, response.final
        chunks.append(response.chunk)
    raise AssertionError("no final message")


async def refusal(service: Service, **fields: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(service, **fields)
    return caught.value


def details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    blob = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    message = kind()
    for packed in status_pb2.Status.FromString(blob).details:
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} among the details")


def test_text_streams_whole_and_the_final_message_adds_up():
    """Broken: text or tokens are lost on the way, or usage and timing come from nowhere."""

    async def body(service: Service) -> None:
        chunks, final = await generate(service, text="naïve 😀!", max_new_tokens=40)
        assert "".join(chunk.text for chunk in chunks) == "naïve 😀!"
        assert all("\N{REPLACEMENT CHARACTER}" not in chunk.text for chunk in chunks)
        assert any(chunk.text == "" for chunk in chunks[1:])  # the emoji took several tokens
        ids = [token for chunk in chunks for token in chunk.token_ids]
        assert ids[0] == BOS_ID
        assert final.usage.prompt_tokens == final.usage.completion_tokens == len(ids)
        assert (final.usage.preemptions, final.usage.cached_tokens) == (2, 1)
        assert final.reason == pb.FINISH_REASON_LENGTH
        assert (final.timing.queue_s, final.timing.load_s) == (0.5, 0.25)
        assert final.timing.tpot_s == pytest.approx(3.0 / (len(ids) - 1))
        assert final.timing.ttft_s > 0

    run(body)


def test_an_answer_cut_inside_a_character_still_equals_decode():
    """Broken: the incomplete last character vanishes, so the text differs from the tokens'."""

    async def body(service: Service) -> None:
        chunks, final = await generate(service, text="é", max_new_tokens=2)
        assert "".join(chunk.text for chunk in chunks) == "\N{REPLACEMENT CHARACTER}"
        assert final.usage.completion_tokens == 2

    run(body)


def test_defaults_and_given_fields_reach_the_engine():
    """Broken: a field of the request is dropped or a default is not the server's."""

    async def body(service: Service) -> None:
        await generate(service, text="ab", adapter="upper")
        plain = await service.engine.heard(Submit)
        assert plain.adapter == make_card("upper")
        assert plain.max_new_tokens == 64 - 3  # what the context has room for
        assert plain.stop_ids == {EOS_ID}
        assert (plain.ttft_s, plain.tpot_s, plain.sampling.temperature) == (2.0, 0.2, 0.0)
        assert 0 < plain.timeout_s < 2 * PATIENCE_S  # gRPC rounds it up
        _, final = await generate(
            service,
            token_ids=pb.TokenIds(ids=[5, 6]),
            max_new_tokens=1,
            sampling=pb.Sampling(temperature=0.5, seed=0),
            slo=pb.Slo(ttft_s=3, tpot_s=4),
            stop_token_ids=[7],
            ignore_eos=True,
        )
        given = await service.engine.heard(Submit)
        assert given.prompt_ids == (5, 6)
        assert given.adapter is None
        assert (given.sampling.seed, given.sampling.temperature, given.max_new_tokens) == (
            0,
            0.5,
            1,
        )
        assert given.stop_ids == {7}
        assert (given.ttft_s, given.tpot_s) == (3, 4)
        assert final.seed == 0
        assert final.adapter_version == 0

    run(body)


def test_a_drawn_seed_is_told():
    """Broken: an answer sampled without a seed cannot be had again."""

    async def body(service: Service) -> None:
        _, final = await generate(service, text="a", adapter="upper")
        assert final.seed == (await service.engine.heard(Submit)).sampling.seed
        assert final.adapter_version == 1
        _, other = await generate(service, text="a")
        assert other.seed != final.seed

    run(body)


NAN, INF = float("nan"), float("inf")
BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("prompt", {}, "missing"),
    ("text", {"text": ""}, "empty"),
    ("token_ids", {"token_ids": pb.TokenIds()}, "empty"),
    ("token_ids", {"token_ids": pb.TokenIds(ids=[5, 259])}, "259"),
    ("prompt", {"token_ids": pb.TokenIds(ids=[5] * 64)}, "64"),
    ("max_new_tokens", {"text": "a", "max_new_tokens": 63}, "62"),
    ("sampling.temperature", {"text": "a", "sampling": pb.Sampling(temperature=-1)}, "-1"),
    ("sampling.temperature", {"text": "a", "sampling": pb.Sampling(temperature=NAN)}, "nan"),
    ("sampling.temperature", {"text": "a", "sampling": pb.Sampling(temperature=INF)}, "inf"),
    ("stop_token_ids", {"text": "a", "stop_token_ids": [300]}, "300"),
    ("stop_token_ids", {"text": "a", "stop_token_ids": [3] * 257}, "256"),
    ("slo.ttft_s", {"text": "a", "slo": pb.Slo(ttft_s=-2)}, "-2"),
    ("slo.tpot_s", {"text": "a", "slo": pb.Slo(tpot_s=NAN)}, "nan"),
]


def test_each_bad_field_is_named_with_its_value_or_limit():
    """Broken: a wrong request runs, or its refusal does not say which field to change."""

    async def body(service: Service) -> None:
        for field, request, word in BAD_FIELDS:
            error = await refusal(service, **request)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, field
            assert word in (error.details() or ""), (field, error.details())
            violation = details(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == field
        assert service.engine.commands.empty()

    run(body)


def test_an_unknown_adapter_is_not_found_by_name():
    """Broken: a request for an adapter that is not there is answered by the base model."""

    async def body(service: Service) -> None:
        error = await refusal(service, text="a", adapter="upper-2")
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert details(error, error_details_pb2.ResourceInfo).resource_name == "upper-2"
        assert service.engine.commands.empty()

    run(body)


def test_a_full_queue_says_when_to_come_back():
    """Broken: clients of a full server hammer it."""

    async def body(service: Service) -> None:
        task = asyncio.create_task(refusal(service, text="a"))
        submit = await service.engine.heard(Submit)
        full = Overloaded("10 of 10 wait", field="queue", retry_after_s=2.5)
        service.engine.say(Reject(submit.request_id, full))
        error = await task
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        delay = details(error, error_details_pb2.RetryInfo).retry_delay
        assert delay.ToMilliseconds() == 2500

    run(body, engine=FakeEngine(behaviour="silent"))


def test_the_engines_deadline_is_the_clients():
    """Broken: an expired request ends with another status than its deadline's."""

    async def body(service: Service) -> None:
        task = asyncio.create_task(refusal(service, text="a"))
        submit = await service.engine.heard(Submit)
        service.engine.say(Reject(submit.request_id, DeadlineExceeded("too late")))
        assert (await task).code() is grpc.StatusCode.DEADLINE_EXCEEDED

    run(body, engine=FakeEngine(behaviour="silent"))


@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_a_client_that_leaves_is_cancelled_in_the_engine(way: str):
    """Broken: pages stay held for an answer that nobody reads."""

    async def body(service: Service) -> None:
        stub = pb_grpc.GenerationStub(service.channel)
        timeout = 0.3 if way == "deadline" else None
        call = stub.Generate(pb.GenerateRequest(text="abc"), timeout=timeout)
        submit = await service.engine.heard(Submit)
        service.engine.say(Progress(submit.request_id, (70,)))
        assert (await call.read()).chunk.token_ids == [70]
        if way == "cancel":
            call.cancel()
        assert await service.engine.heard(Cancel) == Cancel(submit.request_id)
        assert service.front.engine.num_open == 0
        # What crosses the cancel on its way is no one's.
        service.engine.say(make_finish(submit, 1))

    run(body, engine=FakeEngine(behaviour="silent"))


def test_a_dead_engine_ends_its_streams_and_the_next_serves():
    """Broken: a client hangs on a stream whose engine is gone, or is never served again."""

    async def body(service: Service) -> None:
        stub = pb_grpc.GenerationStub(service.channel)
        call = stub.Generate(pb.GenerateRequest(text="abc"), timeout=PATIENCE_S)
        submit = await service.engine.heard(Submit)
        service.engine.say(Progress(submit.request_id, (70,)))
        await call.read()
        service.front.engine.outlook = lambda: Outlook(3.0, "exit code -9")
        service.engine.die()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 3
        assert (await refusal(service, text="a")).code() is grpc.StatusCode.UNAVAILABLE
        service.attach_engine(FakeEngine())
        while not service.front.serving:
            await asyncio.sleep(0)
        assert len((await generate(service, text="a", max_new_tokens=2))[0]) == 2

    run(body, engine=FakeEngine(behaviour="silent"))


def test_calls_before_the_engine_is_up_are_told_to_retry():
    """Broken: a server that listens while its engine loads hangs or crashes its callers."""

    async def body(service: Service) -> None:
        error = await refusal(service, text="a")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error, error_details_pb2.RetryInfo).HasField("retry_delay")

    run(body, up=False)


def test_a_stop_token_is_reported_as_stop():
    """Broken: a client cannot tell a finished answer from a cut one."""

    async def body(service: Service) -> None:
        task = asyncio.create_task(generate(service, text="a"))
        submit = await service.engine.heard(Submit)
        service.engine.say(
            Progress(submit.request_id, (EOS_ID,)),
            Finish(submit.request_id, "stop", 2, 1, RowTimings(0, 0, 0, 0, 0)),
        )
        chunks, final = await task
        assert final.reason == pb.FINISH_REASON_STOP
        assert [chunk.text for chunk in chunks] == [""]
        assert final.timing.tpot_s == 0

    run(body, engine=FakeEngine(behaviour="silent"))
