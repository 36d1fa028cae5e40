"""The definition of a correct LoRA product: plain torch, gathered tiles, fp32 throughout.

Called by tests and benches; a PagedModel may be built with it, as a test does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .work import LoraWork, tiles_of


def gather_factor(
    pool_PE: Tensor, offsets: Tensor, *, rank: int, width: int, tile_cols: int
) -> Tensor:
    """One whole factor [rank, width] out of its tiles, in fp32."""
    flat = pool_PE.view(-1)
    factor = torch.empty(rank, width, dtype=torch.float32, device=pool_PE.device)
    for tile in tiles_of(offsets, rank, width, tile_cols):
        block = torch.as_strided(
            flat, (tile.num_rows, tile.num_cols), (tile.stride, 1), tile.offset
        )
        factor[tile.row : tile.row + tile.num_rows, tile.col : tile.col + tile.num_cols] = block
    return factor


class ReferenceBackend:
    """See the Semantics in kernels/lora/__init__.py."""

    def shrink(
        self, hidden_TI: Tensor, pool_PE: Tensor, work: LoraWork, *, site: int, out_TR: Tensor
    ) -> None:
        width, cols = work.table.sites[site].in_width, work.table.tile_cols
        for segment, tiles in work.at_site(site):
            a_RI = gather_factor(
                pool_PE, tiles.a_offsets, rank=tiles.rank, width=width, tile_cols=cols
            )
            rows = slice(segment.start, segment.end)
            out_TR[rows, : tiles.rank] = hidden_TI[rows].float() @ a_RI.T

    def expand(
        self, hidden_TR: Tensor, pool_PE: Tensor, work: LoraWork, *, site: int, out_TO: Tensor
    ) -> None:
        width, cols = work.table.sites[site].out_width, work.table.tile_cols
        for segment, tiles in work.at_site(site):
            b_RO = gather_factor(
                pool_PE, tiles.b_offsets, rank=tiles.rank, width=width, tile_cols=cols
            )
            rows = slice(segment.start, segment.end)
            delta = hidden_TR[rows, : tiles.rank] @ b_RO * tiles.scale
            out_TO[rows] = (out_TO[rows].float() + delta).to(out_TO.dtype)
