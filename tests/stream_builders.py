"""A link whose loads may be used before they have ended, over a real tier and a disk that a test
lets on: what tests of cold loads share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lorry.adapters.host_tier import HeldImage, HostTier
from lorry.adapters.image_file import write_image
from lorry.adapters.key import AdapterCard
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import LayerLanded, LinkEvent, LoadOrder, Opened
from lorry.tests.fakes import FakeClock, make_card
from lorry.tests.link_builders import ManualTime, SlowDisk, Waiter, make_image

PAGE_BYTES = 64 * 4
IMAGE_BYTES = 5 * PAGE_BYTES
FIRST_BYTES = 3 * PAGE_BYTES  # of the pages of layers 0 and 1
NUM_LAYERS = 4


class StreamWorld:
    """A link with a board over a real tier, and a disk that a test lets on."""

    def __init__(
        self, folder: Path, *, num_images: int = 4, clock: ManualTime | None = None
    ) -> None:
        self.heard: list[HeldImage] = []
        self.folder, self.disk, self.waiter = folder, SlowDisk(), Waiter(self.heard.append)
        self.pool_PE = torch.full((20, 64), torch.nan)
        self.tier = HostTier(num_images * IMAGE_BYTES, like=self.pool_PE, open_file=self.disk.open)
        self.board = LandedBoard()
        self.on_wake: Callable[[], None] | None = None
        self.link = PoolLink(
            self.tier,
            self.pool_PE,
            self._wake,
            board=self.board,
            bytes_per_s=8.0 * PAGE_BYTES if clock else 0.0,
            clock=clock or FakeClock(),
            wait=clock.wait if clock else threading.Condition.wait,
        )

    def card(self, name: str, value: float = 1.0) -> AdapterCard:
        image = make_image(value=value)
        write_image(self.folder / name, image.layout, image.pages)
        return make_card(name, num_pages=5, image_path=self.folder / name)

    def start(self, load_id: int, card: AdapterCard) -> Opened | None:
        """Into slot and pages by its number."""
        pages = tuple(range(5 * load_id, 5 * load_id + 5))
        opened = self.link.start(LoadOrder(load_id, load_id, load_id, card, pages))
        if opened is not None:
            self.heard.append(opened.image)
        return opened

    def until_ends(self, num_loads: int) -> list[LinkEvent]:
        return self.waiter.collect(self.link, num_loads)

    def until_landed(self, load_id: int, layer: int) -> list[LinkEvent]:
        wanted = LayerLanded(load_id, layer)
        return self.waiter.until(self.link, lambda events: wanted in events)

    def _wake(self) -> None:
        """By whichever thread has something to tell."""
        if self.on_wake is not None:
            self.on_wake()
        self.waiter.wake()

    def let_go_all(self) -> None:
        while self.heard:
            self.link.let_go(self.heard.pop())

    def pages(self, load_id: int) -> torch.Tensor:
        return self.pool_PE[5 * load_id : 5 * load_id + 5]


@contextmanager
def streaming(
    folder: Path, *, num_images: int = 4, clock: ManualTime | None = None
) -> Iterator[StreamWorld]:
    """At the end nothing is held, whatever a test has done."""
    world = StreamWorld(folder, num_images=num_images, clock=clock)
    try:
        yield world
    finally:
        if clock is not None:
            clock.flow()
        world.link.close()
        world.let_go_all()
    for name in "ab":
        world.tier.forget(make_card(name).key)
    assert world.tier.stats().bytes == 0


def is_void(board: LandedBoard, slot: int) -> bool:
    """Not by waiting: that would end at its bound, too."""
    return board._lines[slot].is_void


def await_idle(link: PoolLink) -> None:
    """Until every thread of its that was woken has looked, and waits again."""
    conditions: list[Any] = [link._to_read, link._to_cross]
    for _ in range(10_000_000):
        if sum(len(one._waiters) for one in conditions) == len(link._threads):
            return
        os.sched_yield()
    raise AssertionError("a thread of the link neither waits nor ends")


def kinds(events: list[LinkEvent], load_id: int) -> list[str]:
    return [
        f"L{event.layer}" if isinstance(event, LayerLanded) else type(event).__name__
        for event in events
        if event.load_id == load_id
    ]
