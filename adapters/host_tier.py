"""Packed adapters in host memory, within a budget of bytes.

Owns the tier between disk and pool: which images are kept (of those that nobody is copying, the
least recently used goes first) and in which cells of the slab they lie. An image that finds no room
lies in memory of its own until it is let go. While one is read, whoever asked may use its first
layers already. Knows no pages of the pool and no requests; called by the engine and by the link's
threads, so every method may be called from any thread, and none but `read`, `read_ahead` and
`fetch` waits for the disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import AdapterLoadFailed
from .image import ImageLayout
from .image_file import ImageDamaged, OpenImage, open_image
from .key import AdapterCard, AdapterKey
from .slab import Slab

__all__ = ["HeldImage", "HostTier", "HostTierStats", "Told"]


@dataclass(slots=True, eq=False)
class HeldImage:
    """An image that stays where it is until whoever holds it lets go."""

    layout: ImageLayout
    memory: Tensor  # [cells, page_elements]: the slab, or memory of its own
    cells: tuple[int, ...]  # where in it each of the pages lies
    is_loose: bool  # not in the slab
    num_holders: int = 1  # the tier's own to change, as the next one
    stays: bool = True  # in the tier when nobody holds it; False: forgotten, or without a place

    @property
    def pages(self) -> Tensor:
        """[num_pages, page_elements], a copy: for those who need not be fast."""
        return self.memory[list(self.cells)]

    @property
    def size_bytes(self) -> int:
        return len(self.cells) * self.memory.shape[1] * self.memory.element_size()


# (the image, how many of its layers are there and proven), as it is read; 0: its cells are known.
# Called by who reads, in their thread, without a lock; who keeps the image takes a share of it.
Told = Callable[[HeldImage, int], None]


def _nobody(image: HeldImage, num_layers: int) -> None:
    """Who waits for the whole of it."""


@dataclass(frozen=True, slots=True)
class HostTierStats:
    bytes: int  # of images now, kept or held
    capacity_bytes: int
    items: int  # adapters kept now
    hits: int  # times an image was asked for and was there
    misses: int  # times it was not
    peak_bytes: int = 0  # the most there ever were


class HostTier:
    """At most `capacity_bytes` of images. `like` is the pool they are for: it says what pages look
    like, and for one on a GPU the memory is pinned. None: as those of the first image, not pinned.
    `shared`: other processes may map it, by `shared_fd`.

    Raises:
        MemoryError: the system has not as much.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        like: Tensor | None = None,
        shared: bool = False,
        open_file: Callable[[Path], AbstractContextManager[OpenImage]] = open_image,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._open_file = open_file
        self._lock = threading.Lock()
        self._slab: Slab | None = None
        if like is not None:
            self._slab = Slab(
                capacity_bytes, like.shape[1], like.dtype, pinned=like.is_cuda, shared=shared
            )
        self._kept: OrderedDict[AdapterKey, HeldImage] = OrderedDict()  # latest use last
        self._reading: dict[AdapterKey, list[HeldImage]] = {}
        self._num_bytes = self._peak_bytes = 0
        self._hits = self._misses = 0

    @property
    def shared_fd(self) -> int | None:
        """Of the memory behind every image that is not loose; None: nobody else can map it."""
        return None if self._slab is None else self._slab.fd

    @property
    def cells(self) -> Tensor | None:
        """[num_cells, page_elements]: that memory; None: no image has said what pages are like."""
        return None if self._slab is None else self._slab.cells

    def contains(self, key: AdapterKey) -> bool:
        with self._lock:
            return key in self._kept

    def touch(self, key: AdapterKey) -> bool:
        """Whether it is here; then it counts as used now."""
        with self._lock:
            return self._touched(key) is not None

    def hold(self, key: AdapterKey) -> HeldImage | None:
        """The image, for a load; None: it has to be read."""
        with self._lock:
            image = self._touched(key)
            if image is None:
                self._misses += 1
            else:
                self._hits += 1
                image.num_holders += 1
            return image

    def share(self, image: HeldImage) -> bool:
        """One more holds what somebody holds. False: the last has let go of it, and it was not
        kept: its cells are another's.
        """
        with self._lock:
            if not image.num_holders and not image.stays:
                return False
            image.num_holders += 1
            return True

    def let_go(self, image: HeldImage) -> None:
        with self._lock:
            self._let_go(image)

    def read(self, card: AdapterCard, told: Told = _nobody) -> HeldImage:
        """From disk; where all that is here is held, or the image is larger than the tier, into
        memory of its own, and not kept.

        Raises:
            AdapterLoadFailed: the file is missing or damaged; `told` may have heard of its first
                layers, which stay as they are until the last who took a share has let go.
        """
        image = self._read(card, told, spare=())
        return image or self._read_loose(card, told)

    def read_ahead(
        self, card: AdapterCard, spare: Collection[AdapterKey], told: Told = _nobody
    ) -> HeldImage | None:
        """From disk, unless it is here; None: there is no room without giving up one of `spare`.

        Raises:
            AdapterLoadFailed: as above.
        """
        with self._lock:
            image = self._touched(card.key)
            if image is not None:
                image.num_holders += 1
                return image
        return self._read(card, told, spare=spare)

    def fetch(self, card: AdapterCard) -> HeldImage:
        """Raises AdapterLoadFailed."""
        return self.hold(card.key) or self.read(card)

    def forget(self, key: AdapterKey) -> None:
        """Its memory is free at once, or with the last holder; what is being read is not kept."""
        with self._lock:
            for image in self._reading.pop(key, ()):
                image.stays = False
            if key in self._kept:
                self._drop(key)

    def stats(self) -> HostTierStats:
        with self._lock:
            return HostTierStats(
                bytes=self._num_bytes,
                capacity_bytes=self._capacity_bytes,
                items=len(self._kept),
                hits=self._hits,
                misses=self._misses,
                peak_bytes=self._peak_bytes,
            )

    def _read(
        self, card: AdapterCard, told: Told, *, spare: Collection[AdapterKey]
    ) -> HeldImage | None:
        try:
            with self._open_file(card.image_path) as file:
                with self._lock:
                    image = self._place(file, spare)
                    if image is None:
                        return None
                    self._reading.setdefault(card.key, []).append(image)
                self._fill(card.key, image, file, told)
                return image
        except (ImageDamaged, MemoryError) as error:
            raise _lost(card, error) from error

    def _read_loose(self, card: AdapterCard, told: Told) -> HeldImage:
        try:
            with self._open_file(card.image_path) as file:
                memory = torch.empty((file.num_pages, file.page_elements), dtype=file.dtype)
                cells = tuple(range(file.num_pages))
                image = HeldImage(file.layout, memory, cells, is_loose=True, stays=False)
                with self._lock:
                    self._count(image.size_bytes)
                self._fill(card.key, image, file, told)
                return image
        except (ImageDamaged, MemoryError) as error:
            raise _lost(card, error) from error

    def _fill(self, key: AdapterKey, image: HeldImage, file: OpenImage, told: Told) -> None:
        """The only wait for the disk; no lock is held. Kept when it is whole, unless forgotten
        meanwhile, or read by another thread as well. When it is not, whoever reads lets go of it.
        """
        whole = False
        try:
            told(image, 0)
            for num_layers in file.read_groups(image.memory, image.cells):
                told(image, num_layers)
            whole = True
        finally:
            with self._lock:
                self._not_reading(key, image)
                image.stays = image.stays and whole and key not in self._kept
                if image.stays:
                    self._kept[key] = image
                elif not whole:
                    self._let_go(image)

    def _place(self, file: OpenImage, spare: Collection[AdapterKey]) -> HeldImage | None:
        """Cells for an image, from those who may go; None: there are too few."""
        slab = self._slab
        if slab is None:
            slab = self._slab = Slab(self._capacity_bytes, file.page_elements, file.dtype)
        if (file.page_elements, file.dtype) != (slab.cells.shape[1], slab.cells.dtype):
            return None
        lacking, victims = file.num_pages - slab.num_free, list[AdapterKey]()
        if file.num_pages <= slab.num_cells:
            for key, image in self._kept.items():
                if lacking <= 0:
                    break
                if not image.num_holders and key not in spare:
                    victims.append(key)
                    lacking -= len(image.cells)
        if lacking > 0:
            return None
        for key in victims:
            self._drop(key)
        image = HeldImage(file.layout, slab.cells, slab.take(file.num_pages), is_loose=False)
        self._count(image.size_bytes)
        return image

    def _touched(self, key: AdapterKey) -> HeldImage | None:
        image = self._kept.get(key)
        if image is not None:
            self._kept.move_to_end(key)
        return image

    def _not_reading(self, key: AdapterKey, image: HeldImage) -> None:
        others = [other for other in self._reading.get(key, ()) if other is not image]
        if others:
            self._reading[key] = others
        else:
            self._reading.pop(key, None)

    def _let_go(self, image: HeldImage) -> None:
        image.num_holders -= 1
        if not image.num_holders and not image.stays:
            self._free(image)

    def _drop(self, key: AdapterKey) -> None:
        image = self._kept.pop(key)
        image.stays = False
        if not image.num_holders:
            self._free(image)

    def _free(self, image: HeldImage) -> None:
        self._count(-image.size_bytes)
        if not image.is_loose and self._slab is not None:
            self._slab.give(image.cells)

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._peak_bytes = max(self._peak_bytes, self._num_bytes)


def _lost(card: AdapterCard, error: Exception) -> AdapterLoadFailed:
    return AdapterLoadFailed(
        f"adapter {card.key} cannot be loaded: its image {card.image_path.name} could not be read "
        f"({error})",
        name=card.key.name,
    )
