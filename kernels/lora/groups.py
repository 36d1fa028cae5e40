"""Groups: sites that share their input, and how their outputs lie in one buffer.

Owns the column list of an expand launch: an entry for each block of columns of any of the sites,
so that one launch serves sites of different widths. A block never crosses a tile. Pure;
`triton_backend.py` keeps one on the device for every group that it has met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from .places import COLUMN_LEN, OUT_COLUMN, PLACE, SITE, SITE_END, SITE_FIRST, WIDTH
from .work import LoraTable


@dataclass(frozen=True, slots=True)
class OutLayout:
    """Outputs of a group: columns of rows that are `stride` apart, from the first one's start."""

    stride: int  # elements
    offsets: tuple[int, ...]  # first column of each site
    align: int  # elements, at most 8, that divide every offset, width and the stride

    @classmethod
    def of(cls, stride: int, offsets: Sequence[int], widths: Sequence[int]) -> OutLayout:
        return cls(stride, tuple(offsets), gcd(8, stride, *offsets, *widths))


def find_layout(outs_TO: Sequence[Tensor]) -> OutLayout | None:
    """How the outputs lie in one buffer; None where they do not."""
    first = outs_TO[0]
    starts = [out.data_ptr() // out.element_size() for out in outs_TO]
    offsets = tuple(start - starts[0] for start in starts)
    strides = {out.stride(0) for out in outs_TO}
    in_one = len({out.untyped_storage().data_ptr() for out in outs_TO}) == 1
    if len(outs_TO) > 1 and (not in_one or len(strides) > 1):
        return None
    ends = [offset + out.shape[1] for offset, out in zip(offsets, outs_TO, strict=True)]
    if min(offsets) < 0 or max(ends) > max(first.stride(0), first.shape[1]):
        return None
    widths = [out.shape[1] for out in outs_TO]
    return OutLayout.of(first.stride(0), offsets, widths)


def make_columns(
    table: LoraTable, sites: Sequence[int], layout: OutLayout, *, first: int, block_o: int
) -> Tensor:
    """[blocks, COLUMN_LEN] int32, see places.py; places in the group count from `first` on."""
    parts: list[Tensor] = []
    end = 0
    for place, (site, offset) in enumerate(zip(sites, layout.offsets, strict=True), first):
        width, cols = table.sites[site].out_width, table.tile_cols
        full, rest = divmod(width, cols)
        num_blocks = full * -(-cols // block_o) + -(-rest // block_o)
        entry = torch.zeros(COLUMN_LEN, dtype=torch.int32)
        entry[SITE], entry[PLACE] = site, place
        entry[WIDTH], entry[OUT_COLUMN] = width // layout.align, offset // layout.align
        entry[SITE_FIRST], entry[SITE_END] = end, end + num_blocks
        parts.append(entry.repeat(num_blocks, 1))
        end += num_blocks
    return torch.cat(parts)
