"""The arena: where on the device the kernels find an adapter's ranks, scales and tiles.

Owns one preallocated int32 buffer and the books of who has a record in it. A record is four
numbers for each site (see places.py; the scale as the bits of its fp32; rank 0: the adapter lacks
the site), then the starts of all tiles in units of 64 elements. Does not know segments. Called by
the backend once a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..staging import Staging
from .places import A_STARTS, B_STARTS, RANK, SCALE, SITE_LEN, START_UNIT
from .work import FactorTiles, LoraTable, SiteShape, num_tiles

MAX_STAGED = 1 << 20  # numbers sent in one piece: 4 MiB in each of the pinned buffers

Factors = Mapping[int, FactorTiles]  # site -> tiles


def record_len(sites: Sequence[SiteShape], rank: int, tile_cols: int) -> int:
    """Numbers in the record of an adapter that has this rank at every site."""
    return sum(
        SITE_LEN
        + num_tiles(rank, site.in_width, tile_cols)
        + num_tiles(rank, site.out_width, tile_cols)
        for site in sites
    )


@dataclass(frozen=True, slots=True)
class Record:
    """An adapter in the arena."""

    factors: Factors  # as the table held them; another object: another adapter
    start: int
    max_rank: int  # of its sites


class Arena:
    """Holds every adapter of a step, whatever was in it before.

    It has room for two steps of the most adapters at the largest rank. A record is written behind
    the last one when a slot is first used after it was attached; where there is no room left,
    everything is laid out anew with the step's adapters only: one step always fits, and half of
    the room is free after it, so this stays rare. Kernels of the step before have read the old
    records by then: copies and launches are in one stream.
    """

    def __init__(
        self, table: LoraTable, *, max_adapters: int, max_rank: int, device: torch.device
    ) -> None:
        self._table = table
        self._max_rank = max_rank
        size = 2 * max_adapters * record_len(table.sites, max_rank, table.tile_cols)
        if size >= 1 << 31:
            raise ValueError(
                f"two steps of {max_adapters} adapters of rank {max_rank} have {size} tiles; "
                "the kernels count to 2**31"
            )
        self.numbers = torch.zeros(size, dtype=torch.int32, device=device)
        self._staging = Staging(min(MAX_STAGED, size), device)
        self._held: dict[int, Record] = {}  # by slot
        self._end = 0

    def hold(self, wanted: Mapping[int, Factors]) -> Mapping[int, Record]:
        """The records of all slots of a step, and maybe others; new ones are sent in one copy."""
        missing = [
            slot
            for slot, factors in wanted.items()
            if (held := self._held.get(slot)) is None or held.factors is not factors
        ]
        if missing:
            made = {slot: self._make_numbers(wanted[slot]) for slot in missing}
            if self._end + sum(map(len, made.values())) > len(self.numbers):
                self._held.clear()
                self._end = 0
                made = {slot: self._make_numbers(factors) for slot, factors in wanted.items()}
            self._append(wanted, made)
        return self._held

    def _append(self, wanted: Mapping[int, Factors], made: Mapping[int, NDArray[np.int32]]) -> None:
        end = self._end
        records: dict[int, Record] = {}
        for slot, numbers in made.items():
            max_rank = max((tiles.rank for tiles in wanted[slot].values()), default=0)
            records[slot] = Record(wanted[slot], end, max_rank)
            end += len(numbers)
        self._staging.send(np.concatenate([*made.values()]), self.numbers[self._end : end])
        # Only what was sent is held.
        self._held.update(records)
        self._end = end

    def _make_numbers(self, factors: Factors) -> NDArray[np.int32]:
        num_sites = len(self._table.sites)
        heads = np.zeros((num_sites, SITE_LEN), dtype=np.int32)
        scales = heads.view(np.float32)[:, SCALE]
        parts: list[NDArray[np.int64]] = []
        end = SITE_LEN * num_sites
        for site, tiles in factors.items():
            if tiles.rank > self._max_rank:
                raise ValueError(f"site {site}: rank is {tiles.rank}; room is for {self._max_rank}")
            heads[site, RANK], scales[site] = tiles.rank, tiles.scale
            for place, offsets in ((A_STARTS, tiles.a_offsets), (B_STARTS, tiles.b_offsets)):
                heads[site, place] = end
                end += len(offsets)
                parts.append(offsets.numpy())
        if not parts:
            return heads.reshape(-1)
        offsets = np.concatenate(parts)
        if (offsets % START_UNIT).any():
            raise ValueError(f"tiles must start at multiples of {START_UNIT} elements")
        return np.concatenate([heads.reshape(-1), (offsets // START_UNIT).astype(np.int32)])
