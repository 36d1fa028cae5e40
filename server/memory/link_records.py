"""What residency says to the link, and what the link says back.

Records and one Protocol. The link (server/execution) moves bytes from disk or host memory into
pages of the pool and knows nothing of users or eviction; residency names pages and knows
nothing of bytes. Loads are never awaited: they are started, and polled once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...adapters.host_tier import HeldImage
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


@dataclass(frozen=True, slots=True)
class Opened:
    """A load's layout and its cells in host memory are known: a step may use it from now on, layer
    by layer (execution/cold_start). The image is held for whoever hears this, who lets go of it.
    """

    load_id: int
    image: HeldImage


LinkEvent = Opened | LayerLanded | Loaded | LoadFailed


class Link(Protocol):
    """Moves images into the pool, in its own time."""

    def start(self, order: LoadOrder) -> Opened | None:
        """Begin; never blocks and never raises for what a disk can cause (LoadFailed does). What is
        in host memory is open at once, and no event tells so again.
        """
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

    def let_go(self, image: HeldImage) -> None:
        """Of an `Opened`, once, by whoever heard it: of every one, also of a load that is over by
        then, or was never theirs.
        """
        ...

    def close(self) -> None:
        """Stop; loads that are under way are given up."""
        ...
