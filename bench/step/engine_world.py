"""The engine's own loop over the runner that is timed: its books, and an end where nobody listens.

Owns a link whose adapters are there at once, and the times between steps in which everyone decodes.
What planning, committing and reporting cost is in these; the wire is not. Takes the whole pool:
called last.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from ...adapters.host_tier import HeldImage, HostTier
from ...adapters.key import DEFAULT_TENANT, AdapterCard, AdapterKey
from ...server.clock import MonotonicClock
from ...server.engine import Engine
from ...server.engine_parts import EngineParts
from ...server.intake import Gate
from ...server.memory.link_records import LinkEvent, Loaded, LoadOrder, Opened
from ...server.memory.pool import Pool
from ...server.memory_rooms import NOTHING_KEPT, join_memory
from ...server.scheduling.records import StepLimits
from ...server.scheduling.sampling import SamplingParams
from ...server.scheduling.state import SchedulerState
from ...server.seam import Command, Finish, Progress, Reject, Report, Submit
from .floors import StepLoad
from .timing import BrokenStep
from .world import SEED, SPARE_TOKENS, STEP_TOKENS, StepWorld

MANY_S = 1e6
MIN_STEPS = 5  # in which everyone decodes
MAX_STEPS = 5_000  # of all kinds; an engine that needs more is stuck


class _QuietEnd:
    """Commands in at once; of what is said only counts are kept."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = list(commands)
        self.num_tokens = 0  # said since somebody looked
        self.num_open = len(commands)

    def receive(self, timeout_s: float) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def send(self, report: Report) -> None:
        for event in report.events:
            match event:
                case Progress():
                    self.num_tokens += 1
                case Finish():
                    self.num_open -= 1
                case Reject():
                    raise BrokenStep(f"the engine refused a request: {event.error}")
                case _:
                    pass

    def wake(self) -> None:
        """Nobody sleeps."""


class _InstantLink:
    """Adapters lie in their pages when they are asked for."""

    def __init__(self, world: StepWorld) -> None:
        self._world = world
        self._landed: list[LinkEvent] = []

    def start(self, order: LoadOrder) -> Opened | None:
        self._world.put_image(int(order.card.key.name), order.pages)
        self._landed.append(Loaded(order.load_id, self._world.layout))
        return None

    def cancel(self, load_id: int) -> None:
        """Nothing is on its way."""

    def want(self, cards: Sequence[AdapterCard]) -> None:
        """Nothing is read."""

    def let_go(self, image: HeldImage) -> None:
        """Nothing is told open."""

    def poll(self) -> Sequence[LinkEvent]:
        landed, self._landed = self._landed, []
        return landed

    def close(self) -> None:
        """There is nothing to stop."""


def engine_ms(
    world: StepWorld, load: StepLoad, num_steps: int, *, with_adapters: bool
) -> tuple[float, ...]:
    """From the end of one step in which all rows decode to that of the next; about so many."""
    commands = _submits(world, load, num_steps, with_adapters=with_adapters)
    end = _QuietEnd(commands)
    engine = _make_engine(world, load, end)
    times_ms: list[float] = []
    last_s, was_full = time.perf_counter(), False
    for _ in range(MAX_STEPS):
        if not end.num_open:
            break
        end.num_tokens = 0
        engine.step()
        now_s = time.perf_counter()
        is_full = end.num_tokens == load.batch and end.num_open == load.batch
        if is_full and was_full:
            times_ms.append(1e3 * (now_s - last_s))
        last_s, was_full = now_s, is_full
    engine.step()  # lets go of what the last ones held
    world.detach_all()
    if end.num_open or len(times_ms) < MIN_STEPS:
        raise BrokenStep(
            f"{len(times_ms)} steps of the engine were of {load.batch} tokens; {end.num_open} "
            "requests have no end"
        )
    return tuple(times_ms)


def _make_engine(world: StepWorld, load: StepLoad, end: _QuietEnd) -> Engine:
    num_pages = world.runner.pool_PE.shape[0]
    pool, link = Pool(num_pages), _InstantLink(world)
    tokens_per_page = world.loaded.geometry.tokens_per_page
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=tokens_per_page,
        max_slots=max(1, len(load.ranks)),
        memory=NOTHING_KEPT,  # prompts that were seen before would be no work
    )
    gate = Gate(num_pages, tokens_per_page, world.loaded.max_model_len, max(load.ranks, default=1))
    return Engine(
        EngineParts(
            end=end,
            state=SchedulerState(load.batch, load.batch),
            pool=pool,
            # Prompts that were seen before would be no work.
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=HostTier(1),
            runner=world.runner,
            limits=StepLimits(load.batch, max(STEP_TOKENS, load.batch)),
            gate=gate,
            clock=MonotonicClock(),
            overlaps=world.loaded.device.type == "cuda",
        )
    )


def _submits(
    world: StepWorld, load: StepLoad, num_steps: int, *, with_adapters: bool
) -> list[Command]:
    """The first ones decode while prompts of the last ones are computed, so that contexts differ:
    on the average they are `load.context` tokens when half of the steps are done.
    """
    draw, num_adapters = random.Random(SEED), len(load.ranks)
    step_tokens = max(STEP_TOKENS - load.batch, 1)
    head_start = -(-load.batch * load.context // step_tokens) + num_adapters // 2 + 8
    num_new = min(SPARE_TOKENS, head_start + max(num_steps, MIN_STEPS))
    num_prompt = max(1, load.context - num_new // 2)
    return [
        Submit(
            request_id=idx,
            tenant=DEFAULT_TENANT,
            adapter=_card(world, idx * num_adapters // load.batch, load) if with_adapters else None,
            prompt_ids=tuple(draw.choices(range(world.loaded.vocab_size), k=num_prompt)),
            max_new_tokens=num_new,
            sampling=SamplingParams(),
            stop_ids=frozenset(),
            ttft_s=MANY_S,
            tpot_s=MANY_S,
            timeout_s=MANY_S,
        )
        for idx in range(load.batch)
    ]


def _card(world: StepWorld, number: int, load: StepLoad) -> AdapterCard:
    return AdapterCard(
        key=AdapterKey(DEFAULT_TENANT, str(number), 1, ""),
        size_bytes=0,
        max_rank=max(load.ranks),
        num_pages=world.layout.num_pages,
        weight_bytes=0,
        target_modules=(),
        created_unix_s=0.0,
        rounding_error=0.0,
        notes=(),
        image_path=Path(),
    )
