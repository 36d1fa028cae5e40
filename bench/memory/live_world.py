"""Real servers for live.py: `lorry serve` on this machine, one for each eviction order.

Owns their flags, start and end, and what is read from their counters. Uses the fleet, the client
and the cells of `lorry bench slo`. Called through live.py's protocol.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...adapters.footprint import adapter_pages, find_targets
from ...proto import lorry_pb2 as pb
from ...server.execution.meta_model import ModelMemory, read_model_memory
from ..slo.cells import Cell, Offer, cell_failures, run_cells
from ..slo.client import PATIENCE_S
from ..slo.fleet import TARGETS, FleetFiles, prepare_fleet
from ..slo.hands import LiveHands
from ..slo.lag import LAG_LIMIT_MS
from ..slo.live import MAX_RUNNING, LiveServer, live_servers, server_flags
from ..slo.rates import mean_rate_per_s, measure_capacity
from ..throughput.workload import Place
from ..workload.records import Workload
from .live import LiveUnfit, Sent
from .pool_bytes import pool_bytes_for
from .rows import ECONOMY, MemoryCounts
from .working_set import working_set


@dataclass(frozen=True, slots=True)
class LiveWorld:
    """On one machine; all servers are children of this process."""

    place: Place
    cache: Path  # of the model and the adapters
    link_bytes_per_s: float = 0.0  # emulated; 0: the machine's own memory
    flags: tuple[str, ...] = ()  # further ones, which win

    def pool_pages(self, workload: Workload) -> int:
        model = self._model(prepare_fleet(workload.adapters, self.cache))
        targets = find_targets(model.shape.spec.sites, TARGETS)
        pages_of = {
            rank: adapter_pages(model.shape, targets, rank).num_pages
            for rank in {one.rank for one in workload.adapters}
        }
        ranks = {one.name: one.rank for one in workload.adapters}
        found = working_set(
            workload,
            adapter_pages=lambda name: pages_of[ranks[name]],
            tokens_per_page=model.shape.tokens_per_page,
        )
        return found.pool_pages

    def capacity_per_s(self, workload: Workload, pool_pages: int) -> float:
        with self._servers(workload, pool_pages, {ECONOMY: ECONOMY}) as servers:
            found = LiveHands(servers, PATIENCE_S).ask_alone(
                ECONOMY,
                partial(
                    measure_capacity,
                    requests=workload.requests,
                    in_flight=MAX_RUNNING,
                    now_s=time.perf_counter,
                ),
            )
        return found.requests_per_s

    def send(
        self, workload: Workload, pool_pages: int, evictions: Mapping[str, str]
    ) -> Mapping[str, Sent]:
        with self._servers(workload, pool_pages, evictions) as servers:
            hands = LiveHands(servers, PATIENCE_S)
            cells = run_cells(
                servers,
                [Offer(workload.name, mean_rate_per_s(workload), workload)],
                num_rounds=1,
                warm_up=hands.warm_up,
                send=hands.send,
                tell=lambda _: None,
            )
            # Counted from the start, one short request to the base among it: each server has
            # answered nothing else.
            counts = {label: counts_of(server.client.stats()) for label, server in servers.items()}
        return {cell.turn.policy: _sent(cell, workload, counts[cell.turn.policy]) for cell in cells}

    def server_flags(self, pool_pages: int, eviction: str, model: ModelMemory) -> tuple[str, ...]:
        pool_bytes = pool_bytes_for(pool_pages, model, device=self.place.device)
        # The last of two equal flags counts.
        flags = [*server_flags(self.place), "--pool-bytes", str(pool_bytes)]
        flags += ["--eviction", eviction]
        if self.link_bytes_per_s:
            flags += ["--link-bytes-per-s", f"{self.link_bytes_per_s:g}"]
        return (*flags, *self.flags)

    @contextmanager
    def _servers(
        self, workload: Workload, pool_pages: int, evictions: Mapping[str, str]
    ) -> Generator[dict[str, LiveServer]]:
        files = prepare_fleet(workload.adapters, self.cache)
        model = self._model(files)
        with ExitStack() as stack:
            servers: dict[str, LiveServer] = {}
            for label, eviction in evictions.items():
                flags = self.server_flags(pool_pages, eviction, model)
                (server,) = stack.enter_context(live_servers(files, ["fcfs"], flags)).values()
                _check_pages(server, pool_pages)
                servers[label] = replace(server, policy=label)
            yield servers

    def _model(self, files: FleetFiles) -> ModelMemory:
        return read_model_memory(files.base, dtype=self.place.dtype)


def counts_of(stats: pb.Stats) -> MemoryCounts:
    memory = stats.memory
    return MemoryCounts(
        prefix_lookup_tokens=memory.prefix_lookup_tokens_total,
        prefix_hit_tokens=memory.prefix_hit_tokens_total,
        adapter_asks=memory.requests_with_adapter_total,
        adapter_hits=memory.pool_hits_total,
        loads=stats.adapter_loads_total,
        preemptions=stats.preemptions_total,
    )


def _check_pages(server: LiveServer, pool_pages: int) -> None:
    """Half a working set is half of it by pages."""
    found = server.client.stats().pages_total
    if found != pool_pages:
        raise LiveUnfit(f"the server has {found} pages, where {pool_pages} were asked for")


def _sent(cell: Cell, workload: Workload, counts: MemoryCounts) -> Sent:
    """A late sender is told apart: its comparison is made again."""
    is_late = bool(cell.late) or cell.lag.p99_ms > LAG_LIMIT_MS
    others = cell_failures(cell.run, workload, replace(cell.lag, p99_ms=0.0), cell.counters)
    return Sent(cell.run, counts, late=is_late, failures=others)
