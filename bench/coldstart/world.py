"""Live servers of the study: one `lorry serve` a label, all up at once, with the same flags.

Owns what they are started with (one core computes, a helper has the next; a pool that holds every
adapter of the run beside the KV; no prefix cache and no prefetch by popularity, which would warm
what is to be cold), their stores, which outlive them from one ratio to the next, and the link that
makes a ratio. Uses the fleet, the client and the capacity of `lorry bench slo`. Called by study.py
through its protocol.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ... import Client
from ...adapters.footprint import adapter_pages, find_targets
from ...proto.async_client import AsyncClient
from ...server.execution.meta_model import read_model_memory
from ..memory.pool_bytes import pool_bytes_for
from ..server_process import ServerProcess
from ..slo.asking import AskOne
from ..slo.client import PATIENCE_S, SendOptions
from ..slo.counters import Counters
from ..slo.fleet import TARGETS, FleetFiles, prepare_fleet
from ..slo.hands import LiveHands
from ..slo.live import CALL_TIMEOUT_S, START_TIMEOUT_S, LiveServer
from ..slo.offers import FRESH_SEED, fresh_requests
from ..slo.rates import measure_capacity, run_closed_loop
from ..throughput.workload import Place
from ..workload.records import Piece, Workload, WorkloadRequest
from ..workload.tokens import prompt_ids
from .places import POOL, Porter
from .send import Answered, send_in_child
from .sizes import (
    AUTO,
    COLD_SHAPE,
    IDEALS,
    IN_FLIGHT,
    KV_TOKENS,
    MAX_RUNNING,
    MAX_STEP_TOKENS,
    PREFILL_TOKENS,
    RANK,
    Sizes,
)
from .study import Link, Probe
from .workloads import WARM, Fleet, cold_names, draw_fleet

PROBE = "probe"
NUM_WARM_UPS = 2
NUM_LESSONS = 4  # loads of rank 64 before the first cell, beside those of the part `single`
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of every server, so that nothing is evicted within a run."""

    pool_bytes: int
    host_bytes: int
    adapter_bytes: int  # that cross the link for one of rank 64


@dataclass(frozen=True, slots=True)
class LiveStage:
    """The servers of one ratio."""

    servers: Mapping[str, LiveServer]  # by label
    files: FleetFiles
    link: Link

    def prepare(self, label: str, workload: Workload, *, on_disk: bool) -> None:
        async def place(porter: Porter) -> None:
            if label in IDEALS:
                await porter.until_in(POOL, cold_names(workload))
            else:
                await porter.chill(cold_names(workload), on_disk=on_disk)
            await porter.until_in(POOL, WARM)

        self._at(label, place)
        self.settle(label)
        LiveHands(self.servers, PATIENCE_S).warm_up(label)

    def settle(self, label: str) -> Counters:
        return self.servers[label].settle()

    def send(self, label: str, workload: Workload) -> Answered:
        server = self.servers[label]
        options = SendOptions(label, server.vocab_size, prompt_ids, timeout_s=PATIENCE_S)
        return send_in_child(server.address, workload, options)

    def loads_s(self, label: str, workload: Workload) -> Mapping[str, float]:
        """None of an ideal: its adapters were loaded long before."""
        if label in IDEALS:
            return {}
        return self._at(label, lambda porter: porter.loads_s(cold_names(workload)))

    def _at(self, label: str, work: Callable[[Porter], Awaitable[Found]]) -> Found:
        return at_server(self.servers[label].address, self.files, work)


@dataclass(frozen=True, slots=True)
class LiveWorld:
    """On one machine; all servers are children of this process."""

    place: Place
    sizes: Sizes
    cache: Path  # of the model and the adapters
    stores: Path  # a folder that is nobody else's: a store for each label
    num_helpers: int
    flags: tuple[str, ...] = ()  # further ones, which win

    def probe(self) -> Probe:
        with ExitStack() as stack:
            files, fleet = self._files()
            server = stack.enter_context(self._server(PROBE, AUTO, 0.0))
            name = fleet.sustained.adapters[0].name
            names = [one.name for one in fleet.sustained.adapters]
            for work in (_pin, _until_pinned):
                at_server(server.address, files, partial(work, names=names))
            return Probe(self._prefill_s(server, name), self._capacity_per_s(server, fleet))

    @contextmanager
    def stage(self, ratio: float, prefill_s: float) -> Generator[LiveStage]:
        """Raises:
        ServerFailed: one does not start, or does not stop as it should.
        OutOfPlace: the adapters of an ideal do not come into its pool.
        """
        files, fleet = self._files()
        adapter_bytes = self.memory(fleet).adapter_bytes
        bytes_per_s = adapter_bytes / (ratio * prefill_s) if ratio else 0.0
        with ExitStack() as stack:
            servers = {
                label: stack.enter_context(self._server(label, way_of(label), bytes_per_s))
                for label in self.sizes.labels
            }
            for work in (_pin, _until_pinned):  # all load at once, each over its own link
                for label, server in servers.items():
                    names = tuple(files.adapters) if label in IDEALS else WARM
                    at_server(server.address, files, partial(work, names=names))
            for label in servers:
                LiveHands(servers, PATIENCE_S).ask_alone(label, partial(_teach, fleet=fleet))
            yield LiveStage(servers, files, Link(ratio, bytes_per_s, adapter_bytes))

    def setting(self) -> dict[str, Any]:
        """Of all servers, for the document."""
        files, fleet = self._files()
        memory = self.memory(fleet)
        return {
            "model": files.model,
            "flags": self.server_flags("WAY", 0.0, memory),
            "adapter_bytes": memory.adapter_bytes,  # of one of rank 64
            "adapters": len(fleet.adapters),
            "cold": "before every cell each cold adapter is deleted and uploaded again",
        }

    def server_flags(self, way: str, bytes_per_s: float, memory: Memory) -> tuple[str, ...]:
        """All that differs from the server's defaults."""
        place, linked = self.place, ("--link-bytes-per-s", f"{bytes_per_s:.0f}")
        return (
            *("--device", place.device, "--dtype", place.dtype),
            *("--threads", str(place.num_threads), "--helpers", str(self.num_helpers)),
            *("--pool-bytes", str(memory.pool_bytes), "--host-bytes", str(memory.host_bytes)),
            *("--max-running", str(MAX_RUNNING), "--max-step-tokens", str(MAX_STEP_TOKENS)),
            *("--no-prefix-cache", "--no-prefetch", "--cold-start", way),
            *(linked if bytes_per_s else ()),
            *self.flags,
        )

    def memory(self, fleet: Fleet) -> Memory:
        model = read_model_memory(self._files()[0].base, dtype=self.place.dtype)
        targets = find_targets(model.shape.spec.sites, TARGETS)
        ranks = {one.rank for one in fleet.adapters} | {RANK}
        pages_of = {rank: adapter_pages(model.shape, targets, rank).num_pages for rank in ranks}
        num_adapter_pages = sum(pages_of[one.rank] for one in fleet.adapters)
        num_pages = num_adapter_pages + -(-KV_TOKENS // model.shape.tokens_per_page)
        page_bytes = model.shape.page_bytes
        return Memory(
            pool_bytes_for(num_pages, model, device=self.place.device),
            host_bytes=2 * num_adapter_pages * page_bytes,  # a version and the one before it
            adapter_bytes=pages_of[RANK] * page_bytes,
        )

    def _files(self) -> tuple[FleetFiles, Fleet]:
        fleet = draw_fleet(self.sizes)
        return prepare_fleet(fleet.adapters, self.cache, shape=COLD_SHAPE), fleet

    @contextmanager
    def _server(self, label: str, way: str, bytes_per_s: float) -> Generator[LiveServer]:
        """With every adapter in its store, which it finds there at the next ratio."""
        files, fleet = self._files()
        store = self.stores / label.replace(" ", "-")
        store.mkdir(parents=True, exist_ok=True)
        flags = self.server_flags(way, bytes_per_s, self.memory(fleet))
        with (
            ServerProcess(files.base, store, *flags, start_timeout_s=START_TIMEOUT_S) as process,
            Client(process.address, timeout_s=CALL_TIMEOUT_S) as client,
        ):
            vocab_size = client.info().vocab_size
            at_server(process.address, files, lambda porter: porter.stock())
            yield LiveServer(label, process.address, client, vocab_size)
            process.stop()

    def _prefill_s(self, server: LiveServer, name: str) -> float:
        """By the server's clock, from first scheduling to first token: no way to a client in it."""
        found: list[float] = []
        with Client(server.address, timeout_s=CALL_TIMEOUT_S) as client:
            for idx in range(NUM_WARM_UPS + self.sizes.num_prefills):
                prompt = (Piece(2 * FRESH_SEED + idx, PREFILL_TOKENS),)
                ids = prompt_ids(prompt, vocab_size=server.vocab_size)
                answer = client.complete(
                    ids, adapter=name, max_new_tokens=1, ignore_eos=True, temperature=0.0
                )
                found.append(answer.timing.prefill_s)
        return statistics.median(found[NUM_WARM_UPS:])

    def _capacity_per_s(self, server: LiveServer, fleet: Fleet) -> float:
        """All adapters cached."""
        count = max(3 * IN_FLIGHT, self.sizes.num_s3)
        requests = fresh_requests(fleet.sustained, count)
        measure = partial(
            measure_capacity, requests=requests, in_flight=IN_FLIGHT, now_s=time.perf_counter
        )
        found = LiveHands({PROBE: server}, PATIENCE_S).ask_alone(PROBE, measure)
        return found.requests_per_s


def way_of(label: str) -> str:
    """The ideal is the same server as `auto`, with every adapter in its pool."""
    return AUTO if label in IDEALS else label


def at_server(address: str, files: FleetFiles, work: Callable[[Porter], Awaitable[Found]]) -> Found:
    async def with_client() -> Found:
        async with AsyncClient(address, timeout_s=CALL_TIMEOUT_S) as client:
            return await work(Porter(client, files.adapters))

    return asyncio.run(with_client())


async def _pin(porter: Porter, names: Collection[str]) -> None:
    await porter.pin(names)


async def _until_pinned(porter: Porter, names: Collection[str]) -> None:
    await porter.until_in(POOL, names)


async def _teach(ask: AskOne, *, fleet: Fleet) -> None:
    """Loads of all sizes, which nobody judges: what the link takes is learnt from them.

    Raises:
        NoCapacity: a request failed.
    """
    names = [*fleet.points.values(), *(one.name for one in fleet.sustained.adapters[:NUM_LESSONS])]
    requests = [
        WorkloadRequest(0.0, name, (Piece(3 * FRESH_SEED + idx, 16),), 2)
        for idx, name in enumerate(names)
    ]
    await run_closed_loop(ask, requests, in_flight=2, now_s=time.perf_counter)
