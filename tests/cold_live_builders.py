"""An engine around the real runner, link and host tier, whose loads move when a test says so.

Time stands still until somebody waits for it: a step that waits for a layer lets it flow, as a
test may. Helpers compute in the step's own thread, by the definition.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lorry.adapters.host_tier import HostTier
from lorry.adapters.image_file import OpenImage, open_image
from lorry.adapters.key import AdapterCard
from lorry.server.config import MemoryConfig
from lorry.server.engine import Engine
from lorry.server.engine_parts import ColdParts, EngineParts
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.execution.runner import Runner
from lorry.server.intake import Gate
from lorry.server.memory.cold import ColdFacts
from lorry.server.memory.pool import Pool
from lorry.server.memory_rooms import join_memory
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.records import StepLimits
from lorry.server.scheduling.starts import StartPrices, Way
from lorry.server.scheduling.state import SchedulerState
from lorry.server.scheduling.step_work import NO_WORK
from lorry.server.seam import Command, Finish, Progress, Reject, Released
from lorry.server.seam_ends import LocalEnd
from lorry.tests.cold_builders import ReferenceHandover
from lorry.tests.link_builders import WITHIN_S, ManualTime

BYTES_PER_S = 1e6
MOST_STEPS = 2000
STEP_S = 1e-3  # that a step is foretold to take
QUIET = MemoryConfig(prefetch=False)


class NudgedBoard(LandedBoard):
    """Whoever would have to wait says so first."""

    def __init__(self, on_wait: Callable[[], object]) -> None:
        super().__init__()
        self.on_wait = on_wait

    def await_landed(self, slot: int, layer: int, timeout_s: float) -> bool:
        if not super().await_landed(slot, layer, 0.0):
            self.on_wait()
        return super().await_landed(slot, layer, timeout_s)

    def await_either(self, slot: int, layer: int, timeout_s: float) -> bool:
        if not super().await_either(slot, layer, 0.0):
            self.on_wait()
        return super().await_either(slot, layer, timeout_s)


class Disk:
    """Files whose bytes behind the first group of layers come when a test says so, or never."""

    def __init__(self) -> None:
        self.gated, self.breaks = False, False
        self.gate = threading.Event()

    @contextmanager
    def open(self, path: Path) -> Generator[OpenImage]:
        with open_image(path) as image:
            gated = cast(Any, _GatedFile(image.file, self))
            yield replace(image, file=gated) if self.gated else image


class _GatedFile:
    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk, self._num_reads = file, disk, 0

    def readinto(self, part: memoryview) -> int:
        self._num_reads += 1
        if self._num_reads > 1:
            assert self._disk.gate.wait(WITHIN_S), "nobody lets the disk go on"
            if self._disk.breaks:
                raise OSError("a sector that cannot be read")
        return self._file.readinto(part)


@dataclass
class ColdLive:
    """`ways`: that are allowed; a test may change them."""

    engine: Engine
    end: LocalEnd
    pool: Pool
    link: PoolLink
    host_tier: HostTier
    time: ManualTime
    board: NudgedBoard
    handover: ReferenceHandover
    disk: Disk
    ways: set[Way]
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[int, Finish | Exception] = field(default_factory=dict[int, Finish | Exception])
    released: list[str] = field(default_factory=list[str])

    def tell(self, *commands: Command) -> None:
        for command in commands:
            self.end.commands.put(command)

    def step(self, patience_s: float = 0.0) -> float:
        patience_s = self.engine.step(patience_s)
        while not self.end.reports.empty():
            for event in self.end.reports.get().events:
                match event:
                    case Progress():
                        self.tokens[event.request_id] += event.token_ids
                    case Finish():
                        self.ended[event.request_id] = event
                    case Reject():
                        self.ended[event.request_id] = event.error
                    case Released():
                        self.released.append(event.key.name)
                    case _:
                        pass
        return patience_s

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Waits for the link where there is nothing else to do."""
        patience_s = 0.0
        for _ in range(MOST_STEPS):
            if is_done():
                return
            assert not (math.isinf(patience_s) and self.end.commands.empty()), "it sleeps over it"
            patience_s = self.step(min(patience_s, WITHIN_S))
        raise AssertionError(f"not done after {MOST_STEPS} steps")

    def run_dry(self, *request_ids: int) -> None:
        """Until these have ended and the link is idle; then nothing is held."""
        self.time.flow()
        self.run_until(lambda: set(request_ids) <= self.ended.keys())
        self.run_until(lambda: not any(r.loading for r in self.engine.stats(pages=False).residents))

    def close(self) -> None:
        """Ends the engine; pages, images and the hand-over are as they were before it."""
        self.engine.stopping = True
        self.time.flow()
        self.disk.gate.set()
        self.engine.run()
        assert not self.handover.images, "helpers read on"
        held = [image for image in self.images if image.num_holders]
        assert not held, f"{len(held)} images are held for ever"

    @property
    def images(self) -> list[Any]:
        """All that the host tier keeps."""
        return list(self.host_tier._kept.values())  # pyright: ignore[reportPrivateUsage]

    def in_host(self, *cards: AdapterCard) -> None:
        """Reads them into host memory."""
        for card in cards:
            self.host_tier.let_go(self.host_tier.fetch(card))


def _model(allowed: set[Way]) -> CostModel:
    # A stream begins when its load is about to end, help is asked for while it lasts.
    load_s = 5.0 if Way.ASSIST in allowed else 0.0
    return CostModel(tuple(NO_WORK._replace(steps=STEP_S)), load_s=load_s)


def make_live(
    runner: Runner, *ways: Way, num_readers: int = 1, memory: MemoryConfig = QUIET
) -> ColdLive:
    """Around a runner without slots; ways without WAIT are gone whatever they cost."""
    end, time, disk, allowed = LocalEnd(), ManualTime(), Disk(), set(ways)
    info, board = runner.info(), NudgedBoard(time.flow)
    runner.poison(range(info.num_pages))
    pool = Pool(info.num_pages, on_free=runner.poison)
    host_tier = HostTier(8 << 20, like=runner.pool_PE, open_file=disk.open)
    link = PoolLink(
        host_tier,
        runner.pool_PE,
        end.wake,
        num_readers=num_readers,
        bytes_per_s=BYTES_PER_S,
        clock=time,
        wait=time.wait,
        board=board,
    )
    handover = ReferenceHandover(cast(Any, info))
    runner.use_cold(board=board, handover=handover, patience_s=WITHIN_S)
    num_layers = 1 + max(site.layer for site in info.image_spec.sites)

    model = partial(_model, allowed)
    facts = ColdFacts(model, host_tier.contains, lambda card: True)
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=info.tokens_per_page,
        max_slots=info.num_pages,
        memory=memory,
        in_host=host_tier.contains,
        cold=facts,
    )
    limits = runner.limits
    engine = Engine(
        EngineParts(
            end=end,
            state=SchedulerState(limits.max_running, 100),
            pool=pool,
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=host_tier,
            runner=runner,
            limits=StepLimits(limits.max_running, limits.max_step_tokens),
            gate=Gate(info.num_pages, info.tokens_per_page, info.max_model_len, limits.max_rank),
            clock=time,
            audits=True,
            model=info.fingerprint,
            cold=ColdParts(
                runner.attach_cold,
                lambda: StartPrices(frozenset(allowed), model(), num_layers=num_layers),
            ),
        )
    )
    return ColdLive(engine, end, pool, link, host_tier, time, board, handover, disk, allowed)
