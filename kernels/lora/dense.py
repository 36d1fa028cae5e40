"""Products of one segment at a time, from factors that are laid out site by site: the arithmetic
of the serving path (`cpu.py`) for adapters that are not in the pool as a whole yet.

Reads a site's tiles when it is asked for that site and no sooner. What it has laid out it keeps as
long as the slot holds the same adapter, up to a bound; past the bound it lays out anew. In fp16,
which a CPU does not multiply well, it is the tile loop (`tiles.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tile_reader import TileReader
from .tiles import TileBackend
from .work import FactorTiles, LoraTable, LoraWork

MAX_KEPT_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What is laid out of one slot."""

    factors: Mapping[int, FactorTiles]  # as the table holds them; another object: another adapter
    by_site: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # A [R, I], B [R, O]


class DenseBackend:
    """See the Semantics in kernels/lora/__init__.py, and CpuBackend on rounding."""

    def __init__(self, *, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_kept_bytes = max_kept_bytes
        self.num_kept_bytes = 0  # of what is laid out
        self._tiles = TileBackend()
        self._reader: TileReader | None = None
        self._kept: dict[int, _Kept] = {}  # by slot

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """What was kept of slots that hold another adapter by now is let go."""
        for work in works:
            if work is not None:
                for slot, kept in list(self._kept.items()):
                    if not _holds(work.table, slot, kept):
                        self._drop(slot)

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        if pool_PE.dtype == torch.float16:
            self._tiles.add(hidden_TI, pool_PE, work, sites=sites, outs_TO=outs_TO)
            return
        for site, out_TO in zip(sites, outs_TO, strict=True):
            for segment, tiles in work.at_site(site):
                a_RI, b_RO = self._factors(pool_PE, work.table, segment.slot, site)
                rows = slice(segment.start, segment.end)
                shrunk = torch.mm(hidden_TI[rows], a_RI.t())
                out_TO[rows].addmm_(shrunk.mul_(tiles.scale), b_RO)

    def forget(self) -> None:
        """Pages were written: all is laid out anew at its next use."""
        self._kept.clear()
        self.num_kept_bytes = 0

    def _factors(
        self, pool_PE: Tensor, table: LoraTable, slot: int, site: int
    ) -> tuple[Tensor, Tensor]:
        reader = self._reader
        if reader is None or reader.pool_PE is not pool_PE:
            self.forget()
            reader = self._reader = TileReader(pool_PE, table.tile_cols)
        kept = self._kept.get(slot)
        if kept is None or kept.factors is not table.factors(slot):
            self._drop(slot)
            kept = self._kept[slot] = _Kept(table.factors(slot))
        found = kept.by_site.get(site)
        if found is None:
            found = _lay_out(reader, kept.factors[site], table, site)
            num_bytes = sum(factor.nbytes for factor in found)
            # Who is in stays: to throw out what the next step needs first would help nobody.
            if self.num_kept_bytes + num_bytes <= self._max_kept_bytes:
                self.num_kept_bytes += num_bytes
                kept.by_site[site] = found
        return found

    def _drop(self, slot: int) -> None:
        kept = self._kept.pop(slot, None)
        if kept is not None:
            for pair in kept.by_site.values():
                self.num_kept_bytes -= sum(factor.nbytes for factor in pair)


def _holds(table: LoraTable, slot: int, kept: _Kept) -> bool:
    return table.has(slot) and table.factors(slot) is kept.factors


def _lay_out(
    reader: TileReader, tiles: FactorTiles, table: LoraTable, site: int
) -> tuple[Tensor, Tensor]:
    shape, dtype = table.sites[site], reader.pool_PE.dtype
    a_RI = torch.empty(tiles.rank, shape.in_width, dtype=dtype)
    b_RO = torch.empty(tiles.rank, shape.out_width, dtype=dtype)
    reader.read(tiles.a_offsets, a_RI)
    reader.read(tiles.b_offsets, b_RO)
    return a_RI, b_RO
