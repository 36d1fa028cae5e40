"""The `--pool-bytes` that gives a server on a CPU exactly so many pages.

A part of those bytes becomes the LoRA workspace (server/execution/workspace_size.py), so pages are
not bytes over the size of a page. Pure; called by live.py, whose pools are counted in pages.
"""

from __future__ import annotations

import torch

from ...adapters.packing import DTYPES
from ...kernels.lora import SiteShape, workspace_row_bytes
from ...server.execution.meta_model import ModelMemory
from ...server.execution.workspace_size import MAX_ROWS, rows_within


def pool_bytes_for(num_pages: int, model: ModelMemory, *, device: str = "cpu") -> int:
    page_bytes = model.shape.page_bytes
    pages_bytes = num_pages * page_bytes
    if torch.device(device).type != "cpu":
        return pages_bytes
    row_bytes = _row_bytes(model)
    for num_rows in range(MAX_ROWS + 1):
        pool_bytes = pages_bytes + num_rows * row_bytes
        if rows_within(pool_bytes, row_bytes=row_bytes) == num_rows:
            return pool_bytes
    raise AssertionError("a pool of these pages and rows gives up neither more rows nor fewer")


def _row_bytes(model: ModelMemory) -> int:
    """Of one rank row at every site but the head's."""
    sites = [
        SiteShape(site.in_width, site.out_width)
        for site in model.shape.spec.sites
        if site.name != model.head
    ]
    return workspace_row_bytes(sites, DTYPES[model.dtype])
