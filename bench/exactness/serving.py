"""A case's requests through a real engine: small pool, chunks, mixed adapters, base rows between.

The engine, planner, pool, residency, link, host tier and runner that serve, in this process;
what a run was is counted, so that a test can ask that it was hard. Judges nothing: verdict.py
does. One run is one `Setting`.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ...adapters.host_tier import HostTier
from ...adapters.image import ImageLayout
from ...server.config import MemoryConfig
from ...server.engine import Engine
from ...server.engine_parts import EngineParts
from ...server.execution.batch import StepCapacity, StepResult, StepRow
from ...server.execution.flight import Flight
from ...server.execution.model import LoadedModel
from ...server.execution.recorder import CudaRecorder, Reads, Recorder, Replay
from ...server.execution.runner import Runner
from ...server.intake import Gate
from ...server.memory.pool import Pool
from ...server.memory_rooms import join_memory
from ...server.scheduling.records import StepLimits
from ...server.scheduling.sampling import SamplingParams
from ...server.scheduling.state import SchedulerState
from ...server.seam import Finish, Progress, Reject, Submit
from ...server.seam_ends import LocalEnd
from ..fuzz_link import PacedLink
from .world import BASE, MAX_RANK, CaseWorld

STEP_S = 0.01  # a step takes this long by the run's clock
MAX_STEPS = 5_000
MAX_RUNNING = 8
HOST_BYTES = 1 << 24


class Unserved(Exception):
    """The engine refused or lost a request; says which and why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is short of."""

    name: str
    # The pool holds this share of all adapters and of what as many requests as may run at once
    # will need; never less than the largest request with its adapter.
    adapters_share: float
    kv_share: float
    step_tokens: int  # at most, in one step: longer prompts are cut
    answer_tokens: int = 40  # they cross pages, so that a request outgrows its first ones
    scarce: bool = True  # whether somebody has to give way
    max_slots: int = 8  # adapters that can be resident at once
    # As a service on a CPU runs: linears packed, freed pages left as they are, so that what is kept
    # of an adapter is there when another one gets its slot. Otherwise linears are plain, and freed
    # pages are filled with NaN, by which everything kept of adapters is forgotten, too.
    as_served: bool = False
    # And as one on a GPU runs: decode steps replay recordings, and a step is planned and launched
    # while the one before it runs. On a CPU, whose kernels know no padded step, it only overlaps.
    as_on_gpu: bool = False

    def loaded(self, world: CaseWorld) -> LoadedModel:
        return world.packed if self.as_served else world.loaded

    def records(self, world: CaseWorld) -> bool:
        return self.as_on_gpu and world.loaded.device.type == "cuda"

    def num_pages(self, world: CaseWorld) -> int:
        tokens_per_page = world.loaded.geometry.tokens_per_page
        kv = [-(-(len(ids) + self.answer_tokens) // tokens_per_page) for ids in world.prompts]
        adapters = [card.num_pages for card in world.cards.values()]
        running = sum(kv) * MAX_RUNNING / len(kv)
        share = self.adapters_share * sum(adapters) + self.kv_share * running
        return max(max(kv) + max(adapters), math.ceil(share))


# With fewer slots than adapters each is handed on and on, whatever pages are there.
AS_SERVED = Setting("as served", 0.6, 0.4, step_tokens=24, max_slots=3, as_served=True)
SETTINGS = (
    AS_SERVED,
    Setting("tight", 0.6, 0.4, step_tokens=24),
    Setting("tight, short chunks", 0.6, 0.35, step_tokens=11),
    Setting("roomy", 1.5, 1.5, step_tokens=64, scarce=False),
)
ON_GPU = replace(AS_SERVED, name="as served on a GPU", as_on_gpu=True)


def settings_of(device: str) -> tuple[Setting, ...]:
    """What is run there: on a GPU the first as it serves."""
    return (ON_GPU, *SETTINGS[1:]) if device.startswith("cuda") else SETTINGS


@dataclass(slots=True)
class Served:
    """What was said, and what had to happen for it."""

    # (adapter, index of the prompt) -> tokens
    answers: dict[tuple[str, int], list[int]] = field(
        default_factory=lambda: defaultdict[tuple[str, int], list[int]](list)
    )
    chunks: int = 0  # runs that end before the last known token
    mixed_steps: int = 0  # steps with rows of two adapters and the base, or more
    preemptions: int = 0
    evictions: int = 0
    loads: int = 0
    handed_on: int = 0  # steps that used a slot for another adapter than the last step with it
    replays: int = 0  # decode steps that replayed a recording
    overtakes: int = 0  # steps launched while another one was on its way


class _StepClock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


class _WatchedRecorder:
    """The device's recorder; replays are counted."""

    def __init__(self, recorder: Recorder, served: Served) -> None:
        self._recorder, self._served = recorder, served

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        replay = self._recorder.record(work, reads)

        def counted() -> None:
            self._served.replays += 1
            replay()

        return counted


class _WatchedRunner:
    """The runner, and counts of what it was given."""

    def __init__(self, runner: Runner, served: Served) -> None:
        self._runner, self._served = runner, served
        self._layouts: dict[int, ImageLayout] = {}  # by slot; no two adapters' are equal
        self._used: dict[int, ImageLayout] = {}  # the same, of the last step with the slot
        self._num_up = 0  # steps on their way

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        self._layouts[slot] = layout
        self._runner.attach(slot, layout, pages)

    def detach(self, slot: int) -> None:
        self._runner.detach(slot)

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        return self.launch(rows).wait()

    def launch(self, rows: Sequence[StepRow]) -> Flight:
        self._served.chunks += sum(not row.sample for row in rows)
        slots = {row.adapter_slot for row in rows}
        self._served.mixed_steps += len(slots) > 2 and -1 in slots
        now = {slot: self._layouts[slot] for slot in slots if slot >= 0}
        self._served.handed_on += any(self._used.get(slot, now[slot]) != now[slot] for slot in now)
        self._used |= now
        self._served.overtakes += self._num_up > 0
        self._num_up += 1
        return _WatchedFlight(self._runner.launch(rows), self._land)

    def _land(self) -> None:
        self._num_up -= 1


class _WatchedFlight:
    """A step that tells when it is over."""

    def __init__(self, flight: Flight, land: Callable[[], None]) -> None:
        self._flight, self._land = flight, land

    def wait(self) -> StepResult:
        result = self._flight.wait()
        self._land()
        return result


def serve(world: CaseWorld, setting: Setting) -> Served:
    """Every prompt with every adapter and with none, all at once.

    Raises:
        Unserved: a request has no whole answer.
    """
    served, end, clock = Served(), LocalEnd(), _StepClock()
    runner = _make_runner(world, setting, served)
    num_pages = runner.pool_PE.shape[0]
    runner.poison(range(num_pages))
    host_tier = HostTier(HOST_BYTES)
    link = PacedLink(host_tier, runner.pool_PE, random.Random(0), max_polls=3, fail_share=0.0)
    pool = Pool(num_pages) if setting.as_served else Pool(num_pages, on_free=runner.poison)
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=world.loaded.geometry.tokens_per_page,
        max_slots=setting.max_slots,
        memory=MemoryConfig(),
    )
    engine = Engine(
        EngineParts(
            end=end,
            state=SchedulerState(MAX_RUNNING, 1000),
            pool=pool,
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=host_tier,
            runner=_WatchedRunner(runner, served),
            limits=StepLimits(MAX_RUNNING, setting.step_tokens),
            gate=Gate(
                num_pages=num_pages,
                tokens_per_page=world.loaded.geometry.tokens_per_page,
                max_model_len=world.loaded.max_model_len,
                max_rank=MAX_RANK,
            ),
            clock=clock,
            audits=True,
            overlaps=setting.as_on_gpu,
        )
    )
    try:
        _run(engine, end, clock, _submits(world, setting), served)
    finally:
        link.close()
    served.preemptions = engine.counters.preemptions
    served.evictions = engine.counters.adapter_evictions
    served.loads = engine.counters.adapter_loads
    return served


def _submits(world: CaseWorld, setting: Setting) -> dict[tuple[str, int], Submit]:
    adapters = [BASE, *world.cards]
    asked = [(name, i) for i in range(len(world.prompts)) for name in adapters]
    return {
        (name, i): Submit(
            request_id,
            "default",
            world.cards.get(name),
            world.prompts[i],
            max_new_tokens=setting.answer_tokens,
            sampling=SamplingParams(),
            stop_ids=frozenset(),
            ttft_s=1.0,
            tpot_s=1.0,
            timeout_s=math.inf,
        )
        for request_id, (name, i) in enumerate(asked)
    }


def _run(
    engine: Engine,
    end: LocalEnd,
    clock: _StepClock,
    submits: dict[tuple[str, int], Submit],
    served: Served,
) -> None:
    by_id = {submit.request_id: asked for asked, submit in submits.items()}
    for submit in submits.values():
        end.commands.put(submit)
    waiting = set(by_id)
    for _ in range(MAX_STEPS):
        engine.step()
        clock.time_s += STEP_S
        while not end.reports.empty():
            for event in end.reports.get().events:
                match event:
                    case Progress():
                        served.answers[by_id[event.request_id]] += event.token_ids
                    case Finish():
                        waiting.discard(event.request_id)
                    case Reject():
                        raise Unserved(f"{by_id[event.request_id]}: {event.error!r}")
                    case _:
                        raise Unserved(f"the engine said {event} unasked")
        if not waiting:
            return
    raise Unserved(f"{len(waiting)} requests have no end after {MAX_STEPS} steps")


def _make_runner(world: CaseWorld, setting: Setting, served: Served) -> Runner:
    loaded = setting.loaded(world)
    limits = StepCapacity(
        max_running=MAX_RUNNING,
        max_step_tokens=setting.step_tokens,
        max_model_len=loaded.max_model_len,
        max_rank=MAX_RANK,
        max_rows=MAX_RUNNING + 1000,
    )
    num_pages = setting.num_pages(world)
    if not setting.records(world):
        return Runner(loaded, num_pages=num_pages, limits=limits)
    recorder = _WatchedRecorder(CudaRecorder(loaded.device), served)
    runner = Runner(loaded, num_pages=num_pages, limits=limits, recorder=recorder)
    runner.warm_up()
    served.replays = 0
    return runner
