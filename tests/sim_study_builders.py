"""For tests of the simulator's study: hand-made runs, and a "live" server that is a simulator with
a profile of its own, metered as a real one is.
"""

from __future__ import annotations

import math
from dataclasses import replace

from lorry.bench.sim.fit import AdapterFacts, ServerFacts
from lorry.bench.sim.front_end import Solo
from lorry.bench.sim.parts import Door, adapter_card, build_parts
from lorry.bench.sim.profile import Profile
from lorry.bench.sim.replica import Replica
from lorry.bench.sim.stamping import StampBook
from lorry.bench.sim.versus import POLICIES, LiveCell, LiveRuns
from lorry.bench.slo.lag import LagReport
from lorry.bench.slo.stamps import Outcome, RequestStamps, Run
from lorry.bench.workload.records import Workload
from lorry.server.memory_rooms import NOTHING_KEPT
from lorry.server.scheduling.cost_fit import CostFit
from lorry.server.scheduling.policies import POLICIES as BY_NAME
from lorry.server.step_meter import MeteredStep, StepMeter

PUNCTUAL = LagReport(0.0, 0.0, 0.0)


def make_run(*ttft_s: float, policy: str = "fcfs", simulated: bool = False) -> Run:
    """Requests a second apart, answered by two tokens; NaN: refused."""
    return Run(policy, tuple(_stamps(i, one) for i, one in enumerate(ttft_s)), simulated=simulated)


def _stamps(index: int, ttft_s: float) -> RequestStamps:
    due_s = float(index)
    if math.isnan(ttft_s):
        return RequestStamps(index, due_s, due_s, Outcome.REFUSED, due_s + 0.1, error="full")
    first_s = due_s + ttft_s
    pieces_s = (first_s, first_s + 0.1)
    return RequestStamps(index, due_s, due_s, Outcome.OK, pieces_s[1], pieces_s, (1, 1))


def metered_run(
    workload: Workload, profile: Profile, policy: str
) -> tuple[Run, tuple[MeteredStep, ...]]:
    """As a live server would answer and log it, if it were this profile."""
    steps: list[MeteredStep] = []
    book = StampBook(
        workload, reply_s=profile.value("reply_s"), timeout_s=math.inf, all_pieces=True
    )
    door = Door(workload, profile, timeout_s=math.inf, real_prompts=False)
    parts = build_parts(profile, BY_NAME[policy], door, book, memory=NOTHING_KEPT)
    meter = StepMeter(CostFit(), log=steps.append)
    replica = Replica(replace(parts, engine=replace(parts.engine, meter=meter)), book, leaps=False)
    for index in range(len(workload.requests)):
        parts.end.send_in(index, door.arrival_s(index))
    replica.run_until(math.inf)
    return replace(book.run(policy), simulated=False), tuple(steps)


def send_live(workload: Workload, profile: Profile, *, num_rounds: int) -> tuple[LiveCell, ...]:
    """To each policy; every round is the same, since a simulator repeats itself."""
    answers = {policy: metered_run(workload, profile, policy) for policy in POLICIES}
    return tuple(
        LiveCell(policy, round_idx, run, PUNCTUAL, steps)
        for policy, (run, steps) in answers.items()
        for round_idx in range(num_rounds)
    )


def live_runs(fit: Workload, judged: Workload, profile: Profile) -> LiveRuns:
    """Both traces to a server that is `profile`, and what it tells of itself."""
    base_s = profile.value("request_s") + profile.value("reply_s")
    per_token_s = profile.value("request_s_per_token")
    return LiveRuns(
        fit=fit,
        judged=judged,
        fit_cells=send_live(fit, profile, num_rounds=1),
        judged_cells=send_live(judged, profile, num_rounds=2),
        facts=make_facts(profile, fit, judged),
        solos=tuple(Solo(num, base_s + num * per_token_s) for num in (10, 40, 90)),
        offered={},
    )


def make_facts(profile: Profile, *workloads: Workload) -> ServerFacts:
    cards = [adapter_card(one, profile) for workload in workloads for one in workload.adapters]
    return ServerFacts(
        model="made-up",
        device="cpu",
        num_pages=profile.whole("num_pages"),
        page_bytes=profile.whole("page_bytes"),
        tokens_per_page=profile.whole("tokens_per_page"),
        max_model_len=profile.whole("max_model_len"),
        max_rank=profile.whole("max_rank"),
        max_running=profile.whole("max_running"),
        max_step_tokens=profile.whole("max_step_tokens"),
        host_bytes=profile.whole("host_bytes"),
        overlaps=False,
        load_s=profile.value("load_s"),
        load_bytes_per_s=profile.value("load_bytes_per_s"),
        num_loads=3,
        adapters=tuple(
            AdapterFacts(one.max_rank, one.weight_bytes, one.num_pages) for one in cards
        ),
    )
