"""The tensors of a case: a pool of tiled adapters, the rows of every layer, and dense copies.

Owns the random numbers. The pool is filled with them, tiles are dealt out of it as a server's
packing does (never over a page's end), and whoever wants whole matrices gets them from there:
all implementations compute with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.lora import (
    TILE_ROWS,
    FactorTiles,
    LoraTable,
    LoraWork,
    SiteShape,
    num_tiles,
    row_stride,
)
from .cases import Case

TILE_COLS = 512
TILE_ALIGN = 64  # elements between the starts of two tiles
PAGE_ELEMENTS = 1 << 20
# A power of two: folding it into B, as vLLM does, rounds nothing.
SCALE = 2.0
WEIGHT_STD = 0.02
SEED = 7


@dataclass(frozen=True, slots=True)
class Dense:
    """One adapter at one site, whole."""

    a_RI: Tensor
    b_RO: Tensor


class Inputs:
    """See the module. Layer by layer and group by group; a site's number counts over the layers."""

    def __init__(
        self, case: Case, *, num_layers: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.case, self.num_layers = case, num_layers
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device=device).manual_seed(SEED)
        self.table, self.pool_PE = self._attach(case.layer.sites * num_layers)
        groups = case.layer.groups
        rows = case.num_rows
        self.hidden = [[self._random(rows, g.in_width) for g in groups] for _ in range(num_layers)]
        self._base = [
            [self._random(rows, g.out_width) * self._delta_std(g.in_width) for g in groups]
            for _ in range(num_layers)
        ]
        self.out = [[base.clone() for base in layer] for layer in self._base]

    def _delta_std(self, in_width: int) -> float:
        """What LoRA adds at least, so that the base's own rounding does not hide an error."""
        return SCALE * WEIGHT_STD**2 * (in_width * min(self.case.ranks)) ** 0.5

    def make_work(self) -> LoraWork:
        """The step's work; made anew by whoever times the host."""
        return LoraWork(self.table, self.case.segments)

    def base(self, layer: int, group: int) -> Tensor:
        """What `out` held before anything was added."""
        return self._base[layer][group]

    def reset(self) -> None:
        """Outputs back to the base."""
        for outs, bases in zip(self.out, self._base, strict=True):
            for out, base in zip(outs, bases, strict=True):
                out.copy_(base)

    def outs(self, layer: int, group: int) -> list[Tensor]:
        """The group's output, one column slice a site."""
        widths = list(self.case.layer.groups[group].out_widths)
        return list(self.out[layer][group].split(widths, dim=1))

    def sites(self, layer: int, group: int) -> tuple[int, ...]:
        return self.case.layer.sites_of(layer, group)

    def dense(self, slot: int, site: int) -> Dense:
        tiles, shape = self.table.factors(slot)[site], self.table.sites[site]
        return Dense(
            self._gather(tiles.a_offsets, tiles.rank, shape.in_width),
            self._gather(tiles.b_offsets, tiles.rank, shape.out_width),
        )

    def _gather(self, offsets: Tensor, rank: int, width: int) -> Tensor:
        """A whole factor [rank, width] out of its tiles."""
        place = _places(offsets.to(self.device), rank, width)
        return self.pool_PE.view(-1)[place]

    def _random(self, *sizes: int) -> Tensor:
        return torch.randn(
            *sizes, generator=self._generator, device=self.device, dtype=torch.float32
        ).to(self.dtype)

    def _attach(self, sites: tuple[SiteShape, ...]) -> tuple[LoraTable, Tensor]:
        deal = _Dealer()
        slots: list[dict[int, FactorTiles]] = []
        for rank in self.case.ranks:
            slots.append(
                {
                    number: FactorTiles(
                        rank,
                        SCALE,
                        deal.factor(rank, shape.in_width),
                        deal.factor(rank, shape.out_width),
                    )
                    for number, shape in enumerate(sites)
                }
            )
        pool_PE = torch.empty(deal.num_pages, PAGE_ELEMENTS, dtype=self.dtype, device=self.device)
        for page_E in pool_PE:
            page_E.copy_(self._random(PAGE_ELEMENTS) * WEIGHT_STD)
        table = LoraTable(sites, tile_cols=TILE_COLS, pool_elements=pool_PE.numel())
        for slot, factors in enumerate(slots):
            table.attach(slot, factors)
        return table, pool_PE


class _Dealer:
    """Places for tiles, one behind the other; a tile that would straddle a page opens the next."""

    def __init__(self) -> None:
        self._next = 0

    @property
    def num_pages(self) -> int:
        return -(-self._next // PAGE_ELEMENTS)

    def factor(self, rank: int, width: int) -> Tensor:
        starts: list[int] = []
        for row in range(0, rank, TILE_ROWS):
            for col in range(0, width, TILE_COLS):
                size = min(TILE_ROWS, rank - row) * row_stride(min(TILE_COLS, width - col))
                starts.append(self._tile(size))
        assert len(starts) == num_tiles(rank, width, TILE_COLS)
        return torch.tensor(starts, dtype=torch.int64)

    def _tile(self, size: int) -> int:
        room = PAGE_ELEMENTS - self._next % PAGE_ELEMENTS
        start = self._next if size <= room else self._next + room
        self._next = start + -(-size // TILE_ALIGN) * TILE_ALIGN
        return start


def _places(offsets: Tensor, rank: int, width: int) -> Tensor:
    """[rank, width]: where in the pool each element of a tiled factor lies."""
    row = torch.arange(rank, device=offsets.device)[:, None]
    col = torch.arange(width, device=offsets.device)[None, :]
    tiles_across = -(-width // TILE_COLS)
    last_stride = row_stride(width - (tiles_across - 1) * TILE_COLS)
    is_last = col // TILE_COLS == tiles_across - 1
    stride = torch.where(is_last, last_stride, row_stride(TILE_COLS))
    start = offsets[(row // TILE_ROWS) * tiles_across + col // TILE_COLS]
    return start + (row % TILE_ROWS) * stride + col % TILE_COLS
