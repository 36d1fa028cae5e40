"""The plain path of serving: segment by segment, tile by tile, on torch's matrix products.

Owns a cache of strided views into the pool, never copies: zeroing a page changes the output
at the next call. Neighbouring rank blocks that follow each other without a gap are read as
one view. Runs on any torch device. On a CPU it serves what the workspace has no room for
(`cpu.py`) and is what that path is held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .work import FactorTiles, LoraTable, LoraWork, TileRef, tiles_of


@dataclass(frozen=True, slots=True)
class _Block:
    view: Tensor  # rows of one factor within one column block, straight from the pool
    row: int
    end_row: int
    col: int
    end_col: int
    first: bool  # first of those that add up to the same numbers


@dataclass(frozen=True, slots=True)
class _SiteBlocks:
    a: tuple[_Block, ...]
    b: tuple[_Block, ...]


class TileBackend:
    """See the Semantics in kernels/lora/__init__.py. Sums in fp32, rounded once."""

    def __init__(self) -> None:
        self._pool: Tensor | None = None
        # slot -> (what the table held when the views were made, views by site)
        self._slots: dict[int, tuple[Mapping[int, FactorTiles], dict[int, _SiteBlocks]]] = {}

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """Nothing: views are made when they are first asked for."""

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        for site, out_TO in zip(sites, outs_TO, strict=True):
            for segment, tiles in work.at_site(site):
                rows = slice(segment.start, segment.end)
                blocks = self._blocks(pool_PE, work.table, segment.slot, site)
                shrunk = _shrink(hidden_TI[rows].float(), blocks.a, tiles.rank)
                if out_TO.dtype == torch.float32:
                    _add_blocks(shrunk, blocks.b, tiles.scale, out_TO[rows])
                    continue
                # The sum is made in fp32 and rounded once.
                total = out_TO[rows].float()
                _add_blocks(shrunk, blocks.b, tiles.scale, total)
                out_TO[rows] = total.to(out_TO.dtype)

    def forget(self) -> None:
        """Nothing to forget: views show what pages hold now."""

    def _blocks(self, pool_PE: Tensor, table: LoraTable, slot: int, site: int) -> _SiteBlocks:
        if self._pool is not pool_PE:
            self._pool = pool_PE
            self._slots.clear()
        factors = table.factors(slot)
        held, by_site = self._slots.get(slot, (None, dict[int, _SiteBlocks]()))
        if held is not factors:
            by_site = {}
            self._slots[slot] = (factors, by_site)
        blocks = by_site.get(site)
        if blocks is None:
            blocks = by_site[site] = _make_blocks(pool_PE, table, factors[site], site)
        return blocks


def _shrink(hidden: Tensor, blocks: Sequence[_Block], rank: int) -> Tensor:
    """Rows [t, rank] in fp32 of rows [t, I]."""
    out = torch.empty(len(hidden), rank, dtype=torch.float32, device=hidden.device)
    for block in blocks:
        target = out[:, block.row : block.end_row]
        part = hidden[:, block.col : block.end_col]
        weight = block.view.float().t()
        if block.first:
            torch.mm(part, weight, out=target)
        else:
            target.addmm_(part, weight)
    return out


def _add_blocks(hidden: Tensor, blocks: Sequence[_Block], scale: float, total: Tensor) -> None:
    for block in blocks:
        part = hidden[:, block.row : block.end_row]
        total[:, block.col : block.end_col].addmm_(part, block.view.float(), alpha=scale)


def _make_blocks(pool_PE: Tensor, table: LoraTable, tiles: FactorTiles, site: int) -> _SiteBlocks:
    shape, cols = table.sites[site], table.tile_cols
    flat = pool_PE.view(-1)
    a_tiles = _merge(tiles_of(tiles.a_offsets, tiles.rank, shape.in_width, cols))
    b_tiles = _merge(tiles_of(tiles.b_offsets, tiles.rank, shape.out_width, cols))
    # Products with A add up over columns: the first column block sets, the others add.
    return _SiteBlocks(
        a=tuple(_block(flat, tile, first=tile.col == 0) for tile in a_tiles),
        b=tuple(_block(flat, tile, first=False) for tile in b_tiles),
    )


def _block(flat: Tensor, tile: TileRef, *, first: bool) -> _Block:
    view = torch.as_strided(flat, (tile.num_rows, tile.num_cols), (tile.stride, 1), tile.offset)
    return _Block(
        view, tile.row, tile.row + tile.num_rows, tile.col, tile.col + tile.num_cols, first
    )


def _merge(tiles: Sequence[TileRef]) -> list[TileRef]:
    """Join rank blocks of one column block that lie right behind each other."""
    merged: list[TileRef] = []
    for tile in sorted(tiles, key=lambda tile: (tile.col, tile.row)):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.col == tile.col
            and last.offset + last.num_rows * last.stride == tile.offset
        ):
            rows = last.num_rows + tile.num_rows
            merged[-1] = TileRef(last.offset, last.row, rows, last.col, last.num_cols, last.stride)
        else:
            merged.append(tile)
    return merged
