"""Packed adapters in host memory, within a budget of bytes.

Owns the tier between disk and pool: which images are kept (least recently used goes first) and
that two loads of one adapter read the file once. Knows no pages of the pool and no requests;
called from the engine's loader threads, so every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from .errors import AdapterLoadFailed
from .image_file import HostImage, ImageDamaged, read_image
from .key import AdapterCard, AdapterKey

__all__ = ["HostImage", "HostTier", "HostTierStats"]


@dataclass(frozen=True, slots=True)
class HostTierStats:
    bytes: int  # held now
    capacity_bytes: int
    items: int  # adapters held now
    hits: int  # fetches that found the image, or another fetch already reading it
    misses: int  # fetches that had to read the file


class HostTier:
    """At most `capacity_bytes` of images; a larger one is handed out and not kept."""

    def __init__(
        self, capacity_bytes: int, *, read: Callable[[Path], HostImage] = read_image
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._read_file = read
        self._lock = threading.Lock()
        self._kept: OrderedDict[AdapterKey, HostImage] = OrderedDict()
        self._reading: dict[AdapterKey, Future[HostImage]] = {}
        self._num_bytes = 0
        self._hits = 0
        self._misses = 0

    def fetch(self, card: AdapterCard) -> HostImage:
        """The adapter's image; blocks while the file is read.

        Raises:
            AdapterLoadFailed: the file is missing or damaged.
        """
        key = card.key
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                self._hits += 1
                return kept
            underway = self._reading.get(key)
            mine: Future[HostImage] = Future()
            if underway is None:
                self._reading[key] = mine
                self._misses += 1
            else:
                self._hits += 1
        if underway is None:
            return self._read(card, mine)
        # Ends when the reading thread does, which waits for nothing but the disk.
        return underway.result()

    def forget(self, key: AdapterKey) -> None:
        """Let go of an adapter; one that is being read is not kept afterwards."""
        with self._lock:
            self._reading.pop(key, None)
            self._drop(key)

    def stats(self) -> HostTierStats:
        with self._lock:
            return HostTierStats(
                self._num_bytes, self._capacity_bytes, len(self._kept), self._hits, self._misses
            )

    def _read(self, card: AdapterCard, mine: Future[HostImage]) -> HostImage:
        try:
            image = self._read_file(card.image_path)
        except BaseException as error:
            failure = _explain(card, error)
            self._finish(card.key, mine, None)
            mine.set_exception(failure)
            if failure is error:
                raise
            raise failure from error
        self._finish(card.key, mine, image)
        mine.set_result(image)
        return image

    def _finish(self, key: AdapterKey, mine: Future[HostImage], image: HostImage | None) -> None:
        """Keep the image, unless it was forgotten meanwhile or is larger than the budget."""
        with self._lock:
            if self._reading.get(key) is not mine:
                return
            del self._reading[key]
            if image is None or image.size_bytes > self._capacity_bytes:
                return
            self._kept[key] = image
            self._num_bytes += image.size_bytes
            while self._num_bytes > self._capacity_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: AdapterKey) -> None:
        image = self._kept.pop(key, None)
        if image is not None:
            self._num_bytes -= image.size_bytes


def _explain(card: AdapterCard, error: BaseException) -> BaseException:
    if not isinstance(error, (ImageDamaged, MemoryError)):
        return error
    return AdapterLoadFailed(
        f"adapter {card.key} cannot be loaded: its image {card.image_path.name} could not be read "
        f"({error})",
        name=card.key.name,
    )
