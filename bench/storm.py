"""`make storm`: a thousand clients leave, run out of time and die, and processes are killed.

A real server on the zoo, its pool too small for its adapters, answers a steady load while events
from a seed befall its clients and its own processes. Every answer is compared with PEFT's, and
whenever the storm pauses nobody may be in and every page must be accounted for. Owns the batches,
the audits and the result; what an event does is storm_events.py's, what befalls processes
storm_server.py's. The tests play a short storm on the server they share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..proto import lorry_pb2 as pb
from ..proto.async_client import AsyncClient
from ..server.children import ENGINE_NAME, STORE_NAME
from ..server.cli_output import console as make_console
from .server_process import ServerProcess
from .storm_asks import Scene, zoo_scene
from .storm_audit import complaints
from .storm_events import Clients, Event, Wrong, draw_events
from .storm_orders import play_orders
from .storm_report import Tally, make_document, show
from .storm_server import Hung, Victim, held_by

RESULT_PATH = Path(__file__).parent / "results" / "storm.json"
ZOO_DIR = Path(__file__).parent / "zoo"
# 108 pages of 32 KiB: the zoo's adapters alone take 168.
POOL_BYTES = 108 << 15
# Fewer bytes than the zoo's images have, so that the host tier turns over too.
HOST_BYTES = 3 << 20
FLAGS = (
    *("--pool-bytes", str(POOL_BYTES), "--host-bytes", str(HOST_BYTES), "--dtype", "float32"),
    *("--max-running", "12", "--max-step-tokens", "48", "--threads", "1", "--debug"),
)
BATCH = 25  # events between two audits
NUM_LOAD = 8  # clients that want nothing but their answers
NUM_AT_ONCE = 8  # events under way
SETTLE_S = 60.0
# Of every thousand cases.
ENGINE_KILLS, STORE_KILLS, FREEZES = 30, 10, 10
BLOWS = ("engine killed", "store worker killed", "engine frozen")
# A connection that was torn is closed by the front end when it next looks.
SPARE_DESCRIPTORS, SPARE_THREADS = 4, 8


class Storm:
    """`seed` decides the events; when they happen the machine has a say in."""

    def __init__(
        self,
        victim: Victim,
        scene: Scene,
        client: AsyncClient,
        *,
        seed: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.victim = victim
        self.scene = scene
        self.client = client
        self._tell = tell
        self.tally = Tally(victim.ready_again_s, victim.store_again_s)
        self._rng = random.Random(seed)
        self._clients = Clients(victim, scene, client)
        self._at_once = asyncio.Semaphore(NUM_AT_ONCE)
        self._calm = asyncio.Event()  # the load rests

    async def play(self, num_cases: int) -> None:
        """All cases, in batches, each followed by an audit."""
        start_s = time.perf_counter()
        await self._batch([], [])
        self.tally.before = held_by(self.victim.front_pid)
        blows = self._draw_blows(num_cases)
        events = draw_events(self._rng, self.scene, num_cases - len(blows))
        num_batches = max(1, -(-num_cases // BATCH))
        by_batch: list[list[str]] = [[] for _ in range(num_batches)]
        for blow in blows:  # some batches see none, some several
            by_batch[self._rng.randrange(num_batches)].append(blow)
        for i in range(num_batches):
            await self._batch(events[i::num_batches], by_batch[i])
            self._tell(f"{i + 1} of {num_batches} batches, {self.tally.num_whole} whole answers")
        await self._check_front()
        self.tally.wall_s += time.perf_counter() - start_s

    async def hang(self) -> None:
        """The engine stops for good, and the watchdog has to notice."""
        self.tally.hang_s = await self.victim.hang_engine(self.client)
        self.tally.count("engine hung", "noticed and replaced")
        await self._batch([], [])

    async def clear(self) -> None:
        """All adapters go, and nothing may be left of them."""
        async for card in self.client.adapters.list():
            await self.client.adapters.delete(card.name)
        await self._until_calm(_left_overs)

    def _draw_blows(self, num_cases: int) -> list[str]:
        shares = zip(BLOWS, (ENGINE_KILLS, STORE_KILLS, FREEZES), strict=True)
        blows = [name for name, share in shares for _ in range(max(1, share * num_cases // 1000))]
        self._rng.shuffle(blows)
        return blows

    async def _batch(self, events: Sequence[Event], blows: Sequence[str]) -> None:
        self._calm.clear()
        seeds = [self._rng.random() for _ in range(NUM_LOAD)]
        load = [asyncio.create_task(self._load(random.Random(seed))) for seed in seeds]
        try:
            await asyncio.gather(*(self._event(event) for event in events), self._blows(blows))
        finally:
            self._calm.set()
            await asyncio.gather(*load)
        self.tally.stats = await self._until_calm(complaints)
        self.tally.num_audits += 1

    async def _load(self, rng: random.Random) -> None:
        """One client after the other, until the storm pauses; at least one."""
        while True:
            try:
                outcome = await self._clients.ask(rng.choice(self.scene.asks))
                self.tally.count("load", outcome)
            except Wrong as wrong:
                self._fail(f"load: {wrong}")
                return
            if self._calm.is_set():
                return
            if outcome == "UNAVAILABLE":
                await asyncio.sleep(0.25)  # as a client would that was told to come back

    async def _event(self, event: Event) -> None:
        async with self._at_once:
            try:
                self.tally.count(event.kind, await self._clients.play(event))
            except Wrong as wrong:
                self._fail(str(wrong))

    async def _blows(self, blows: Sequence[str]) -> None:
        for blow in blows:
            await asyncio.sleep(self._rng.random())
            try:
                match blow:
                    case "engine killed":
                        await self.victim.kill_engine(self.client)
                    case "store worker killed":
                        await self.victim.kill_store(self.client)
                    case _:
                        await self.victim.freeze_engine(2 * self._rng.random())
            except Hung as hung:
                self._fail(f"{blow}: {hung}")
                raise
            self.tally.count(blow, "back")

    async def _until_calm(self, find: Callable[[pb.Stats], list[str]]) -> pb.Stats:
        """Asks until nothing is found, or as long as it may take for a client's end to be seen."""
        end_s = time.perf_counter() + SETTLE_S
        while True:
            stats = await self.client.stats(pages=True)
            found = find(stats)
            if not found:
                return stats
            if time.perf_counter() > end_s:
                self._fail(f"audit {self.tally.num_audits}: {'; '.join(found)}")
                return stats
            await asyncio.sleep(0.02)

    async def _check_front(self) -> None:
        """The front end lives through all of it: what it held it must have let go."""
        before = self.tally.before
        assert before is not None  # taken after the first batch
        end_s = time.perf_counter() + SETTLE_S
        while True:
            after = self.tally.after = held_by(self.victim.front_pid)
            calm = after.descriptors <= before.descriptors + SPARE_DESCRIPTORS
            if calm and after.threads <= before.threads + SPARE_THREADS:
                break
            if time.perf_counter() > end_s:
                self._fail(f"the front end held {before} and now holds {after}")
                break
            await asyncio.sleep(0.1)
        for name in (ENGINE_NAME, STORE_NAME):
            pid = self.victim.pid_of(name)
            if pid is None:
                self._fail(f"there is no process {name}")
            elif name == ENGINE_NAME:
                self.tally.engine_rss_bytes = held_by(pid).rss_bytes

    def _fail(self, sentence: str) -> None:
        self.tally.failures.append(sentence)
        sys.stderr.write(f"storm: {sentence}\n")


def _left_overs(stats: pb.Stats) -> list[str]:
    found = complaints(stats)
    # Prompts to the base stay cached: nobody has deleted it.
    if held := stats.pages_total - stats.pages_free - stats.memory.pages_cached:
        found.append(f"{held} pages are held by nobody's adapters")
    if stats.host_bytes:
        found.append(f"the host tier holds {stats.host_bytes} bytes of deleted adapters")
    return found


async def play_all(args: argparse.Namespace, tell: Callable[[str], None]) -> Tally:
    """A server of one's own through the storm; then the orders of deaths, on further ones."""
    scene = zoo_scene()
    with (
        tempfile.TemporaryDirectory(prefix="lorry-storm-") as store,
        ServerProcess(ZOO_DIR / "base", Path(store), *FLAGS) as server,
    ):
        async with AsyncClient(server.address, timeout_s=60) as client:
            for name, folder in scene.folders.items():
                await client.adapters.upload(folder, name)
            victim = Victim(server.address, server.pid)
            storm = Storm(victim, scene, client, seed=args.seed, tell=tell)
            await storm.play(args.cases)
            if args.hang:
                tell("the engine hangs; two minutes until the watchdog ends it")
                await storm.hang()
            await storm.clear()
        await asyncio.to_thread(server.stop)
    if args.orders:
        tell("deaths in every order")
        storm.tally.orders = await play_orders(scene, FLAGS)
    storm.tally.failures += [f"{k}: {v}" for k, v in storm.tally.orders.items() if v != "ok"]
    return storm.tally


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    console = make_console()
    console.print(f"Storm of {args.cases} cases with seed {args.seed}")
    tally = asyncio.run(play_all(args, console.print))
    document = make_document(tally, num_cases=args.cases, seed=args.seed)
    show(document, console)
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return 1 if tally.failures else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.storm", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT_PATH)
    parser.add_argument("--no-hang", dest="hang", action="store_false")
    parser.add_argument("--no-orders", dest="orders", action="store_false")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
