"""What residency says to the link, and what the link says back.

Records and one Protocol. The link (server/execution) moves bytes from disk or host memory into
pages of the pool and knows nothing of users or eviction; residency names pages and knows
nothing of bytes. Loads are never awaited: they are started, and polled once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Bring one adapter's image into these pages."""

    load_id: int  # never used twice, so that a late event of an old load can be told apart
    adapter_id: int  # residency's handle; handles are reused, load ids are not
    slot: int  # small integer the kernels will know the adapter by
    card: AdapterCard
    pages: tuple[int, ...]  # page numbers in the order of the image's pages


@dataclass(frozen=True, slots=True)
class LayerLanded:
    """Everything of decoder layers 0 to `layer`, both included, is in the pool."""

    load_id: int
    layer: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The whole image is in the pool."""

    load_id: int
    layout: ImageLayout
    seconds: float = 0.0  # from order to here, by the link's clock; 0: it has none
    read_s: float = 0.0  # of those, until the image was in host memory; 0: it was there
    disk_s: float = 0.0  # that the reading took, alone; it may have begun before the order
    wire_s: float = 0.0  # of `seconds`, once the image was there and the wire free for it


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load has ended; from now on the link writes none of its pages."""

    load_id: int
    error: Exception  # AdapterError, or LoadCancelled


class LoadCancelled(Exception):
    """The error of a load that was given up because nobody needed it any more."""


LinkEvent = LayerLanded | Loaded | LoadFailed


class Link(Protocol):
    """Moves images into the pool, in its own time."""

    def start(self, order: LoadOrder) -> None:
        """Begin; never blocks and never raises for what a disk can cause (LoadFailed does)."""
        ...

    def cancel(self, load_id: int) -> None:
        """Nobody needs it: it ends soon, as `LoadFailed` with LoadCancelled, or as `Loaded` when it
        was as good as there. Never blocks; a load that is over already is none of its business.
        """
        ...

    def want(self, cards: Sequence[AdapterCard]) -> None:
        """Adapters that will be ordered next, whoever is needed first in front: disk is read ahead
        for them in this order. Replaces what was wanted before; never blocks.
        """
        ...

    def poll(self) -> Sequence[LinkEvent]:
        """Events since the last call, in the order they happened; never blocks."""
        ...

    def close(self) -> None:
        """Stop; loads that are under way are given up."""
        ...
