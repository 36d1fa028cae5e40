"""Random lives with cold starts: the fuzzer's, on a link whose layers come while a step looks.

Loads of images in host memory are open at once. Their layers land one by one, at polls and while a
step waits for one; some fail half way, some are given up. Helpers compute by the definition, in the
step's own thread, and fail at random. All of it is the seed's alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage
from lorry.bench.fuzz_episode import Episode
from lorry.bench.fuzz_link import CANCEL_SHARE, PacedLink
from lorry.server.engine import Engine
from lorry.server.engine_parts import NEVER_COLD, ColdParts
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.memory.cold import ColdFacts
from lorry.server.memory.link_records import (
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from lorry.server.scheduling.cost_model import CostModel
from lorry.server.scheduling.starts import StartPrices, Way
from lorry.server.scheduling.step_work import NO_WORK
from lorry.tests.cold_builders import ReferenceHandover

WAYS = (
    frozenset({Way.STREAM}),
    frozenset({Way.ASSIST}),
    frozenset({Way.STREAM, Way.ASSIST}),
)
CLOSED_SHARE = 0.2  # of the orders
LAYER_SHARE = 0.1  # of the layers that could land at a poll
LOAD_S = 0.05  # as foretold, some steps of the episode's clock; a stream waits for its end
LOST_SHARE = 0.02  # of the answers of helpers


@dataclass(slots=True)
class _Crossing:
    order: LoadOrder
    image: HeldImage  # held for the load
    breaks_at: int  # layer; past the last: it does not
    num_landed: int = 0
    is_over: bool = False
    is_cancelled: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.image.layout.landed_pages)


class ColdLink(PacedLink):
    """Most orders are read at once, and open; the others go as those of `PacedLink` do."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.board = FuzzBoard(self)
        self._crossings: dict[int, _Crossing] = {}  # by load_id
        self.num_opened = 0

    @property
    def num_underway(self) -> int:
        return len(self._due) + len(self._crossings)

    def start(self, order: LoadOrder) -> Opened | None:
        self.board.begin(order.slot, order.load_id)
        image = self._read(order)
        if image is None:
            return super().start(order)
        self.num_opened += 1
        num_layers = len(image.layout.landed_pages)
        is_broken = self._rng.random() < self._fail_share
        self.num_broken += is_broken
        breaks_at = self._rng.randrange(num_layers) if is_broken else num_layers
        self._crossings[order.load_id] = _Crossing(order, image, breaks_at)
        self._pool_PE[list(order.pages)] = torch.nan
        self.board.read(order.slot, order.load_id, num_layers)
        self._host_tier.share(image)  # for the hearer
        return Opened(order.load_id, image)

    def _read(self, order: LoadOrder) -> HeldImage | None:
        if self._rng.random() < CLOSED_SHARE:
            return None
        try:
            return self._host_tier.fetch(order.card)
        except AdapterLoadFailed:
            return None  # and it will be told so

    def cancel(self, load_id: int) -> None:
        crossing = self._crossings.get(load_id)
        if crossing is None:
            super().cancel(load_id)
        elif self._rng.random() < CANCEL_SHARE:
            self.num_cancelled += not crossing.is_cancelled
            crossing.is_cancelled = True

    def poll(self) -> list[LinkEvent]:
        events = super().poll()
        for load_id, crossing in list(self._crossings.items()):
            while not crossing.is_over and self._rng.random() < LAYER_SHARE:
                self._land_one(crossing)
            if crossing.is_over:
                del self._crossings[load_id]
                events.append(self._end(crossing))
        return events

    def let_go(self, image: HeldImage) -> None:
        self._host_tier.let_go(image)

    def bring(self, slot: int, layer: int) -> None:
        """A step waits for it."""
        for crossing in self._crossings.values():
            if crossing.order.slot == slot:
                while not crossing.is_over and crossing.num_landed <= layer:
                    self._land_one(crossing)

    def _land_one(self, crossing: _Crossing) -> None:
        order, image = crossing.order, crossing.image
        if crossing.is_cancelled or crossing.num_landed == crossing.breaks_at:
            crossing.is_over = True
            self.board.void(order.slot, order.load_id)
            return
        landed, layer = image.layout.landed_pages, crossing.num_landed
        first, end = landed[layer - 1] if layer else 0, landed[layer]
        if end > first:
            self._pool_PE[list(order.pages[first:end])] = image.memory[list(image.cells[first:end])]
        crossing.num_landed += 1
        self.board.land(order.slot, order.load_id, crossing.num_landed)
        crossing.is_over = crossing.num_landed == crossing.num_layers

    def _end(self, crossing: _Crossing) -> LinkEvent:
        self._host_tier.let_go(crossing.image)
        load_id, key = crossing.order.load_id, crossing.order.card.key
        if crossing.num_landed == crossing.num_layers:
            return Loaded(load_id, crossing.image.layout)
        if crossing.is_cancelled:
            return LoadFailed(load_id, LoadCancelled(str(key)))
        return LoadFailed(load_id, AdapterLoadFailed(f"{key} broke", name=key.name))


class FuzzBoard(LandedBoard):
    """Nobody waits: what is waited for comes, or is void."""

    def __init__(self, link: ColdLink) -> None:
        super().__init__()
        self._link = link

    def await_landed(self, slot: int, layer: int, timeout_s: float) -> bool:
        del timeout_s
        self._link.bring(slot, layer)
        return super().await_landed(slot, layer, 0.0)


class ColdEpisode(Episode):
    """`ways` follow the seed."""

    link_class = ColdLink

    def _make_engine(
        self, overlaps: bool, cold: ColdParts = NEVER_COLD, facts: ColdFacts | None = None
    ) -> Engine:
        link, ways, rng = self._link, WAYS[self.seed % len(WAYS)], random.Random(self.seed + 3)
        assert isinstance(link, ColdLink)
        self.handover = ReferenceHandover(self._world.loaded)
        self.handover.fails = lambda errand: rng.random() < LOST_SHARE
        self._runner.use_cold(board=link.board, handover=self.handover)
        load_s = 0.0 if ways == {Way.STREAM} else LOAD_S
        model = CostModel(tuple(NO_WORK._replace(steps=1e-3)), load_s=load_s)
        prices = StartPrices(ways, model, num_layers=self._world.loaded.geometry.num_layers)
        facts = ColdFacts(lambda: model, self._host_tier.contains, lambda card: True)
        cold = ColdParts(self._watched.attach_cold, lambda: prices)
        return super()._make_engine(overlaps, cold, facts)

    def expect_cold(self) -> dict[str, int]:
        """What became of it; nothing of it is left."""
        assert not self.handover.images, "a hand-over is still open"
        link, stats = self._link, self._engine.stats(pages=False).cold
        assert isinstance(link, ColdLink)
        return {
            "opened": link.num_opened,
            "sent": len(self.handover.sent),
            "streamed": stats.stream,
            "assisted": stats.assist,
            "lost": stats.lost_rows,
        }
