"""The workspace: factors of the adapters in use, laid out whole for matrix products.

Owns one preallocated block of memory and the books of who lies where in it: A of a site as
[rank rows, in], B as [rank rows, out], an adapter's rows together and at the same place at every
site. Everything in it is a copy of pages, made when an adapter is first used after it was
attached; pages written behind an attached adapter show after `forget`. Does not know segments
or products (`cpu.py` does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .work import FactorTiles, LoraTable, SiteShape, tiles_of

ROW_ALIGN = 8  # an adapter's first row; products like even lengths


@dataclass(frozen=True, slots=True)
class Place:
    """Rows [row, end_row) of the workspace belong to the adapter that `factors` are of."""

    factors: Mapping[int, FactorTiles]  # as the table held them; another object: another adapter
    row: int
    end_row: int


def workspace_row_bytes(sites: Sequence[SiteShape], dtype: torch.dtype) -> int:
    """What one rank row takes: at every site a row of A, one of B and a scale."""
    widths = sum(site.in_width + site.out_width for site in sites)
    return widths * dtype.itemsize + len(sites) * torch.float32.itemsize


class Workspace:
    """Room for `num_rows` rank rows at `sites`, taken at once and never more."""

    def __init__(
        self, sites: Mapping[int, SiteShape], *, num_rows: int, dtype: torch.dtype
    ) -> None:
        self.num_rows = num_rows
        self.sites = frozenset(sites)
        widths = [(shape.in_width, shape.out_width) for shape in sites.values()]
        self.mean_width = max(1, sum(map(sum, widths)) // max(1, 2 * len(widths)))
        block = torch.zeros(num_rows * sum(map(sum, widths)), dtype=dtype)
        sizes = [num_rows * width for pair in widths for width in pair]
        parts = iter(block.split(sizes))
        self._a: dict[int, Tensor] = {}
        self._b: dict[int, Tensor] = {}
        for site, (in_width, out_width) in zip(sites, widths, strict=True):
            self._a[site] = next(parts).view(num_rows, in_width)
            self._b[site] = next(parts).view(num_rows, out_width)
        scales = torch.zeros(len(sites), num_rows, dtype=torch.float32)
        self._scales = dict(zip(sites, scales, strict=True))
        self._places: dict[int, Place] = {}  # by slot
        self._next_row = 0

    def rows(self, site: int, place: slice) -> tuple[Tensor, Tensor, Tensor]:
        """A [rows, in], B [rows, out] and scales [rows] of a site; zeros where there is none."""
        return self._a[site][place], self._b[site][place], self._scales[site][place]

    def forget(self) -> None:
        """What pages hold has changed: everybody is laid out anew at the next use."""
        self._places.clear()
        self._next_row = 0

    def hold(
        self, pool_PE: Tensor, table: LoraTable, wanted: Mapping[int, Mapping[int, FactorTiles]]
    ) -> dict[int, Place]:
        """Lay out the adapters of a step, slot -> factors; returns those that have a place.

        Who is in stays as long as there is room. When a newcomer would fit without those that
        this step does not want, everything is laid out again, in the order of the slots. The
        others are left to the tiles: throwing somebody out for them would happen at every step.
        """
        places = {
            slot: place
            for slot, factors in wanted.items()
            if (place := self._places.get(slot)) is not None and place.factors is factors
        }
        needs = {slot: _rows_needed(factors) for slot, factors in wanted.items()}
        for slot in sorted(wanted.keys() - places.keys()):
            in_use = sum(needs[held] for held in places)
            if self._next_row + needs[slot] > self.num_rows >= in_use + needs[slot]:
                self.forget()
                moved = sorted([*places, slot])
                places = {s: self._put(pool_PE, table, s, wanted[s], needs[s]) for s in moved}
            elif self._next_row + needs[slot] <= self.num_rows:
                places[slot] = self._put(pool_PE, table, slot, wanted[slot], needs[slot])
        return places

    def _put(
        self,
        pool_PE: Tensor,
        table: LoraTable,
        slot: int,
        factors: Mapping[int, FactorTiles],
        num_rows: int,
    ) -> Place:
        """Copy an adapter behind the last one."""
        place = Place(factors, self._next_row, self._next_row + num_rows)
        self._next_row = place.end_row
        self._places[slot] = place
        flat, cols = pool_PE.view(-1), table.tile_cols
        for site in self._a:
            tiles = factors.get(site)
            parts = self.rows(site, slice(place.row, place.end_row))
            rank = 0 if tiles is None else tiles.rank
            for part in parts:
                part[rank:].zero_()
            if tiles is not None:
                a_RI, b_RO, scale_R = parts
                _copy_factor(flat, tiles.a_offsets, a_RI[:rank], cols)
                _copy_factor(flat, tiles.b_offsets, b_RO[:rank], cols)
                scale_R[:rank].fill_(tiles.scale)
        return place


def _rows_needed(factors: Mapping[int, FactorTiles]) -> int:
    rank = max((tiles.rank for tiles in factors.values()), default=0)
    return -(-rank // ROW_ALIGN) * ROW_ALIGN


def _copy_factor(flat: Tensor, offsets: Tensor, factor: Tensor, tile_cols: int) -> None:
    rank, width = factor.shape
    for tile in tiles_of(offsets, rank, width, tile_cols):
        view = flat.as_strided((tile.num_rows, tile.num_cols), (tile.stride, 1), tile.offset)
        rows = slice(tile.row, tile.row + tile.num_rows)
        factor[rows, tile.col : tile.col + tile.num_cols].copy_(view)
