"""How the workspace's block is divided: for each site in use A, B and scales, of as many rows.

Owns the arithmetic of rows and bytes and the views; the fewer sites adapters change, the more
rank rows the same bytes hold. Does not know adapters. Called by `workspace.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .work import SiteShape

ROW_ALIGN = 8  # an adapter's first row; products like even lengths


@dataclass(frozen=True, slots=True)
class Carving:
    num_rows: int  # at every site that has a part
    parts: Mapping[int, tuple[Tensor, Tensor, Tensor]]  # site -> A [R, I], B [R, O], scales [R]


def workspace_row_bytes(sites: Sequence[SiteShape], dtype: torch.dtype) -> int:
    """What one rank row takes: at every site a row of A, one of B and a scale."""
    widths = sum(site.in_width + site.out_width for site in sites)
    return widths * dtype.itemsize + len(sites) * torch.float32.itemsize


def max_rows(block: Tensor, sites: Mapping[int, SiteShape], dtype: torch.dtype) -> int:
    """Rank rows that a block of bytes holds for these sites, in whole steps of ROW_ALIGN."""
    row_bytes = workspace_row_bytes(list(sites.values()), dtype)
    return 0 if not row_bytes else block.numel() // row_bytes // ROW_ALIGN * ROW_ALIGN


def carve(block: Tensor, sites: Mapping[int, SiteShape], dtype: torch.dtype) -> Carving:
    """Views of a block of bytes; scales come first, since fp32 wants the even addresses."""
    num_rows = max_rows(block, sites, dtype)
    scale_bytes = len(sites) * num_rows * torch.float32.itemsize
    scales = block[:scale_bytes].view(torch.float32).split(num_rows) if num_rows else ()
    rest = block[scale_bytes:]
    rest = rest[: rest.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    start = 0
    for (site, shape), scale_R in zip(sites.items(), scales, strict=bool(num_rows)):
        middle = start + num_rows * shape.in_width
        end = middle + num_rows * shape.out_width
        a_RI = rest[start:middle].view(num_rows, shape.in_width)
        parts[site] = (a_RI, rest[middle:end].view(num_rows, shape.out_width), scale_R)
        start = end
    return Carving(num_rows, parts)
