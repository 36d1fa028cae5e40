"""The arrangement of `lorry bench slo`: loads from a capacity, cells in turn, and what makes a cell
no result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from lorry.bench.load import Reply
from lorry.bench.slo.asking import AskOne
from lorry.bench.slo.cells import Offer, cell_failures, cell_order, run_cells
from lorry.bench.slo.counters import counted_between, counters_of
from lorry.bench.slo.figures import offered_span_s
from lorry.bench.slo.fleet import SHAPE, num_parameters, prepare_fleet
from lorry.bench.slo.lag import lag_of
from lorry.bench.slo.live import LiveServer, ServerUnfit
from lorry.bench.slo.offers import Axis, fresh_requests, make_offers, shown_offer
from lorry.bench.slo.rates import (
    End,
    NoCapacity,
    at_rate,
    mean_rate_per_s,
    measure_capacity,
    run_closed_loop,
    steady,
)
from lorry.bench.slo.source import Source, take_workload
from lorry.bench.slo.stamps import Outcome, Run
from lorry.bench.throughput.workload import ModelShape
from lorry.bench.workload.errors import WorkloadError
from lorry.bench.workload.file import write_workload
from lorry.bench.workload.records import (
    BASE,
    Piece,
    Workload,
    WorkloadAdapter,
    WorkloadRequest,
)
from lorry.proto import lorry_pb2 as pb
from lorry.tests.slo_builders import make_request, make_run, make_stamps, make_workload
from lorry.tests.slo_run_builders import SMALL, FakeServers, ask_in_jumps, make_load, measure_fake


def loop_s() -> float:
    return asyncio.get_running_loop().time()


def test_capacity_is_of_the_full_stretch_alone() -> None:
    """The first batch fills up and the last runs empty: neither says what a server can carry."""
    slow_start = [End(at_s, 10) for at_s in (30.0, 30.0, 31.0, 32.0, 33.0, 34.0, 90.0)]
    found = steady(slow_start, in_flight=2)
    # Five more after the second, sent until the fifth: what ends sixth did so with two out.
    assert found.num_counted == 4
    assert found.requests_per_s == pytest.approx(4 / (34.0 - 30.0))
    assert found.tokens_per_s == pytest.approx(40 / 4.0)
    with pytest.raises(NoCapacity, match="within 0 s"):
        steady([End(1.0, 1)] * 6, in_flight=2)


def test_closed_loop_always_has_as_many_out() -> None:
    """Fewer would measure the client; more would be another load."""
    out, most, least = 0, 0, 99
    requests = [make_request(num_new_tokens=3)] * 12

    async def work(ask: AskOne) -> list[End]:
        async def watched(request: WorkloadRequest) -> Any:
            nonlocal out, most, least
            out += 1
            most = max(most, out)
            reply = await ask(request)
            least = min(least, out)
            out -= 1
            return reply

        return await run_closed_loop(watched, requests, in_flight=4, now_s=loop_s)

    ends, _ = ask_in_jumps(work, lambda _: 2.0)
    assert (most, least) == (4, 1)  # at the end it runs empty
    assert [end.at_s for end in ends] == pytest.approx([2.0 * (i + 1) for i in range(12)])
    found, _ = ask_in_jumps(
        lambda ask: measure_capacity(ask, requests, in_flight=4, now_s=loop_s), lambda _: 2.0
    )
    assert (found.requests_per_s, found.num_requests) == (pytest.approx(0.5), 12)


def test_closed_loop_that_loses_a_request_is_no_capacity() -> None:
    """A server that refuses fast would look like one that answers fast."""

    async def refuse(request: WorkloadRequest) -> Reply:
        return Reply(error="RESOURCE_EXHAUSTED: full")

    requests = [make_request()] * 9
    with pytest.raises(NoCapacity, match="full"):
        asyncio.run(measure_capacity(refuse, requests, in_flight=3, now_s=loop_s))
    with pytest.raises(NoCapacity, match="8 requests; 3 in flight need 9"):
        asyncio.run(measure_capacity(refuse, requests[:8], in_flight=3, now_s=loop_s))


def test_other_rate_same_requests() -> None:
    """Two rates compare loads, not draws of requests."""
    workload = make_load(8)
    assert mean_rate_per_s(workload) == pytest.approx(2.0)
    faster = at_rate(workload, 5.0)
    assert mean_rate_per_s(faster) == pytest.approx(5.0)
    assert [one.at_s for one in faster.requests] == pytest.approx(
        [0.4 * one.at_s for one in workload.requests]
    )
    assert [replace(one, at_s=0.0) for one in faster.requests] == [
        replace(one, at_s=0.0) for one in workload.requests
    ]
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a rate of"):
            at_rate(workload, rate)
    with pytest.raises(ValueError, match="of one instant"):
        at_rate(make_workload(), 1.0)


def test_rate_of_a_load_is_the_one_that_goodput_counts() -> None:
    """A recorded load begins when it did; with two rates, goodput would pass what was offered."""
    late = replace(
        make_load(8),
        requests=tuple(replace(one, at_s=one.at_s + 90) for one in make_load(8).requests),
    )
    assert mean_rate_per_s(late) == pytest.approx(2.0)
    run = FakeServers().send("fcfs", late)
    assert len(run.requests) / offered_span_s(run) == pytest.approx(mean_rate_per_s(late))


def test_offers_are_told_by_what_they_are_of() -> None:
    offers = make_offers(make_load(), Axis((2.0, 0.5), (3.0,)), capacity_per_s=4.0)
    assert [(one.label, one.rate_per_s) for one in offers] == [
        ("0.5x", 2.0),
        ("3/s", 3.0),
        ("2x", 8.0),
    ]
    assert [mean_rate_per_s(one.workload) for one in offers] == pytest.approx([2.0, 3.0, 8.0])
    assert shown_offer(offers, capacity_per_s=4.0).label == "2x"
    assert shown_offer(offers, capacity_per_s=9.0).label == "2x", "the last where none is above"
    (drawn,) = make_offers(make_load(), Axis(), capacity_per_s=4.0)
    assert (drawn.label, drawn.workload) == ("as drawn", make_load())


def test_closed_loop_shares_no_prompt_with_the_cells() -> None:
    """A cache of prefixes would make the cells' prompts cheaper than the capacity's."""
    workload = make_load(4)
    fresh = fresh_requests(workload, 10)
    assert [one.num_prompt_tokens for one in fresh] == [
        workload.requests[i % 4].num_prompt_tokens for i in range(10)
    ]
    seeds = {piece.seed for one in (*fresh, *workload.requests) for piece in one.prompt}
    assert len(seeds) == 14


def test_policies_take_turns_and_change_places() -> None:
    """The second of two always meets a warmer machine."""
    found = [
        (one.round_idx, one.offer_idx, one.policy) for one in cell_order(2, 2, ("fcfs", "slora"))
    ]
    assert found == [
        *((0, 0, "fcfs"), (0, 0, "slora"), (0, 1, "fcfs"), (0, 1, "slora")),
        *((1, 0, "slora"), (1, 0, "fcfs"), (1, 1, "slora"), (1, 1, "fcfs")),
    ]


def run_fake_cells(fake: FakeServers) -> list[Any]:
    offer = Offer("1x", 2.0, make_load(4))
    servers = {"fcfs": fake.servers()["fcfs"]}
    return run_cells(
        servers, [offer], num_rounds=1, warm_up=fake.warm_up, send=fake.send, tell=lambda _: None
    )


def test_no_server_meets_a_prompt_in_two_cells() -> None:
    """What one cell left in the prefix cache would answer the next one's prompts, and the cell that
    comes first would look the slowest. Policies are compared on the same tokens.
    """
    sent: list[tuple[str, Workload]] = []

    class Noting(FakeServers):
        def send(self, policy: str, workload: Workload) -> Run:
            sent.append((policy, workload))
            return super().send(policy, workload)

    shared = Piece(7, 40)  # a system prompt
    requests = [
        make_request(0.5 * (idx + 1), prompt=(shared, Piece(2**64 - 1 - idx, 10 + idx)))
        for idx in range(4)
    ]
    workload = make_workload(requests)
    fake = Noting(lags_s=[0.2])  # the first is late and is sent again
    offers = [Offer("1x", 2.0, workload), Offer("2x", 4.0, workload)]
    run_cells(
        fake.servers(),
        offers,
        num_rounds=2,
        warm_up=fake.warm_up,
        send=fake.send,
        tell=lambda _: None,
    )
    assert len(sent) == 2 * 2 * 2 + 1
    for policy in ("fcfs", "slora"):
        mine = [one for name, one in sent if name == policy]
        seeds = [{piece.seed for one in w.requests for piece in one.prompt} for w in mine]
        assert len(set.union(*seeds)) == 5 * len(mine), "none comes twice"
        for one in mine:
            assert len({request.prompt[0] for request in one.requests}) == 1, "still shared"
            sizes = [[piece.num_tokens for piece in request.prompt] for request in one.requests]
            assert sizes == [[40, 10 + idx] for idx in range(4)]
    fcfs, slora = ([one for who, one in sent if who == name] for name in ("fcfs", "slora"))
    assert fcfs[2:] == slora[1:], "the same for all, but where one was sent twice"


def test_cell_begins_on_an_idle_warm_server() -> None:
    fake = FakeServers()
    (cell,) = run_fake_cells(fake)
    assert fake.log == ["settle fcfs", "warm fcfs", "settle fcfs", "send fcfs", "settle fcfs"]
    assert (cell.counters, cell.failures) == ({"requests_finished_total": 4}, ())


@pytest.mark.parametrize(("num_late", "fails"), [(0, False), (1, False), (2, True)])
def test_late_sender_gets_one_more_try(num_late: int, *, fails: bool) -> None:
    """It says nothing of the server; told in the file, and twice is a failure."""
    fake = FakeServers(lags_s=[0.2] * num_late)
    (cell,) = run_fake_cells(fake)
    assert [round(lag.p99_ms) for lag in cell.late] == [200] * min(num_late, 1)
    assert fake.log.count("send fcfs") == min(num_late, 1) + 1
    assert bool(cell.failures) == fails
    if fails:
        assert "send lag P99 is 200.0 ms, the limit 50 ms" in cell.failures[0]


def test_late_sender_hides_no_fault_of_the_server() -> None:
    """A second try would throw the first one's errors away."""

    class Failing(FakeServers):
        def send(self, policy: str, workload: Any) -> Run:
            run = super().send(policy, workload)
            failed = replace(run.requests[0], outcome=Outcome.FAILED, error="INTERNAL: broken")
            return replace(run, requests=(failed, *run.requests[1:]))

    fake = Failing(lags_s=[0.2])
    (cell,) = run_fake_cells(fake)
    assert (fake.log.count("send fcfs"), cell.late) == (1, ())
    assert any("INTERNAL: broken" in why for why in cell.failures)


def failures_of(run: Run, *, num_requests: int = 2, finished: int = 2) -> tuple[str, ...]:
    workload = make_workload([make_request(float(i)) for i in range(num_requests)])
    return cell_failures(run, workload, lag_of(run), {"requests_finished_total": finished})


def test_what_makes_a_cell_no_result() -> None:
    """A refusal and a timeout are misses of the policy; an error is a fault, and a lost request
    would be no miss at all."""
    good = [make_stamps(i, float(i), (i + 0.5,)) for i in range(2)]
    assert failures_of(make_run(*good)) == ()
    for outcome in (Outcome.REFUSED, Outcome.TIMEOUT):
        full = make_stamps(1, 1.0, outcome=outcome, end_s=2.0)
        assert failures_of(make_run(good[0], full), finished=1) == ()
    broken = make_stamps(1, 1.0, outcome=Outcome.FAILED, error="UNAVAILABLE: gone")
    assert "1 requests failed, the first with: UNAVAILABLE: gone" in failures_of(
        make_run(good[0], broken)
    )
    assert "1 of 3 requests are lost" in failures_of(make_run(*good), num_requests=3)
    assert (
        "the server finished 1 requests, the client has 2"
        in failures_of(make_run(*good), finished=1)[0]
    )


class FakeStats:
    """Answers what the script says, its last line for ever."""

    def __init__(self, *script: pb.Stats) -> None:
        self.script = list(script)
        self.num_asked = 0

    def stats(self) -> pb.Stats:
        self.num_asked += 1
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def settle(client: FakeStats, **options: Any) -> dict[str, int]:
    clock = iter(range(1000))
    server = LiveServer("fcfs", "", client, vocab_size=9, now_s=lambda: float(next(clock)))
    return server.settle(**options)


def test_next_cell_waits_for_the_one_before() -> None:
    busy = pb.Stats(num_running=1), pb.Stats(num_waiting=1)
    client = FakeStats(*busy, pb.Stats(steps_total=7, pages_total=9))
    found = settle(client)
    assert client.num_asked == 3
    assert (found["steps_total"], "pages_total" in found) == (7, False)
    with pytest.raises(ServerUnfit, match="fcfs: 1 running and 0 waiting 5 s after"):
        settle(FakeStats(busy[0]), timeout_s=5.0)
    with pytest.raises(ServerUnfit, match="restarted 1 times"):
        settle(FakeStats(pb.Stats(engine_restarts_total=1)))


def test_counters_are_of_the_cell_alone() -> None:
    before = counters_of(pb.Stats(steps_total=5, adapter_loads_total=2))
    after = counters_of(pb.Stats(steps_total=9, adapter_loads_total=2))
    found = counted_between(before, after)
    assert (found["steps_total"], found["adapter_loads_total"]) == (4, 0)


def test_every_server_meets_the_cells_in_the_same_state() -> None:
    """Unloaded figures are of one of them alone: its adapters are in its pool. The closed loop is
    run by all, so that none has computed its first full batch and long prompt within a cell."""
    asked: dict[str, list[str]] = {}

    class Watching(FakeServers):
        def ask_alone(self, policy: str, work: Any) -> Any:
            def watched(ask: AskOne) -> Awaitable[Any]:
                def note(request: WorkloadRequest) -> Awaitable[Any]:
                    asked.setdefault(policy, []).append(request.adapter)
                    return ask(request)

                return work(cast(AskOne, note))

            return super().ask_alone(policy, watched)

    found = measure_fake(Watching())
    num_loop = SMALL.num_closed_loop
    assert asked["slora"][num_loop:] == ["large", "small"], "the most popular last"
    assert asked["fcfs"][-num_loop - 2 :] == asked["slora"], "the same loop"
    assert asked["fcfs"][-2:] == ["large", "small"]
    assert found.capacity.requests_per_s == pytest.approx(1.0)
    assert {one.ttft_s for one in found.workload.requests} == {10.0}
    assert [cell.turn.policy for cell in found.cells] == ["fcfs", "slora", "slora", "fcfs"]


def test_fleet_is_made_once_and_grows(tmp_path: Path) -> None:
    """Two workloads share what they can: 64 adapters are not made for each."""
    shape = ModelShape(1, 16, 2, 1, 32, vocab_size=300, max_len=64)
    few = [WorkloadAdapter("a", 4, 0.5), WorkloadAdapter("b", 4, 0.5)]
    first = prepare_fleet(few, tmp_path, shape=shape)
    stamps = {path: path.stat().st_mtime_ns for path in first.adapters.values()}
    more = prepare_fleet([*few[::-1], WorkloadAdapter("c", 8, 0.0)], tmp_path, shape=shape)
    assert more.base == first.base
    assert more.adapters["b"] == first.adapters["a"], "by rank and number, not by name"
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    weights = {(path / "adapter_model.safetensors").read_bytes() for path in more.adapters.values()}
    assert len(weights) == 3
    assert not list(first.base.parent.glob("*.part"))


def test_default_workload_fits_the_model() -> None:
    """Adapters of every rank, some requests to the base, nothing longer than the context."""
    workload = take_workload(Source())
    assert len(workload.requests) == 240
    assert {one.rank for one in workload.adapters} == {8, 16, 32, 64}
    base = sum(one.adapter == BASE for one in workload.requests)
    assert 10 <= base <= 40, "a tenth"
    longest = max(one.num_prompt_tokens + one.num_new_tokens for one in workload.requests)
    assert longest <= SHAPE.max_len
    assert 30e6 < num_parameters(SHAPE) < 60e6


def test_workload_comes_from_where_it_was_told(tmp_path: Path) -> None:
    drawn = take_workload(Source("cpu", num_requests=20, seed=3))
    assert (drawn.name, len(drawn.requests), len(drawn.adapters)) == ("cpu", 20, 32)
    assert min(one.num_prompt_tokens for one in drawn.requests) >= 16, "its own scale fits"
    path = tmp_path / "w.jsonl.gz"
    write_workload(drawn, path)
    assert take_workload(Source(file=path, num_requests=5)) == drawn
    with pytest.raises(WorkloadError, match="no-such"):
        take_workload(Source("no-such"))
