"""The workspace: factors of the adapters in use, laid out whole for matrix products.

Owns one preallocated block of memory and the books of who lies where in it: A of a site as
[rank rows, in], B as [rank rows, out], an adapter's rows together and at the same place at every
site. Only sites that somebody in use changes have a part of the block (`carve.py`). Everything in
it is a copy of pages, made when an adapter is first used after it was attached; pages written
behind an attached adapter show after `forget`. Does not know segments or products (`cpu.py` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .carve import ROW_ALIGN, Carving, carve, max_rows, workspace_row_bytes
from .tile_reader import TileReader
from .work import FactorTiles, LoraTable, SiteShape

# Products run over all rows from the first adapter's of a step to the last one's: with more than
# twice what they need between them, and these beside, they are laid closer together.
SPARE_ROWS = 64

__all__ = ["Place", "Workspace", "workspace_row_bytes"]


@dataclass(frozen=True, slots=True)
class Place:
    """Rows [row, end_row) of the workspace belong to the adapter that `factors` are of."""

    factors: Mapping[int, FactorTiles]  # as the table held them; another object: another adapter
    row: int
    end_row: int


class Workspace:
    """Room for `num_rows` rank rows at `sites`, or more at some of them; taken at once."""

    def __init__(
        self, sites: Mapping[int, SiteShape], *, num_rows: int, dtype: torch.dtype
    ) -> None:
        self.sites = frozenset(sites)
        self._shapes, self._dtype = dict(sites), dtype
        widths = [shape.in_width + shape.out_width for shape in sites.values()]
        self.mean_width = max(1, sum(widths) // max(1, 2 * len(widths)))
        num_bytes = num_rows * workspace_row_bytes(list(sites.values()), dtype)
        self._block = torch.zeros(num_bytes, dtype=torch.uint8)
        self._carving: Carving = carve(self._block, self._shapes, dtype)
        self._places: dict[int, Place] = {}  # by slot; no two overlap
        self._reader: TileReader | None = None  # of the pool that was read last

    @property
    def num_rows(self) -> int:
        """Rank rows that each site has now which has any."""
        return self._carving.num_rows

    def rows(self, site: int, place: slice) -> tuple[Tensor, Tensor, Tensor]:
        """A [rows, in], B [rows, out] and scales [rows] of a site that somebody in use changes;
        rows of others hold finite numbers.
        """
        a_RI, b_RO, scale_R = self._carving.parts[site]
        return a_RI[place], b_RO[place], scale_R[place]

    def forget(self) -> None:
        """What pages hold has changed: everybody is laid out anew at the next use."""
        self._places.clear()

    def hold(
        self, pool_PE: Tensor, table: LoraTable, wanted: Mapping[int, Mapping[int, FactorTiles]]
    ) -> dict[int, Place]:
        """Lay out the adapters of a step, slot -> factors; returns those that have a place.

        A newcomer takes the lowest rows that nobody of this step uses, so that those of a step
        lie close together; who lay there is laid out again when it comes back. All are moved
        where only holes between them keep somebody out. Who does not fit even so is left to the
        tiles: throwing somebody out for it would happen at every step.
        """
        places = {
            slot: place
            for slot, factors in wanted.items()
            if (place := self._places.get(slot)) is not None and place.factors is factors
        }
        if len(places) == len(wanted):
            return places
        needs = {slot: _rows_needed(factors) for slot, factors in wanted.items()}
        if self._carve_for(wanted, sum(needs.values())):
            places = {}
        for slot in sorted(wanted.keys() - places.keys()):
            row = _lowest_gap(places, needs[slot], self.num_rows)
            if row is not None:
                place = Place(wanted[slot], row, row + needs[slot])
                places[slot] = self._put(pool_PE, table, slot, place)
        if self._is_worth_moving(places, needs):
            self.forget()
            places, row = {}, 0
            for slot in sorted(wanted):
                place = Place(wanted[slot], row, row + needs[slot])
                places[slot] = self._put(pool_PE, table, slot, place)
                row = place.end_row
        return places

    def _carve_for(self, wanted: Mapping[int, Mapping[int, FactorTiles]], num_rows: int) -> bool:
        """Whether the block was divided anew: for sites that had no part of it, or because these
        sites alone would have more rows and more are needed. Nobody has a place then.
        """
        sites = self.sites.intersection(frozenset[int]().union(*wanted.values()))
        if sites <= self._carving.parts.keys():
            if num_rows <= self.num_rows:
                return False
            if max_rows(self._block, self._pick(sites), self._dtype) <= self.num_rows:
                return False
        self.forget()
        # Numbers of one kind may not be read as another: they could be NaN.
        self._block.zero_()
        self._carving = carve(self._block, self._pick(sites), self._dtype)
        return True

    def _pick(self, sites: frozenset[int]) -> dict[int, SiteShape]:
        return {site: shape for site, shape in self._shapes.items() if site in sites}

    def _is_worth_moving(self, places: Mapping[int, Place], needs: Mapping[int, int]) -> bool:
        """Only when all fit, and somebody has no place or they lie far apart."""
        num_needed = sum(needs.values())
        if num_needed > self.num_rows:
            return False
        end_row = max(place.end_row for place in places.values()) if places else 0
        return len(places) < len(needs) or end_row > 2 * num_needed + SPARE_ROWS

    def _put(self, pool_PE: Tensor, table: LoraTable, slot: int, place: Place) -> Place:
        """Copy an adapter over whoever lies there."""
        for other, held in list(self._places.items()):
            if other == slot or (held.row < place.end_row and place.row < held.end_row):
                del self._places[other]
        self._places[slot] = place
        factors = place.factors
        reader = self._reader
        if reader is None or reader.pool_PE is not pool_PE:
            reader = self._reader = TileReader(pool_PE, table.tile_cols)
        for site in self._carving.parts:
            tiles = factors.get(site)
            parts = self.rows(site, slice(place.row, place.end_row))
            rank = 0 if tiles is None else tiles.rank
            if place.row + rank < place.end_row:
                for part in parts:
                    part[rank:].zero_()
            if tiles is not None:
                a_RI, b_RO, scale_R = parts
                reader.read(tiles.a_offsets, a_RI[:rank])
                reader.read(tiles.b_offsets, b_RO[:rank])
                scale_R[:rank].fill_(tiles.scale)
        return place


def _lowest_gap(places: Mapping[int, Place], num_rows: int, end_row: int) -> int | None:
    """The first row of the lowest so many that no place has."""
    row = 0
    for place in sorted(places.values(), key=lambda place: place.row):
        if row + num_rows <= place.row:
            break
        row = place.end_row
    return row if row + num_rows <= end_row else None


def _rows_needed(factors: Mapping[int, FactorTiles]) -> int:
    rank = max((tiles.rank for tiles in factors.values()), default=0)
    return -(-rank // ROW_ALIGN) * ROW_ALIGN
