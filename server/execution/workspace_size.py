"""How much room the adapters in use get beside the pages, and what lies there.

Owns the rule for the LoRA workspace of a CPU: a part of the bytes that the pool was given, so
that `--pool-bytes` says what both take. Every site but the head has its place there: a head's B
is as wide as the vocabulary and few adapters have one. Does not know how rows are used (kernels
do). Called when a runner is built.
"""

from __future__ import annotations

import torch

from ...kernels.lora import SiteShape, Workspace, workspace_row_bytes
from .model import LoadedModel
from .sites import find_sites

PAGES_FIRST_BYTES = 16 << 20  # of the pool are pages in any case
# One byte in so many of the pool at most. Of all, not of what is above those pages: a pool of
# thirty small adapters and the KV of a batch would have room for half of the batch's adapters,
# and tiles cost several times as much.
SHARE = 4
MAX_ROWS = 512  # rank rows: 8 adapters of rank 64, 32 of rank 16
DTYPES = (torch.float32, torch.bfloat16)  # that a CPU multiplies well


def choose_workspace_rows(loaded: LoadedModel, pool_bytes: int) -> int:
    """Rank rows that a pool of so many bytes gives up; 0: every product is made from tiles."""
    if loaded.device.type != "cpu" or loaded.dtype not in DTYPES:
        return 0
    return rows_within(pool_bytes, row_bytes=workspace_bytes(loaded, 1))


def rows_within(pool_bytes: int, *, row_bytes: int) -> int:
    """The rule itself, for whoever reckons without a model."""
    room_bytes = max(0, min(pool_bytes - PAGES_FIRST_BYTES, pool_bytes // SHARE))
    return min(MAX_ROWS, room_bytes // row_bytes)


def workspace_bytes(loaded: LoadedModel, num_rows: int) -> int:
    return num_rows * workspace_row_bytes(list(_shapes(loaded).values()), loaded.dtype)


def make_workspace(loaded: LoadedModel, num_rows: int) -> Workspace | None:
    """None where tiles are all there is: on a GPU, in fp16, or with no rows to spare."""
    if not num_rows or loaded.device.type != "cpu" or loaded.dtype not in DTYPES:
        return None
    return Workspace(_shapes(loaded), num_rows=num_rows, dtype=loaded.dtype)


def _shapes(loaded: LoadedModel) -> dict[int, SiteShape]:
    modules = find_sites(loaded.model)
    return {
        idx: SiteShape(site.in_width, site.out_width)
        for idx, site in enumerate(loaded.image_spec.sites)
        if not modules[idx].at_head
    }
