"""A run of the SLO bench without servers: one that answers a request a second, in a time that
jumps, and reports made of its cells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from lorry.bench.load import Reply
from lorry.bench.slo.asking import AskOne
from lorry.bench.slo.offers import Axis
from lorry.bench.slo.report import Report
from lorry.bench.slo.run import Measured, Plan, measure
from lorry.bench.slo.stamps import Outcome, RequestStamps, Run
from lorry.bench.throughput.workload import Place
from lorry.bench.workload.records import BASE, Piece, Workload, WorkloadAdapter, WorkloadRequest
from lorry.tests.slo_builders import MACHINE, IdleSelector, make_request, make_stamps, make_workload

SMALL = Plan(Axis(loads=(2.0,)), num_rounds=2, num_solo_runs=2, num_in_flight=3, num_closed_loop=9)


def make_load(num_requests: int = 12) -> Workload:
    """Every half second one, of two lengths, to two adapters and the base."""
    names = ("small", "large", BASE)
    requests = [
        make_request(0.5 * (idx + 1), names[idx % 3], prompt=(Piece(idx, (20, 90)[idx % 2]),))
        for idx in range(num_requests)
    ]
    adapters = (WorkloadAdapter("small", 8, 0.6), WorkloadAdapter("large", 64, 0.4))
    return make_workload(requests, adapters=adapters)


def measure_fake(
    fake: FakeServers, workload: Workload | None = None, plan: Plan = SMALL
) -> Measured:
    return measure(
        workload or make_load(),
        fake.servers(),
        fake,
        plan,
        now_s=lambda: asyncio.get_running_loop().time(),
        tell=lambda _: None,
    )


def make_report(fake: FakeServers | None = None, plan: Plan = SMALL, **changes: Any) -> Report:
    found = measure_fake(fake or FakeServers(), plan=plan)
    values: dict[str, Any] = {
        "command": "lorry bench slo",
        "is_quick": False,
        "policies": ("fcfs", "slora"),
        "model": "a fake; of one request a second",
        "workload": found.workload,
        "rule": found.rule,
        "capacity": found.capacity,
        "offers": found.offers,
        "cells": found.cells,
        "place": Place(num_threads=1),
        "flags": ("--device", "cpu"),
        "machine": MACHINE,
        "load_before": 0.1,
        "wall_s": 1.0,
    }
    return Report(**(values | changes))


def ask_in_jumps(
    work: Callable[[AskOne], Awaitable[Any]], seconds: Callable[[WorkloadRequest], float]
) -> tuple[Any, float]:
    """Runs `work` against a server that answers one request after the other, each in so many
    seconds; what it gives, and the seconds that went by.
    """
    selector = IdleSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    turn = asyncio.Lock()

    async def ask(request: WorkloadRequest) -> Reply:
        async with turn:
            await asyncio.sleep(seconds(request))
        return Reply((0,) * request.num_new_tokens, ttft_s=seconds(request), tpot_s=0.1)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        found = runner.run(cast(Any, work)(ask))
    return found, selector.now_s


@dataclass
class FakeServers:
    """Hands and servers of a run in which each request takes a second, one at a time. `fcfs` lets
    everybody wait; `slora` refuses who would have its first token too late.
    """

    log: list[str] = field(default_factory=list[str])
    lags_s: list[float] = field(default_factory=list[float])  # of the sends to come; then none
    finished: int = 0  # requests of the last send that the server has not counted yet

    def servers(self) -> dict[str, FakeServer]:
        return {policy: FakeServer(policy, self) for policy in ("fcfs", "slora")}

    def ask_alone(self, policy: str, work: Callable[[AskOne], Awaitable[Any]]) -> Any:
        self.log.append(f"ask {policy}")
        found, _ = ask_in_jumps(work, lambda _: 1.0)
        return found

    def warm_up(self, policy: str) -> None:
        self.log.append(f"warm {policy}")

    def send(self, policy: str, workload: Workload) -> Run:
        self.log.append(f"send {policy}")
        lag_s = self.lags_s.pop(0) if self.lags_s else 0.0
        free_s, found = 0.0, list[RequestStamps]()
        for index, request in enumerate(workload.requests):
            first_s = max(free_s, request.at_s) + 1.0
            sent_s = request.at_s + lag_s
            if policy == "slora" and first_s - request.at_s > request.ttft_s:
                found.append(
                    make_stamps(
                        index,
                        request.at_s,
                        sent_s=sent_s,
                        outcome=Outcome.REFUSED,
                        error="RESOURCE_EXHAUSTED: too late",
                    )
                )
                continue
            free_s = first_s
            pieces_s = [first_s + 0.1 * at for at in range(request.num_new_tokens)]
            found.append(make_stamps(index, request.at_s, pieces_s, sent_s=sent_s))
        self.finished = sum(one.outcome is Outcome.OK for one in found)
        return Run(policy, tuple(found))


@dataclass
class FakeServer:
    policy: str
    hands: FakeServers
    num_finished: int = 0

    def settle(self) -> dict[str, int]:
        self.hands.log.append(f"settle {self.policy}")
        self.num_finished += self.hands.finished
        self.hands.finished = 0
        return {"requests_finished_total": self.num_finished}
