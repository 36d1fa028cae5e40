"""The rooms an engine joins, and what it asks of the two that have more than one kind.

Owns the record they are handed over in. Knows nothing of what the engine does with them.
Filled by engine_process.py, by the simulator and by tests; taken apart by engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..adapters.host_tier import HeldImage
from ..adapters.image import ImageLayout
from ..adapters.key import AdapterKey
from .clock import Clock
from .execution.batch import StepResult, StepRow
from .execution.flight import Flight
from .intake import Gate
from .memory.link_records import Link
from .memory.pool import Pool
from .memory.prefix_cache import PrefixCache
from .memory.residency import Residency
from .scheduling.records import StepLimits
from .scheduling.starts import NO_PRICES, StartPrices
from .scheduling.state import SchedulerState
from .seam import EngineEnd
from .stats import HelpersView, HostTierView
from .step_meter import StepMeter


class Runner(Protocol):
    """What executes a step; the real one is execution/runner.py."""

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None: ...

    def detach(self, slot: int) -> None: ...

    def run(self, rows: Sequence[StepRow]) -> StepResult: ...

    def launch(self, rows: Sequence[StepRow]) -> Flight: ...


class Helpers(HelpersView, Protocol):
    """Processes that compute for adapters that are on their way."""

    def stop(self) -> None: ...


class HostTier(HostTierView, Protocol):
    def forget(self, key: AdapterKey) -> None: ...

    def contains(self, key: AdapterKey) -> bool: ...


def _no_attach(slot: int, image: HeldImage, pages: Sequence[int]) -> None:
    del image, pages
    raise ValueError(f"slot {slot} cannot be attached before its image is in the pool")


def _always_wait() -> StartPrices:
    return NO_PRICES


def _nobody_helped(num_calls: int, seconds: float) -> None:
    del num_calls, seconds


@dataclass(frozen=True, slots=True)
class ColdParts:
    """What lets requests start while their adapter is on its way; as it stands, nothing does."""

    # Of a runner: let the slot mean an image that is on its way into these pages. The engine holds
    # the image until it attaches or detaches the slot.
    attach: Callable[[int, HeldImage, Sequence[int]], None] = _no_attach
    prices: Callable[[], StartPrices] = _always_wait  # of the ways to start, now
    helpers: Helpers | None = None
    why: str = ""  # these ways: one line, for people
    # That the step's threads keep to, so that helpers have theirs alone; empty: any.
    cores: tuple[int, ...] = ()
    # A step with so many hand-overs was held up by them for so many seconds.
    helped: Callable[[int, float], None] = _nobody_helped


NEVER_COLD = ColdParts()


@dataclass(frozen=True, slots=True)
class EngineParts:
    """The rooms an engine joins."""

    end: EngineEnd
    state: SchedulerState
    pool: Pool
    prefixes: PrefixCache
    residency: Residency
    link: Link
    host_tier: HostTier
    runner: Runner
    limits: StepLimits
    gate: Gate
    clock: Clock
    model: str = ""  # fingerprint of the weights: cached prompts are of this model
    share_prefixes: bool = False  # between tenants
    audits: bool = False  # check the pool's books after every step, not only when idle
    overlaps: bool = False  # plan a step while the one before it runs
    meter: StepMeter = field(default_factory=StepMeter)  # what times steps; as it stands nothing
    cold: ColdParts = NEVER_COLD
