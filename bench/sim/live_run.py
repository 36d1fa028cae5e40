"""Workloads A and B through live servers: what versus.py then argues from.

Owns the arrangement: a server for each policy, each with a step log; alone first (front end,
capacity), then A and B to each of them in rounds whose order alternates, so that
the machine's drift meets all alike. Fits and judges nothing. Called by command.py.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ... import Client
from ...proto import lorry_pb2 as pb
from ...server.config import MemoryConfig
from ...server.overlap import choose_overlap
from ...server.step_meter import MeteredStep
from ..cost.step_logs import Span, read_step_log, steps_within
from ..slo.bounds import FixedBounds, with_bounds
from ..slo.cells import Cell, Offer, run_cells
from ..slo.client import PATIENCE_S
from ..slo.fleet import FleetFiles, prepare_fleet
from ..slo.hands import LiveHands
from ..slo.live import MAX_RUNNING, MAX_STEP_TOKENS, LiveServer, live_servers, server_flags
from ..slo.offers import fresh_requests
from ..slo.rates import Capacity, measure_capacity
from ..slo.run import prime
from ..slo.stamps import Run
from ..throughput.workload import Place
from ..workload.records import Piece, Workload
from ..workload.tokens import prompt_ids
from .fit import AdapterFacts, ServerFacts
from .front_end import Solo, probe
from .live_traces import (
    FIT_LOAD,
    JUDGED_LOAD,
    TPOT_X,
    TTFT_S,
    TraceSize,
    draw_fit,
    draw_judged,
)
from .versus import POLICIES, LiveCell, LiveRuns

# Too small for B's adapters all at once: some have to be loaded again and again.
POOL_BYTES = "64MiB"
# The memory of the simulator's studies (memory_rooms.NOTHING_KEPT): what is compared here are
# steps and policies, with every prompt computed whole.
PLAIN_FLAGS = ("--no-prefix-cache", "--no-prefetch", "--eviction", "lru")
NUM_LOOPED = 8 * MAX_RUNNING  # requests of the closed loop
SOLO_LENS = (16, 96, 192)  # prompts of the probe
NUM_SOLO_ROUNDS = 8
FIT_IDX, JUDGED_IDX = 0, 1  # of the offers
UNKNOWN_BYTES_PER_S = 1e15  # where nothing was loaded, a load takes no time that anyone has seen


Spans = dict[tuple[str, str], list[Span]]  # by policy and workload, in the order of sending


class LiveFailed(Exception):
    """A run that is no result; says which and why."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What the idle server showed."""

    solos: tuple[Solo, ...]
    fit: Capacity
    judged: Capacity


@dataclass(slots=True)
class _Sender:
    """Sends, and notes when on the machine's clock, which is the engine's too."""

    hands: LiveHands
    now_s: Callable[[], float] = time.monotonic
    spans: dict[tuple[str, str], list[Span]] = field(
        default_factory=dict[tuple[str, str], list[Span]]
    )
    # The first server's fit of its loads after its first run, of A. Loads of B's adapters are among
    # them, from before any trace: A's own fit in the pool, so they are loaded from disk and once.
    loads: pb.CostModel | None = None

    def send(self, policy: str, workload: Workload) -> Run:
        server = self.hands.servers[policy]
        began_s = self.now_s()
        run = self.hands.send(policy, workload)
        server.settle()
        span = Span(began_s, self.now_s())
        self.spans.setdefault((policy, workload.name), []).append(span)
        if self.loads is None:
            self.loads = server.client.stats().cost_model
        return run


def run_live(
    size: TraceSize, place: Place, cache: Path, *, tell: Callable[[str], None]
) -> LiveRuns:
    """Raises:
    ServerFailed, ServerUnfit, ChildFailed: a server or a sender did not live.
    SoloFailed, NoCapacity: a request failed although there was room.
    LiveFailed: a run is no result.
    """
    samples = [draw(rate_per_s=1, span_s=NUM_LOOPED) for draw in (draw_fit, draw_judged)]
    files = prepare_fleet([adapter for one in samples for adapter in one.adapters], cache)
    with tempfile.TemporaryDirectory(prefix="lorry-sim-") as home, ExitStack() as stack:
        logs = {policy: Path(home) / f"{policy}.csv" for policy in POLICIES}
        servers = _start(stack, files, place, logs)
        hands = LiveHands(servers, PATIENCE_S)
        first = servers[POLICIES[0]]
        alone = _measure_alone(hands, first, *samples, tell=tell)
        fit = draw_fit(rate_per_s=FIT_LOAD * alone.fit.requests_per_s, span_s=size.fit_s)
        judged = draw_judged(
            rate_per_s=JUDGED_LOAD * alone.judged.requests_per_s, span_s=size.judged_s
        )
        tpot_s = TPOT_X * MAX_RUNNING / alone.judged.tokens_per_s
        judged = with_bounds(judged, FixedBounds(TTFT_S, tpot_s))
        offers = [
            Offer(name, len(one.requests) / one.span_s, one)
            for name, one in (("A", fit), ("B", judged))
        ]
        sender = _Sender(hands)
        cells = run_cells(
            servers,
            offers,
            num_rounds=size.num_rounds,
            warm_up=hands.warm_up,
            send=sender.send,
            tell=tell,
        )
        _refuse_failed(cells, offers)
        info, adapters = _tells(first.address)
        stack.close()  # the logs are whole once the servers have ended
        steps = {policy: read_step_log(path) for policy, path in logs.items()}
    cells_of = partial(_live_cells, cells, offers, sender.spans, steps)
    return LiveRuns(
        fit=fit,
        judged=judged,
        fit_cells=cells_of(FIT_IDX),
        judged_cells=cells_of(JUDGED_IDX),
        facts=_facts(files.model, info, place, sender.loads or pb.CostModel(), adapters),
        solos=alone.solos,
        offered={
            "fit_capacity_per_s": alone.fit.requests_per_s,
            "fit_load": FIT_LOAD,
            "judged_capacity_per_s": alone.judged.requests_per_s,
            "judged_load": JUDGED_LOAD,
            "judged_ttft_s": TTFT_S,
            "judged_tpot_s": tpot_s,
        },
    )


def _start(
    stack: ExitStack, files: FleetFiles, place: Place, logs: Mapping[str, Path]
) -> dict[str, LiveServer]:
    servers: dict[str, LiveServer] = {}
    for policy, path in logs.items():
        # The last of two equal flags counts.
        flags = (*server_flags(place), "--pool-bytes", POOL_BYTES, *PLAIN_FLAGS)
        flags = (*flags, "--step-log", str(path))
        servers |= stack.enter_context(live_servers(files, [policy], flags))
    return servers


def _measure_alone(
    hands: LiveHands,
    server: LiveServer,
    fit: Workload,
    judged: Workload,
    *,
    tell: Callable[[str], None],
) -> Alone:
    prompts = [
        prompt_ids((Piece(idx, length),), vocab_size=server.vocab_size)
        for idx, length in enumerate(SOLO_LENS)
    ]
    solos = asyncio.run(probe(server.address, prompts, num_rounds=NUM_SOLO_ROUNDS))
    for policy in hands.servers:
        hands.ask_alone(policy, partial(prime, workload=judged))
    capacities = [
        hands.ask_alone(
            server.policy,
            partial(
                measure_capacity,
                requests=fresh_requests(workload, NUM_LOOPED),
                in_flight=MAX_RUNNING,
                now_s=time.perf_counter,
            ),
        )
        for workload in (fit, judged)
    ]
    told = ", ".join(f"{one.requests_per_s:.2f}" for one in capacities)
    tell(f"capacity, requests/s of A and B: {told}")
    return Alone(tuple(solos), *capacities)


def _refuse_failed(cells: Sequence[Cell], offers: Sequence[Offer]) -> None:
    lines = [
        f"round {cell.turn.round_idx + 1}, {offers[cell.turn.offer_idx].label}, "
        f"{cell.turn.policy}: {why}"
        for cell in cells
        for why in cell.failures
    ]
    if lines:
        raise LiveFailed("\n".join(lines))


def _live_cells(
    cells: Sequence[Cell],
    offers: Sequence[Offer],
    spans: Spans,
    steps: Mapping[str, Sequence[MeteredStep]],
    offer_idx: int,
) -> tuple[LiveCell, ...]:
    """Of one of the two traces, each with the steps of the try that counts."""
    name = offers[offer_idx].workload.name
    found: list[LiveCell] = []
    num_sent = dict.fromkeys(steps, 0)  # by policy
    for cell in cells:
        if cell.turn.offer_idx != offer_idx:
            continue
        policy = cell.turn.policy
        num_sent[policy] += len(cell.late) + 1
        span = spans[policy, name][num_sent[policy] - 1]
        inside = tuple(steps_within(steps[policy], span))
        found.append(LiveCell(policy, cell.turn.round_idx, cell.run, cell.lag, inside))
    return tuple(found)


def _tells(address: str) -> tuple[pb.Info, tuple[AdapterFacts, ...]]:
    """What the server says of itself and of its adapters."""
    with Client(address, timeout_s=60) as client:
        return client.info(), tuple(
            AdapterFacts(one.max_rank, one.weight_bytes, one.num_pages)
            for one in client.adapters.list()
        )


def _facts(
    model: str,
    info: pb.Info,
    place: Place,
    loads: pb.CostModel,
    adapters: tuple[AdapterFacts, ...],
) -> ServerFacts:
    return ServerFacts(
        model=model,
        device=place.device,
        num_pages=info.num_pages,
        page_bytes=info.page_bytes,
        tokens_per_page=info.tokens_per_page,
        max_model_len=info.max_model_len,
        max_rank=info.max_rank,
        max_running=MAX_RUNNING,
        max_step_tokens=MAX_STEP_TOKENS,
        host_bytes=MemoryConfig().host_bytes,
        overlaps=choose_overlap(None, device=info.device)[0],
        load_s=loads.load_s,
        load_bytes_per_s=loads.load_bytes_per_s or UNKNOWN_BYTES_PER_S,
        num_loads=loads.learnt_loads,
        adapters=adapters,
    )
