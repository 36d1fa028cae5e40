"""An engine over fakes whose requests may start while their adapter is on its way.

The runner is told which adapter an image is, and computes with it before a page of it has landed;
which parts of its steps are lost, a test says. What it wrote for a lost row is wrong on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorry.adapters.host_tier import HeldImage
from lorry.adapters.image import ImageLayout
from lorry.adapters.key import AdapterCard
from lorry.server.engine_parts import ColdParts
from lorry.server.execution.batch import StepResult, StepRow
from lorry.server.execution.cold_start.crew import HelperStats
from lorry.server.memory.cold import ColdFacts
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.starts import StartPrices, Way
from lorry.server.scheduling.step_work import NO_WORK
from lorry.tests.engine_bench import Bench, make_bench
from lorry.tests.fakes import FakePages, FakeRunner, make_layout

STEP_S = 1e-3  # that a step is foretold to take

Loses = Callable[[StepRow], bool]


class ColdRunner(FakeRunner):
    """`cold`: what each slot is whose pages are on their way; `loses` is asked of cold rows."""

    def __init__(self, pages: FakePages | None = None, *, tokens_per_page: int = 4) -> None:
        super().__init__(pages, tokens_per_page=tokens_per_page)
        self.cold: dict[int, str] = {}
        self._whose: list[tuple[HeldImage, str]] = []
        self.loses: Loses = lambda row: False
        self.refuses = False  # to attach anything cold

    def knows(self, image: HeldImage, card: AdapterCard) -> None:
        """What is in an image."""
        self._whose.append((image, str(card.key)))

    def attach_cold(self, slot: int, image: HeldImage, pages: Sequence[int]) -> None:
        if self.refuses:
            raise ValueError("it does not fit")
        assert slot not in self.attached, f"slot {slot} is attached already"
        (self.cold[slot],) = [key for known, key in self._whose if known is image]
        self.attached[slot] = tuple(pages)

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        if self.cold.pop(slot, None) is not None:
            assert self.attached.pop(slot) == tuple(pages), "it lands elsewhere"
        super().attach(slot, layout, pages)

    def detach(self, slot: int) -> None:
        super().detach(slot)
        self.cold.pop(slot, None)

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        for row in rows:
            is_cold = row.adapter_slot in self.cold
            assert row.way in ((Way.STREAM, Way.ASSIST) if is_cold else tuple(Way)), "no way"
        before = dict(self._last_token)
        result = super().run(rows)
        lost = [row for row in rows if row.adapter_slot in self.cold and self.loses(row)]
        for row in lost:
            for page in self.pages_written(row):
                self.pages.kv[page] = {}
        names = {row.row for row in lost}
        for row in names:
            self._last_token[row] = before.get(row, -1)
        return replace(
            result,
            tokens={row: token for row, token in result.tokens.items() if row not in names},
            told=tuple(told for told in result.told if told.row not in names),
            lost=tuple(names),
        )

    def _adapter(self, slot: int) -> str:
        return self.cold[slot] if slot in self.cold else super()._adapter(slot)


class FakeHelpers:
    def __init__(self) -> None:
        self.stopped = False

    def stats(self) -> HelperStats:
        return HelperStats(num_helpers=2, num_up=1, num_restarts=3, num_lost=4)

    def stop(self) -> None:
        self.stopped = True


@dataclass
class ColdEngine:
    bench: Bench
    runner: ColdRunner
    helpers: FakeHelpers
    ways: set[Way]  # that are allowed; a test may change them

    def in_host(self, card: AdapterCard, *, is_open: bool = True) -> HeldImage:
        """Its image is in host memory; not `is_open`: the link finds it gone when it is ordered."""
        image = make_held(card)
        self.runner.knows(image, card)
        self.bench.host_tier.held.add(card.key)
        if is_open:
            self.bench.link.images[card.key.name] = image
        return image

    def ways_run(self) -> list[Way]:
        """Of each row of each step."""
        return [row.way for step in self.runner.steps for row in step]


def make_held(card: AdapterCard) -> HeldImage:
    memory = torch.zeros(card.num_pages, 512)
    return HeldImage(make_layout(card.num_pages), memory, tuple(range(card.num_pages)), False)


def make_cold_engine(
    *ways: Way, can_help: bool = True, load_s: float | None = None, **options: Any
) -> ColdEngine:
    """Loads last until a test ends them, and are foretold to last `load_s`: long where helpers may
    be asked, else nothing, since a stream begins when its load is about to end. Ways without WAIT
    are gone whatever they cost.
    """
    load_s = (5.0 if Way.ASSIST in ways else 0.0) if load_s is None else load_s
    model = CostModel(tuple(NO_WORK._replace(steps=STEP_S)), load_s=load_s)
    allowed, helpers, runners = set(ways), FakeHelpers(), list[ColdRunner]()
    held = set[Any]()  # the host tier's own, once there is one

    def cold(runner: FakeRunner) -> ColdParts:
        assert isinstance(runner, ColdRunner)
        runners.append(runner)
        return ColdParts(
            runner.attach_cold,
            lambda: StartPrices(frozenset(allowed), model, num_layers=3),
            helpers,
        )

    facts = ColdFacts(
        model=lambda: model, in_host=lambda key: key in held, can_help=lambda card: can_help
    )
    bench = make_bench(instant=False, runner_kind=ColdRunner, cold=cold, facts=facts, **options)
    bench.host_tier.held = held
    return ColdEngine(bench, runners[0], helpers, allowed)
