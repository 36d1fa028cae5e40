"""Whole factors out of their tiles, on a CPU: a copy for products that want plain matrices.

Owns the way from tile starts to rows: a row of a factor is made of units of 64 elements, each in
one piece in the pool, so that one `take` by number fetches a factor whatever pages its tiles lie
in. Where a width is no multiple of a unit, tile by tile. Used by `workspace.py` and `dense.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .work import TILE_ROWS, tiles_of

UNIT = 64  # elements; tiles start at multiples of it


class TileReader:
    """Of one pool."""

    def __init__(self, pool_PE: Tensor, tile_cols: int) -> None:
        self.pool_PE = pool_PE
        self._flat, self._tile_cols = pool_PE.view(-1), tile_cols
        has_units = self._flat.numel() % UNIT == 0 and tile_cols % UNIT == 0
        self._units = _units_of(self._flat) if has_units else None
        # (rank, width) -> of each unit of the factor its tile, and its place from that one's start
        self._places: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def read(self, offsets: Tensor, out_RO: Tensor) -> None:
        """The factor [rank, width] whose tiles start at `offsets`, into `out_RO`."""
        rank, width = out_RO.shape
        starts = offsets.numpy()
        if (
            self._units is None
            or width % UNIT
            or not out_RO.is_contiguous()
            or (starts % UNIT).any()
        ):
            self._read_tiles(offsets, out_RO)
            return
        tile, place = self._places_of(rank, width)
        numbers = (starts // UNIT)[tile]
        numbers += place
        # All of them lie in the pool (LoraTable.attach); "clip" is what takes without a buffer.
        np.take(self._units, numbers, axis=0, out=_units_of(out_RO.view(-1)), mode="clip")

    def _read_tiles(self, offsets: Tensor, out_RO: Tensor) -> None:
        rank, width = out_RO.shape
        for tile in tiles_of(offsets, rank, width, self._tile_cols):
            view = self._flat.as_strided(
                (tile.num_rows, tile.num_cols), (tile.stride, 1), tile.offset
            )
            rows = slice(tile.row, tile.row + tile.num_rows)
            out_RO[rows, tile.col : tile.col + tile.num_cols].copy_(view)

    def _places_of(self, rank: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = self._places.get((rank, width))
        if found is None:
            in_tile = self._tile_cols // UNIT
            row_R1 = np.arange(rank)[:, None]
            block_U, unit_U = np.divmod(np.arange(width // UNIT), in_tile)
            num_blocks = -(-width // self._tile_cols)
            # The last tile of a row may be narrower; its rows lie closer together.
            stride_U = np.minimum(in_tile, width // UNIT - block_U * in_tile)
            tile = row_R1 // TILE_ROWS * num_blocks + block_U
            place = row_R1 % TILE_ROWS * stride_U + unit_U
            found = self._places[rank, width] = tile.reshape(-1), place.reshape(-1)
        return found


def _units_of(flat: Tensor) -> NDArray[Any]:
    """[units, words of one]: a view; numpy knows no bfloat16, and no arithmetic is done."""
    words = UNIT * flat.element_size() // torch.int64.itemsize
    return flat.view(torch.int64).numpy().reshape(-1, words)
