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


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load has ended; from now on the link writes none of its pages."""

    load_id: int
    error: Exception  # AdapterError


LinkEvent = LayerLanded | Loaded | LoadFailed


class Link(Protocol):
    """Moves images into the pool, in its own time."""

    def start(self, order: LoadOrder) -> None:
        """Begin; never blocks and never raises for what a disk can cause (LoadFailed does)."""
        ...

    def poll(self) -> Sequence[LinkEvent]:
        """Events since the last call, in the order they happened; never blocks."""
        ...

    def close(self) -> None:
        """Stop; loads that are under way are given up."""
        ...
