"""The open-loop client: punctual whatever the server does, and every end is a stamp."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc.aio
import pytest

from lorry.bench.load import Reply
from lorry.bench.slo.asking import TIMEOUT_S, asker
from lorry.bench.slo.bounds import FixedBounds
from lorry.bench.slo.client import SendOptions, quiet_memory, send_open_loop
from lorry.bench.slo.figures import figures
from lorry.bench.slo.send import send_in_child, send_to
from lorry.bench.slo.stamps import Outcome, Run
from lorry.bench.throughput.child import ChildFailed
from lorry.bench.workload.records import BASE, Piece, Workload, WorkloadAdapter
from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.proto.async_client import AsyncClient
from lorry.proto.errors import DeadlineExceeded, NotFound, Overloaded
from lorry.tests.proto_builders import FakeServer
from lorry.tests.slo_builders import (
    FakeClient,
    make_request,
    make_workload,
    prompt_ids,
    run_in_jumps,
)

EPS_S = 1e-6
NUM_STREAMS = 150  # more than the 100 of many HTTP/2 servers


def send_by(client: FakeClient, workload: Workload, **options: Any) -> Run:
    return run_in_jumps(lambda o: send_open_loop(cast(Any, client), workload, o), **options)


def one_at_a_time(seconds: float) -> FakeClient:
    """A server that needs so long for each request, and has no more than one in hand."""
    turn = asyncio.Lock()

    async def script(asked: dict[str, Any]) -> AsyncIterator[int]:
        async with turn:
            await asyncio.sleep(seconds)
            yield asked["max_new_tokens"]

    return FakeClient(script)


def test_slow_server_does_not_delay_the_next() -> None:
    """The open loop itself: a client that waits offers a slow server less, and flatters it."""
    workload = make_workload([make_request(float(i)) for i in range(8)])
    client = one_at_a_time(10.0)
    run = send_by(client, workload)
    assert client.most_out == 8  # the last leaves at 7 s, before the first answer
    for stamps, request in zip(run.requests, workload.requests, strict=True):
        assert stamps.due_s == request.at_s
        assert stamps.sent_s == pytest.approx(stamps.due_s, abs=EPS_S)
        assert stamps.first_s == pytest.approx(10.0 * (stamps.index + 1), abs=EPS_S)
    found = figures(run, workload, FixedBounds(12.0, 1.0))
    assert found.num_met == 1  # only the first did not wait for others


def test_requests_of_one_instant_leave_together() -> None:
    workload = make_workload([make_request(5.0)] * 20)
    run = send_by(one_at_a_time(1.0), workload, lead_s=3.0)
    assert {round(stamps.sent_s, 6) for stamps in run.requests} == {5.0}


def test_late_sender_sends_at_once_and_says_how_late() -> None:
    """Instants already past (the loop was held up): no request is dropped or moved."""
    workload = make_workload([make_request(0.0), make_request(1.0)])
    run = send_by(one_at_a_time(1.0), workload, lead_s=-4.0)
    assert [stamps.due_s for stamps in run.requests] == [0.0, 1.0]
    assert [stamps.sent_s for stamps in run.requests] == pytest.approx([4.0, 4.0])


def test_what_is_asked() -> None:
    """Exactly so many tokens, greedy, with its own bounds and patience."""
    requests = [
        make_request(0.0, BASE, prompt=(Piece(7, 3), Piece(1, 1)), num_new_tokens=9),
        make_request(0.0, "a", ttft_s=0.5, tpot_s=math.inf),
    ]
    client = one_at_a_time(1.0)
    run = send_by(client, make_workload(requests), timeout_s=77.0)
    assert client.asked[0] == {
        "prompt": [7, 8, 9, 1],
        "adapter": "",
        "max_new_tokens": 9,
        "ignore_eos": True,
        "temperature": 0.0,
        "ttft_s": None,
        "tpot_s": None,
        "timeout_s": 77.0,
    }
    asked = client.asked[1]
    assert (asked["adapter"], asked["ttft_s"], asked["tpot_s"]) == ("a", 0.5, None)
    assert (run.policy, run.simulated) == ("fcfs", False)


def test_prompts_are_made_before_the_clock_starts() -> None:
    """Long ones take longer than a request may be late."""
    log: list[str] = []

    def slow_ids(prompt: tuple[Piece, ...], *, vocab_size: int) -> list[int]:
        log.append("prompt")
        return prompt_ids(prompt, vocab_size=vocab_size)

    async def script(asked: dict[str, Any]) -> AsyncIterator[int]:
        log.append("sent")
        yield 4

    send_by(FakeClient(script), make_workload([make_request()] * 3), prompt_ids=slow_ids)
    assert log == ["prompt"] * 3 + ["sent"] * 3


async def ends_by_name(asked: dict[str, Any]) -> AsyncIterator[int]:
    yield 1
    yield 0  # a message of held-back text
    await asyncio.sleep(2.0)
    match asked["adapter"]:
        case "full":
            raise Overloaded("RESOURCE_EXHAUSTED", "the queue holds 10 requests")
        case "late":
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "patience is over")
        case "missing":
            raise NotFound("NOT_FOUND", "there is no adapter 'missing'")
        case "short":
            yield 2
        case "long":
            yield 4
        case _:
            yield 3


ENDS = {
    "full": (Outcome.REFUSED, "RESOURCE_EXHAUSTED: the queue holds 10 requests"),
    "late": (Outcome.TIMEOUT, "DEADLINE_EXCEEDED: patience is over"),
    "missing": (Outcome.FAILED, "NOT_FOUND: there is no adapter 'missing'"),
    "short": (Outcome.FAILED, "3 of 4 tokens came"),
    "long": (Outcome.FAILED, "5 of 4 tokens came"),
    "a": (Outcome.OK, ""),
}


def test_every_end_is_a_stamp() -> None:
    """Whatever becomes of one, what came of it stays, and the others go on."""
    requests = [make_request(float(i), adapter) for i, adapter in enumerate(ENDS)]
    run = send_by(FakeClient(ends_by_name), make_workload(requests))
    assert [(stamps.outcome, stamps.error) for stamps in run.requests] == list(ENDS.values())
    for stamps in run.requests:
        assert stamps.first_s == pytest.approx(stamps.due_s, abs=EPS_S)
        assert stamps.end_s == pytest.approx(stamps.due_s + 2.0, abs=EPS_S)
    last = run.requests[-1]
    assert (last.piece_tokens, last.num_tokens) == ((1, 3), 4)
    assert last.piece_s == pytest.approx((5.0, 7.0), abs=EPS_S)


def test_bug_ends_the_run() -> None:
    """An error without a name is ours; as a mere miss it would be blamed on the server."""

    async def script(asked: dict[str, Any]) -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as found:
        send_by(FakeClient(script), make_workload())
    assert found.group_contains(ZeroDivisionError)


def test_no_collection_while_it_runs() -> None:
    """A collection of everything takes tens of milliseconds, and comes when it likes."""
    assert gc.isenabled()
    seen: list[bool] = []

    async def script(asked: dict[str, Any]) -> AsyncIterator[int]:
        seen.append(gc.isenabled())
        yield 4

    send_by(FakeClient(script), make_workload())
    assert seen == [False] and gc.isenabled()
    with pytest.raises(ZeroDivisionError), quiet_memory():
        raise ZeroDivisionError
    assert gc.isenabled()


class Waiting(pb_grpc.GenerationServicer, pb_grpc.EngineServicer):
    """Answers nobody before all have come; those of adapter `full` it turns away."""

    def __init__(self, num_awaited: int) -> None:
        self.num_awaited = num_awaited
        self.all_came = asyncio.Event()

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.Info:
        return pb.Info()

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.num_awaited -= 1
        if self.num_awaited == 0:
            self.all_came.set()
        if request.adapter == "full":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        await self.all_came.wait()
        for token in range(request.max_new_tokens):
            yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[token]))
        yield pb.GenerateResponse(final=pb.Final(reason=pb.FINISH_REASON_LENGTH))


async def send_to_waiting(workload: Workload, *, num_awaited: int, timeout_s: float) -> Run:
    server, waiting = grpc.aio.server(), Waiting(num_awaited)
    pb_grpc.add_GenerationServicer_to_server(waiting, server)
    pb_grpc.add_EngineServicer_to_server(waiting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        options = SendOptions("fcfs", 50, prompt_ids, timeout_s=timeout_s, lead_s=0.0)
        return await send_to(f"127.0.0.1:{port}", workload, options)
    finally:
        await server.stop(0)


def test_one_connection_carries_them_all() -> None:
    """A limit of streams would hold requests back inside gRPC, where no stamp shows it."""
    adapters = [WorkloadAdapter(name, 8, 0.5) for name in ("a", "full")]
    requests = [make_request(0.0, "full" if i == 70 else "a") for i in range(NUM_STREAMS)]
    workload = make_workload(requests, adapters=adapters)
    run = asyncio.run(send_to_waiting(workload, num_awaited=NUM_STREAMS, timeout_s=60))
    ends = [stamps.outcome for stamps in run.requests]
    assert ends[70] is Outcome.REFUSED and ends.count(Outcome.OK) == NUM_STREAMS - 1
    first = run.requests[0]
    assert first.piece_tokens == (1, 1, 1, 1)
    assert first.due_s <= first.sent_s <= first.first_s <= first.last_s <= first.end_s


def test_patience_ends() -> None:
    """The server waits for a second request that never comes."""
    run = asyncio.run(send_to_waiting(make_workload(), num_awaited=2, timeout_s=0.05))
    (stamps,) = run.requests
    assert stamps.outcome is Outcome.TIMEOUT and math.isnan(stamps.first_s)
    assert stamps.error.startswith("DEADLINE_EXCEEDED")


def test_asked_alone_nobody_is_given_up() -> None:
    """A full batch of prompts takes longer than the server's own bound: a policy that gives up
    would refuse some, and there would be no capacity."""

    async def ask_one(address: str) -> Reply:
        async with AsyncClient(address) as client:
            return await asker(client, lambda prompt: [5, 6])(make_request(num_new_tokens=2))

    with FakeServer(names=()) as server:
        assert not asyncio.run(ask_one(server.address)).error
        (heard,) = server.heard.generate
    assert (heard.slo.ttft_s, heard.max_new_tokens) == (TIMEOUT_S, 2)


@pytest.mark.slow
def test_child_sends_and_returns_the_stamps() -> None:
    """The run happens in another process, and a server that is not there is an error."""
    workload = make_workload([make_request(0.0), make_request(0.01, "missing")])
    options = SendOptions("slora", 50, prompt_ids, timeout_s=60)
    with FakeServer(names=()) as server:
        run = send_in_child(server.address, workload, options)
        assert [list(one.token_ids.ids)[:2] for one in server.heard.generate] == [[1, 2]] * 2
    assert [stamps.outcome for stamps in run.requests] == [Outcome.OK, Outcome.FAILED]
    assert run.policy == "slora"
    with pytest.raises(ChildFailed, match="no server can be reached"):
        send_in_child(server.address, workload, options)
