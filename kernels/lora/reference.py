"""The definition of a correct LoRA product: plain torch, gathered tiles, fp32 throughout.

Called by tests and benches; a PagedModel may be built with it, as a test does.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """Nothing: pages are found at every call."""

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        cols = work.table.tile_cols
        for site, out_TO in zip(sites, outs_TO, strict=True):
            shape = work.table.sites[site]
            for segment, tiles in work.at_site(site):
                a_RI, b_RO = (
                    gather_factor(pool_PE, offsets, rank=tiles.rank, width=width, tile_cols=cols)
                    for offsets, width in (
                        (tiles.a_offsets, shape.in_width),
                        (tiles.b_offsets, shape.out_width),
                    )
                )
                rows = slice(segment.start, segment.end)
                delta = hidden_TI[rows].float() @ a_RI.T @ b_RO * tiles.scale
                out_TO[rows] = (out_TO[rows].float() + delta).to(out_TO.dtype)

    def forget(self) -> None:
        """Nothing to forget: pages are read at every call."""
