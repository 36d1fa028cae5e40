"""One call with several answers: seeds, indices, and one fate for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.config import SchedulingConfig
from lorry.server.errors import InvalidRequest, Overloaded
from lorry.server.rpc.fanout import ANSWERS, answer_seed
from lorry.server.rpc.request import MAX_ANSWERS, read_terms
from lorry.server.seam import Cancel, Progress, Reject, Submit
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    Service,
    make_finish,
    make_info,
    running_service,
)


def run(body: Callable[[Service], Awaitable[None]], *, behaviour: str = "silent") -> None:
    async def main() -> None:
        engine = FakeEngine(behaviour=behaviour)
        async with asyncio.timeout(30), running_service(engine=engine) as running:
            await body(running)

    asyncio.run(main())


def start(service: Service, **fields: Any) -> Any:
    stub: Any = pb_grpc.GenerationStub(service.channel)
    return stub.Generate(pb.GenerateRequest(text="abc", **fields), timeout=PATIENCE_S)


async def submitted(service: Service, count: int) -> list[Submit]:
    return [await service.engine.heard(Submit) for _ in range(count)]


def test_each_answer_has_its_index_its_seed_and_its_end():
    """Broken: answers mix, or one of them cannot be had again by the seed it tells."""

    async def body(service: Service) -> None:
        call = start(service, n=3, adapter="upper", prompt_logprobs=1, sampling=pb.Sampling(seed=7))
        submits = await submitted(service, 3)
        assert len({submit.request_id for submit in submits}) == 3
        assert [submit.sampling.seed for submit in submits] == [answer_seed(7, i) for i in range(3)]
        assert submits[0].sampling.seed == 7
        # The prompt's own are computed and told once.
        assert [submit.sampling.prompt_logprobs for submit in submits] == [1, -1, -1]
        assert len({submit.adapter for submit in submits}) == 1
        for index in (2, 0, 1):
            service.engine.say(Progress(submits[index].request_id, (70 + index,)))
        for index in (1, 2, 0):
            service.engine.say(make_finish(submits[index], 1))
        parts = [part async for part in call]
        chunks = [part.chunk for part in parts[:3]]
        finals = [part.final for part in parts[3:]]
        assert [(chunk.index, list(chunk.token_ids)) for chunk in chunks] == [
            (index, [70 + index]) for index in (2, 0, 1)
        ]
        assert [final.index for final in finals] == [1, 2, 0]
        assert [final.seed for final in finals] == [answer_seed(7, index) for index in (1, 2, 0)]
        assert {final.adapter_version for final in finals} == {1}
        assert {final.usage.completion_tokens for final in finals} == {1}
        assert service.front.engine.num_open == 0

    run(body)


def test_seeds_of_answers_are_far_apart():
    """Broken: the second answer of seed 1 is the first of seed 2."""
    seeds = {answer_seed(seed, index) for seed in range(200) for index in range(16)}
    assert len(seeds) == 200 * 16
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    # SplitMix64's published first outputs: a seed gives the same answers in the next release.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    seed = 1234567 ^ ANSWERS
    assert [answer_seed(seed, index) for index in (1, 2, 3)] == outputs


def test_one_that_is_refused_takes_the_others_with_it():
    """Broken: answers nobody will read go on, or the client waits for one that never comes."""

    async def body(service: Service) -> None:
        call = start(service, n=3)
        submits = await submitted(service, 3)
        full = Overloaded("10 of 10 wait", field="queue", retry_after_s=2.5)
        service.engine.say(Progress(submits[0].request_id, (70,)))
        service.engine.say(make_finish(submits[2], 0))
        service.engine.say(Reject(submits[1].request_id, full))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The only one the engine still works for; the refused and the ended are no one's.
        assert await service.engine.heard(Cancel) == Cancel(submits[0].request_id)
        assert service.front.engine.num_open == 0
        assert service.engine.commands.empty()

    run(body)


def test_a_client_that_leaves_cancels_all():
    """Broken: some of the answers hold their pages after their client has gone."""

    async def body(service: Service) -> None:
        call = start(service, n=3)
        submits = await submitted(service, 3)
        service.engine.say(Progress(submits[1].request_id, (70,)))
        await call.read()
        call.cancel()
        cancelled = {(await service.engine.heard(Cancel)).request_id for _ in submits}
        assert cancelled == {submit.request_id for submit in submits}

    run(body)


def test_an_engine_that_dies_ends_the_call_once():
    """Broken: a call with several answers ends with several errors, or with none."""

    async def body(service: Service) -> None:
        call = start(service, n=2)
        submits = await submitted(service, 2)
        service.engine.say(make_finish(submits[0], 0))
        assert (await call.read()).HasField("final")
        service.engine.die()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(body)


def test_more_answers_than_the_queue_holds_are_refused():
    """Broken: a call that can never be taken is told to come back."""
    request = pb.GenerateRequest(text="a", n=3)

    def wish(max_waiting: int) -> int:
        defaults = SchedulingConfig(max_waiting=max_waiting)
        return read_terms(request, info=make_info(), defaults=defaults).num_answers

    assert wish(3) == 3
    with pytest.raises(InvalidRequest, match="n is 3; at most 2"):
        wish(2)
    request.n = MAX_ANSWERS + 1
    with pytest.raises(InvalidRequest, match=str(MAX_ANSWERS)):
        wish(1000)
    request.n = 0
    assert wish(1000) == 1
