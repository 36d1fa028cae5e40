"""What a Triton backend may take for itself: the bounds that its device memory follows from.

Owns the record. Filled by the runner from its step's limits; read by `triton_backend.py`, which
takes all memory at once, so that reserved memory stays flat afterwards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from .configs import MAX_SPLIT_UNITS, num_splits
from .work import LoraTable

MAX_SITES = 3  # of one launch: query, key and value; a group of more is made in parts


@dataclass(frozen=True, slots=True)
class LoraRoom:
    """The largest step of a server."""

    max_rows: tuple[int, ...]  # of the work at each position of `prepare`: body, head
    max_segments: int  # of one work
    max_rank: int
    device: torch.device

    def __post_init__(self) -> None:
        for name in ("max_segments", "max_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.max_rows or min(self.max_rows) < 1:
            raise ValueError(f"max_rows is {self.max_rows}; every work must have 1 row or more")

    @property
    def max_blocks(self) -> int:
        """Blocks of 16 rank rows of the largest adapter."""
        return -(-self.max_rank // 16)


def max_units(table: LoraTable, room: LoraRoom) -> int:
    """Units of 16 partial sums that hold every step's, of all sites that share an input.

    One for each row and rank block where a program adds up the splits, and one for each split
    where there are few rows: see MAX_SPLIT_UNITS.
    """
    units = max(room.max_rows) * room.max_blocks
    sites = Counter(site.in_width for site in table.sites)
    planes = max(
        (
            num_splits(-(-width // table.tile_cols)) * min(count, MAX_SITES)
            for width, count in sites.items()
        ),
        default=1,
    )
    return max(units * MAX_SITES, min(units, MAX_SPLIT_UNITS) * planes)
