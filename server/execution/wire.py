"""The wire between host memory and the pool: one load after the other, layer by layer.

Owns the copies: what adjoins on both sides is one. On a GPU they run on a stream of their own,
from pinned memory, and a layer has landed when its event has happened; on a CPU the thread copies.
The emulated wire does the same at the pace of a bandwidth; until their time its pages hold NaN.
Does not know who waits, or what comes next. Used by the link's thread; `clear` by the engine's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...adapters.errors import AdapterLoadFailed
from ...adapters.host_tier import HeldImage
from ...adapters.image import layer_groups
from ..clock import Clock
from ..memory.link_records import LoadOrder
from .load_queue import Load

_log = logging.getLogger(__name__)

# Waits with the condition held until it is told of something, or these seconds are over.
TimedWait = Callable[[threading.Condition, float], object]


class Wire(Protocol):
    def clear(self, pages: Sequence[int]) -> None:
        """They have been ordered: what they hold is nobody's."""
        ...

    def carry(self, load: Load, end_layer: int, landed: Callable[[int], None]) -> bool:
        """The layers from those that have crossed to `end_layer` into their pages, telling each
        last layer of a group that is there; False: it was given up, and no more of it will be
        written.
        """
        ...

    def settle(self) -> None:
        """Wait for what an image that failed has left on the way: its pages go to others next."""
        ...


class HostWire:
    """To a pool in host memory."""

    def __init__(self, pool_PE: Tensor) -> None:
        self._pool_PE = pool_PE

    def clear(self, pages: Sequence[int]) -> None:
        """Whoever reads them before they have landed is at fault."""

    def carry(self, load: Load, end_layer: int, landed: Callable[[int], None]) -> bool:
        for layer, first, end in groups_of(load, end_layer):
            if load.is_given_up:
                return False
            copy_pages(image_of(load), self._pool_PE, load.order.pages, first, end)
            landed(layer)
        return True

    def settle(self) -> None:
        """Nothing is on the way when a copy is over."""


class DeviceWire:
    """To a pool on a GPU. What has begun to cross is as good as there."""

    def __init__(self, pool_PE: Tensor) -> None:
        self._pool_PE = pool_PE
        self._stream = torch.cuda.Stream(pool_PE.device)

    def clear(self, pages: Sequence[int]) -> None:
        """As on the host."""

    def carry(self, load: Load, end_layer: int, landed: Callable[[int], None]) -> bool:
        if load.is_given_up:
            return False
        marks: list[tuple[int, torch.cuda.Event]] = []
        if load.freed is not None:
            self._stream.wait_event(load.freed)
        with torch.cuda.stream(self._stream):
            for layer, first, end in groups_of(load, end_layer):
                copy_pages(image_of(load), self._pool_PE, load.order.pages, first, end)
                # Blocking: the thread sleeps, where it would take a core from the engine's.
                mark = torch.cuda.Event(blocking=True)
                mark.record(self._stream)
                marks.append((layer, mark))
        for layer, mark in marks:
            # The host waits, so that "landed" means landed for every stream.
            mark.synchronize()
            landed(layer)
        return True

    def settle(self) -> None:
        try:
            self._stream.synchronize()
        # A device that has failed copies nothing more, and the answer must go out all the same.
        except RuntimeError as error:
            _log.warning("the device failed in a load: %s", error)


class EmulatedWire:
    """To a pool in host memory, as if over a link of `bytes_per_s`: bytes of all images queue.
    `by_layer`: a layer lands in its time; else all that is in host memory lands with its last.
    """

    def __init__(
        self,
        pool_PE: Tensor,
        bytes_per_s: float,
        *,
        by_layer: bool = True,
        clock: Clock,
        changed: threading.Condition,  # told when a load is given up
        wait: TimedWait,
    ) -> None:
        self._pool_PE, self._bytes_per_s = pool_PE, bytes_per_s
        self._page_bytes = pool_PE.shape[1] * pool_PE.element_size()
        self._by_layer = by_layer
        self._clock, self._changed, self._wait = clock, changed, wait
        self._free_s = 0.0  # instant at which the last image was across, or given up

    def clear(self, pages: Sequence[int]) -> None:
        self._pool_PE[list(pages)] = torch.nan

    def carry(self, load: Load, end_layer: int, landed: Callable[[int], None]) -> bool:
        groups = list(groups_of(load, end_layer))
        if groups and not self._by_layer:
            # Each landing wakes this thread, and whoever computes stops for it.
            groups = [(groups[-1][0], groups[0][1], groups[-1][2])]
        for layer, first, end in groups:
            # By the books, not by when this thread came to it: delays of its own do not add up.
            start_s = max(self._free_s, load.ready_s)
            due_s = start_s + (end - first) * self._page_bytes / self._bytes_per_s
            if not self._wait_until(due_s, load):
                self._free_s = max(start_s, min(due_s, self._clock.now_s()))
                return False
            copy_pages(image_of(load), self._pool_PE, load.order.pages, first, end)
            self._free_s = due_s
            landed(layer)
        return True

    def settle(self) -> None:
        """Nothing is on the way when a copy is over."""

    def _wait_until(self, due_s: float, load: Load) -> bool:
        """False: it was given up first."""
        with self._changed:
            while not load.is_given_up:
                left_s = due_s - self._clock.now_s()
                if left_s <= 0.0:
                    return True
                self._wait(self._changed, left_s)
            return False


def image_of(load: Load) -> HeldImage:
    assert load.image is not None, "a load without an image is not on the wire"
    return load.image


def check_image(order: LoadOrder, image: HeldImage, pool_PE: Tensor) -> None:
    """Raises AdapterLoadFailed, saying how it does not fit."""
    misfit = misfit_of(order, image, pool_PE)
    if misfit:
        raise AdapterLoadFailed(misfit, name=order.card.key.name)


def misfit_of(order: LoadOrder, image: HeldImage, pool_PE: Tensor) -> str:
    """An image of another shape would be written over somebody else's pages; one whose last layer
    is not its last page would never be there. Empty: it fits.
    """
    key, layout = order.card.key, image.layout
    found = (len(image.cells), image.memory.shape[1])
    shape = (len(order.pages), pool_PE.shape[1])
    if found != shape or layout.num_pages != shape[0]:
        return (
            f"the image of {key} has shape {found} and a layout of {layout.num_pages} pages; its "
            f"{len(order.pages)} pages make {shape}"
        )
    if image.memory.dtype != pool_PE.dtype:
        return f"the image of {key} is {image.memory.dtype}, the pool {pool_PE.dtype}"
    last = layout.landed_pages[-1] if layout.landed_pages else 0
    if last != shape[0]:
        return f"the layers of {key} end with page {last}, its image with page {shape[0]}"
    return ""


def groups_of(load: Load, end_layer: int) -> Iterator[tuple[int, int, int]]:
    """(last layer, first page, end page) of each group of layers that lands together, from those
    that have crossed to `end_layer`, at which a group ends.
    """
    first = 0
    for layer, end in layer_groups(image_of(load).layout):
        if load.num_crossed <= layer < end_layer:
            yield layer, first, end
        first = end


def copy_pages(
    image: HeldImage, pool_PE: Tensor, pages: Sequence[int], first: int, end: int
) -> None:
    """Pages [first, end) of the image; neighbours on both sides are one copy."""
    cells, start = image.cells, first
    for idx in range(first + 1, end + 1):
        if idx < end and pages[idx] == pages[idx - 1] + 1 and cells[idx] == cells[idx - 1] + 1:
            continue
        home = pool_PE[pages[start] : pages[start] + idx - start]
        home.copy_(image.memory[cells[start] : cells[start] + idx - start], non_blocking=True)
        start = idx
