"""The real engine of an episode, with a clock and a watch of the fuzzer's own.

Owns how the rooms are joined for one life: the runner over the shared model, its limits drawn
with the setting. Knows no requests. Used by fuzz_episode.py.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from ..adapters.host_tier import HeldImage, HostTier
from ..adapters.image import ImageLayout
from ..server.engine import Engine
from ..server.engine_parts import NEVER_COLD, ColdParts, EngineParts
from ..server.execution.batch import StepCapacity, StepResult, StepRow
from ..server.execution.runner import Runner
from ..server.intake import Gate
from ..server.memory.cold import ColdFacts
from ..server.memory.pool import Pool
from ..server.memory_rooms import join_memory
from ..server.scheduling.records import StepLimits
from ..server.scheduling.state import SchedulerState
from ..server.seam_ends import LocalEnd
from .fuzz_link import PacedLink
from .fuzz_records import Setting
from .fuzz_world import MAX_RANK, FuzzWorld


class StepClock:
    """Moves by one step's length when the episode says so."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


class LateFlight:
    """A launched step that is computed when its runner says so, at the latest when waited for.

    Whatever it uses and was given away too early is poisoned or written over by then.
    """

    def __init__(self, runner: WatchedRunner, rows: Sequence[StepRow]) -> None:
        self._runner, self.rows = runner, rows
        self.result: StepResult | None = None

    def wait(self) -> StepResult:
        while self.result is None:
            self._runner.compute_oldest()
        return self.result


class WatchedRunner:
    """The runner, and a count of the runs that leave known tokens for a later step.

    A device computes a launched step some time before it is waited for; here `rng` says when.
    """

    def __init__(self, runner: Runner, rng: random.Random) -> None:
        self._runner, self._rng = runner, rng
        self._late: deque[LateFlight] = deque()  # oldest first
        self.num_chunks = 0
        self.num_late = 0  # steps that were on their way while something else was done

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        self._runner.attach(slot, layout, pages)

    def attach_cold(self, slot: int, image: HeldImage, pages: Sequence[int]) -> None:
        self._runner.attach_cold(slot, image, pages)

    def detach(self, slot: int) -> None:
        self._runner.detach(slot)

    def launch(self, rows: Sequence[StepRow]) -> LateFlight:
        flight = LateFlight(self, rows)
        self._late.append(flight)
        if self._rng.random() < 0.25:
            while self._late:
                self.compute_oldest()
        self.num_late += len(self._late) > 0
        return flight

    def compute_oldest(self) -> None:
        flight = self._late.popleft()
        flight.result = self.run(flight.rows)

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        self.num_chunks += sum(not row.sample for row in rows)
        return self._runner.run(rows)

    def poison(self, pages: Sequence[int]) -> None:
        self._runner.poison(pages)


def make_runner(world: FuzzWorld, setting: Setting) -> Runner:
    limits = StepCapacity(
        max_running=setting.max_running,
        max_step_tokens=setting.max_step_tokens,
        max_model_len=world.loaded.max_model_len,
        max_rank=MAX_RANK,
        max_rows=setting.max_running + setting.max_waiting,
        max_prompt_logits=setting.max_prompt_logits,
    )
    return Runner(world.loaded, num_pages=setting.num_pages, limits=limits)


def make_engine(
    world: FuzzWorld,
    setting: Setting,
    *,
    end: LocalEnd,
    runner: WatchedRunner,
    link: PacedLink,
    host_tier: HostTier,
    clock: StepClock,
    overlaps: bool,
    cold: ColdParts = NEVER_COLD,
    facts: ColdFacts | None = None,
) -> Engine:
    pool = Pool(setting.num_pages, on_free=runner.poison)
    tokens_per_page = world.loaded.geometry.tokens_per_page
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=tokens_per_page,
        max_slots=setting.max_slots,
        memory=setting.memory,
        in_host=host_tier.contains,
        cold=facts,
    )
    return Engine(
        EngineParts(
            end=end,
            state=SchedulerState(setting.max_running, setting.max_waiting),
            pool=pool,
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=host_tier,
            runner=runner,
            limits=StepLimits(
                setting.max_running,
                setting.max_step_tokens,
                setting.max_bypass_s,
                max_prompt_logits=setting.max_prompt_logits,
                adapter_share_pages=setting.memory.adapter_share_pages(setting.num_pages),
                max_tenant_pages=setting.memory.max_tenant_pages(setting.num_pages),
            ),
            gate=Gate(
                num_pages=setting.num_pages,
                tokens_per_page=tokens_per_page,
                max_model_len=world.loaded.max_model_len,
                max_rank=MAX_RANK,
                adapter_share_pages=setting.memory.adapter_share_pages(setting.num_pages),
                max_tenant_pages=setting.memory.max_tenant_pages(setting.num_pages),
            ),
            clock=clock,
            audits=True,
            overlaps=overlaps,
            cold=cold,
        )
    )
