"""What a step's LoRA product has to touch: segments of rows, and the tiles of each slot.

Owns the table from (slot, site) to tiles in the pool and the per-step segment list.
Does not know adapters' names, pages' owners or requests: a slot is a small integer, a site
an index. Filled by the runner; read by every backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ROWS = 16  # rank rows of a tile
STRIDE_ALIGN = 16  # elements; a tile's row stride is its columns rounded up to this


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of the step belong to the adapter in `slot`; base rows have none."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True, slots=True)
class SiteShape:
    """One linear of the base: the widths that its A and B must have."""

    in_width: int
    out_width: int


@dataclass(frozen=True, slots=True, eq=False)
class FactorTiles:
    """Where A and B of one (slot, site) lie. Offsets count elements from the pool's start.

    They are int64 tensors on the host: an adapter has up to some 100,000 of them.
    """

    rank: int
    scale: float  # applied in fp32, outside the weights
    # Row-major over (rank block, column block): ceil(rank/16) x ceil(in_width/tile_cols).
    a_offsets: Tensor
    # The same over B transposed, [rank, out_width].
    b_offsets: Tensor


@dataclass(frozen=True, slots=True)
class TileRef:
    """One tile: rows [row, row + num_rows) and columns [col, col + num_cols) of a factor."""

    offset: int
    row: int
    num_rows: int
    col: int
    num_cols: int
    stride: int  # elements from one row to the next


def row_stride(num_cols: int) -> int:
    return -(-num_cols // STRIDE_ALIGN) * STRIDE_ALIGN


def tiles_of(offsets: Tensor, rank: int, width: int, tile_cols: int) -> list[TileRef]:
    """The tiles of one factor [rank, width], row-major over the blocks."""
    tiles: list[TileRef] = []
    starts = iter(offsets.tolist())
    for row in range(0, rank, TILE_ROWS):
        for col in range(0, width, tile_cols):
            num_cols = min(tile_cols, width - col)
            num_rows = min(TILE_ROWS, rank - row)
            tiles.append(TileRef(next(starts), row, num_rows, col, num_cols, row_stride(num_cols)))
    return tiles


def num_tiles(rank: int, width: int, tile_cols: int) -> int:
    return -(-rank // TILE_ROWS) * -(-width // tile_cols)


class LoraTable:
    """(slot, site) -> tiles. A slot may lack a site, and ranks may differ from site to site."""

    def __init__(self, sites: Sequence[SiteShape], *, tile_cols: int, pool_elements: int) -> None:
        if tile_cols < 1 or tile_cols % STRIDE_ALIGN:
            raise ValueError(f"tile_cols is {tile_cols}; it must be a multiple of {STRIDE_ALIGN}")
        self.sites = tuple(sites)
        self.tile_cols = tile_cols
        self._pool_elements = pool_elements
        self._slots: dict[int, Mapping[int, FactorTiles]] = {}
        # (rank, width) -> extents of its tiles
        self._known_extents: dict[tuple[int, int], Tensor] = {}

    def attach(self, slot: int, factors: Mapping[int, FactorTiles]) -> None:
        """Give `slot` these sites; what it had before is forgotten.

        All tiles are checked at once: a loop over them would hold up the step.

        Raises:
            ValueError: an unknown site, no rank, the wrong number of tiles, or one outside the
                pool.
        """
        if slot < 0:
            raise ValueError(f"slot is {slot}; it must be 0 or more")
        offsets: list[Tensor] = []
        extents: list[Tensor] = []
        for site, factor, starts, extent in self._tiles(factors):
            if len(starts) != len(extent):
                raise ValueError(
                    f"site {site}: {factor} of rank {factors[site].rank} has {len(starts)} tiles; "
                    f"{len(extent)} are needed"
                )
            offsets.append(starts)
            extents.append(extent)
        if offsets:
            starts = torch.cat(offsets)
            ends = starts + torch.cat(extents)
            if int(starts.min()) < 0 or int(ends.max()) > self._pool_elements:
                raise self._outside(factors)
        self._slots[slot] = dict(factors)

    def renew(self, slot: int) -> None:
        """The same tiles as another adapter's would be: whatever is kept of the slot is void.

        Raises:
            ValueError: nothing is attached to it.
        """
        self._slots[slot] = dict(self.factors(slot))

    def detach(self, slot: int) -> None:
        """Forget a slot; one that holds nothing is left as it is."""
        self._slots.pop(slot, None)

    def has(self, slot: int) -> bool:
        """Whether anything is attached to it."""
        return slot in self._slots

    def factors(self, slot: int) -> Mapping[int, FactorTiles]:
        """What `slot` holds; the same object until it is attached anew.

        Raises:
            ValueError: nothing is attached to it.
        """
        found = self._slots.get(slot)
        if found is None:
            raise ValueError(f"slot {slot} holds no adapter")
        return found

    def _tiles(
        self, factors: Mapping[int, FactorTiles]
    ) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """(site, factor, starts, extents) of A and B of every site."""
        for site, tiles in factors.items():
            if not 0 <= site < len(self.sites):
                raise ValueError(f"site is {site}; there are {len(self.sites)}")
            if tiles.rank < 1:
                raise ValueError(f"site {site}: rank is {tiles.rank}; it must be 1 or more")
            shape = self.sites[site]
            yield site, "A", tiles.a_offsets, self._extents(tiles.rank, shape.in_width)
            yield site, "B", tiles.b_offsets, self._extents(tiles.rank, shape.out_width)

    def _extents(self, rank: int, width: int) -> Tensor:
        """Elements from each tile's start to its end; the same for all factors of this shape."""
        found = self._known_extents.get((rank, width))
        if found is None:
            zeros = torch.zeros(num_tiles(rank, width, self.tile_cols), dtype=torch.int64)
            tiles = tiles_of(zeros, rank, width, self.tile_cols)
            found = torch.tensor(
                [(tile.num_rows - 1) * tile.stride + tile.num_cols for tile in tiles],
                dtype=torch.int64,
            )
            self._known_extents[rank, width] = found
        return found

    def _outside(self, factors: Mapping[int, FactorTiles]) -> ValueError:
        for site, factor, starts, extent in self._tiles(factors):
            for start, end in zip(starts.tolist(), (starts + extent).tolist(), strict=True):
                if start < 0 or end > self._pool_elements:
                    return ValueError(
                        f"site {site}: a tile of {factor} from element {start} ends at element "
                        f"{end}; the pool has {self._pool_elements}"
                    )
        return ValueError("no tile lies outside the pool")


class LoraWork:
    """The segments of one step over the slots' tiles; built once per step.

    Segments are in row order, do not overlap, and may be empty; rows outside all of them are
    the base model's. Raises ValueError otherwise.
    """

    def __init__(self, table: LoraTable, segments: Sequence[Segment]) -> None:
        last = 0
        for segment in segments:
            if segment.start < last or segment.end < segment.start:
                raise ValueError(f"{segment} overlaps its forerunner or ends before it starts")
            last = segment.end
        self.table = table
        self.segments = tuple(segments)
        self.end_row = last  # rows of the step that are touched at most
        # Slot -1 marks base rows: nothing to do for them.
        self.live = [
            (segment, table.factors(segment.slot))
            for segment in segments
            if segment.slot >= 0 and segment.end > segment.start
        ]

    def at_site(self, site: int) -> list[tuple[Segment, FactorTiles]]:
        """The segments whose adapter changes `site`."""
        return [(segment, factors[site]) for segment, factors in self.live if site in factors]
