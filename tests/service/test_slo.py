"""The SLO bench against a real server: every part of a run that fakes stand for elsewhere."""

from __future__ import annotations

import time
from typing import cast

from lorry.bench.slo.bounds import MultipleBounds
from lorry.bench.slo.figures import figures
from lorry.bench.slo.hands import LiveHands
from lorry.bench.slo.live import LiveServer
from lorry.bench.slo.offers import Axis
from lorry.bench.slo.run import Plan, measure
from lorry.bench.workload.records import BASE, Piece, WorkloadAdapter
from lorry.tests.service_shared import SharedServer
from lorry.tests.slo_builders import make_request, make_workload

RATE_PER_S = 200.0
PLAN = Plan(
    Axis(rates_per_s=(RATE_PER_S,)),
    num_rounds=1,
    num_solo_runs=1,
    num_in_flight=3,
    num_closed_loop=9,
    ttft_x=1e6,
    tpot_x=1e6,
)


def test_measured_for_real(shared: SharedServer) -> None:
    """Asked alone, in a closed loop and in the open one, from a process of its own; the server's
    counters agree with what the client has."""
    names = ("r1", "r64", BASE)
    requests = [
        make_request(i + 1.0, names[i % 3], prompt=(Piece(i, 5 + i),), num_new_tokens=4)
        for i in range(12)
    ]
    adapters = (WorkloadAdapter("r1", 1, 0.5), WorkloadAdapter("r64", 64, 0.5))
    workload = make_workload(requests, adapters=adapters)
    info = shared.client.info()
    server = LiveServer("fcfs", shared.address, shared.client, info.vocab_size)
    servers = {"fcfs": server}
    found = measure(
        workload,
        servers,
        LiveHands(servers, timeout_s=60.0),
        PLAN,
        now_s=time.perf_counter,
        tell=lambda _: None,
    )
    (cell,) = found.cells
    assert not [why for why in cell.failures if "send lag" not in why], "lag is the machine's"
    tries = len(cell.late) + 1
    assert tries <= 2
    assert cell.counters["requests_finished_total"] == 12
    assert found.capacity.requests_per_s > 0
    told = figures(cell.run, found.offers[0].workload, found.rule)
    assert (told.num_met, told.outcomes["ok"]) == (12, 12), cell.run
    rule = cast(MultipleBounds, found.rule)
    assert {one.rank for one in rule.table.cells} == {0, 1, 64}
    assert all(one.ttft_s > 0 for one in rule.table.cells)
