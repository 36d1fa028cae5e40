"""What a helper works with: the open slots, their factors laid out, and the two products.

Owns a bounded cache of A and B as dense matrices, copied from the image's tiles in the slab when
they are first asked for, or ahead while nothing is asked for: the sites behind those of the last
errand, as far as their bytes are known to be there. Does not know processes, bells or the device.
Called by the helper's loop; its arithmetic is that of the CPU's warm path (kernels/lora/cpu.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....adapters.image import matrix_tiles
from .ledger import SitePlaces, read
from .mailbox import Entry, Kind, Mailbox, answer_places

LAID_OUT_BYTES = 256 << 20  # of one helper's dense factors; the longest unused go first


@dataclass(frozen=True, slots=True)
class DeskPlan:
    """What every slot's image looks like."""

    widths: tuple[tuple[int, int], ...]  # (in, out) of every site of the base
    tile_cols: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class _Opening:
    number: int
    sites: dict[int, SitePlaces]


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    a_RI: Tensor
    b_RO: Tensor
    scale_R: Tensor  # fp32, as in the workspace: the product with it is rounded once

    @property
    def num_bytes(self) -> int:
        return (self.a_RI.numel() + self.b_RO.numel()) * self.a_RI.element_size()


class Desk:
    """`cells`: the slab, flat, in the model's dtype; read only."""

    def __init__(
        self,
        plan: DeskPlan,
        mailbox: Mailbox,
        ledger: Tensor,
        cells: Tensor,
        *,
        max_bytes: int = LAID_OUT_BYTES,
    ) -> None:
        self._plan, self._mailbox, self._ledger, self._cells = plan, mailbox, ledger, cells
        # As on the warm path: a CPU has no fast products in fp16, and rounds each of their sums.
        is_half = plan.dtype == torch.float16
        self._dtype = torch.float32 if is_half else plan.dtype  # that products are made in
        self._openings: dict[int, _Opening] = {}  # by slot
        self._laid: OrderedDict[tuple[int, int], _Factors] = OrderedDict()  # by slot and site
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._ahead: list[tuple[int, int]] = []  # to be laid out, the first one last

    @property
    def laid_out_bytes(self) -> int:
        return self._num_bytes

    def do(self, number: int, await_go: Callable[[int, int], bool]) -> None:
        """One entry, and its last word. `await_go(number, epoch)`: whether its rows came."""
        entry = self._mailbox.read(number)
        is_done = True
        if entry.kind is Kind.OPEN:
            self._close(entry.slot)
            self._openings[entry.slot] = _Opening(entry.opening, read(self._ledger, entry.input_at))
        elif entry.kind is Kind.CLOSE:
            self._close(entry.slot)
        elif entry.kind is Kind.ERRAND:
            is_done = self._run(number, entry, await_go)
        self._mailbox.tell_done(number, entry.epoch if is_done else -entry.epoch)

    def prepare(self) -> bool:
        """Lay out one site ahead; False: there is nothing to prepare."""
        while self._ahead:
            key = self._ahead.pop()
            if key not in self._laid and key[0] in self._openings:
                self._factors(*key)
                return True
        return False

    def _run(self, number: int, entry: Entry, await_go: Callable[[int, int], bool]) -> bool:
        opening = self._openings.get(entry.slot)
        if opening is None or opening.number != entry.opening:
            return False
        # Before the rows are there: on a GPU they come later than the entry.
        factors = [self._factors(entry.slot, site) for site in entry.sites]
        if entry.awaits_go and not await_go(number, entry.epoch):
            return False
        self._multiply(entry, factors)
        self._ahead = [
            (entry.slot, site)
            for site in sorted(opening.sites, reverse=True)
            if entry.sites[-1] < site < entry.ready_site
        ]
        return True

    def _multiply(self, entry: Entry, factors: Sequence[_Factors]) -> None:
        dtype, num_rows = self._plan.dtype, entry.num_rows
        widths = tuple(found.b_RO.shape[1] for found in factors)
        in_width = factors[0].a_RI.shape[1]
        hidden_TI = self._mailbox.rows(entry.input_at, num_rows, in_width, dtype).to(self._dtype)
        places = answer_places(num_rows, widths, dtype.itemsize)
        for found, width, place in zip(factors, widths, places, strict=False):
            out_TO = self._mailbox.rows(entry.answer_at + place, num_rows, width, dtype)
            shrunk_TR = torch.mm(hidden_TI, found.a_RI.t()).mul_(found.scale_R)
            if self._dtype == dtype:
                torch.mm(shrunk_TR, found.b_RO, out=out_TO)
            else:
                out_TO.copy_(torch.mm(shrunk_TR, found.b_RO))

    def _factors(self, slot: int, site: int) -> _Factors:
        found = self._laid.get((slot, site))
        if found is not None:
            self._laid.move_to_end((slot, site))
            return found
        places = self._openings[slot].sites[site]
        in_width, out_width = self._plan.widths[site]
        found = _Factors(
            self._lay_out(places.a_offsets, places.rank, in_width),
            self._lay_out(places.b_offsets, places.rank, out_width),
            torch.full((places.rank,), places.scale, dtype=torch.float32),
        )
        self._laid[slot, site] = found
        self._num_bytes += found.num_bytes
        while self._num_bytes > self._max_bytes and len(self._laid) > 1:
            self._num_bytes -= self._laid.popitem(last=False)[1].num_bytes
        return found

    def _lay_out(self, offsets: Sequence[int], rank: int, width: int) -> Tensor:
        """[rank, width] of one factor's tiles."""
        factor = torch.empty(rank, width, dtype=self._dtype)
        tiles = matrix_tiles(rank, width, self._plan.tile_cols)
        for offset, tile in zip(offsets, tiles, strict=True):
            shape, strides = (tile.num_rows, tile.num_cols), (tile.row_stride, 1)
            rows = slice(tile.row, tile.row + tile.num_rows)
            columns = slice(tile.col, tile.col + tile.num_cols)
            factor[rows, columns].copy_(self._cells.as_strided(shape, strides, offset))
        return factor

    def _close(self, slot: int) -> None:
        self._openings.pop(slot, None)
        self._ahead = [key for key in self._ahead if key[0] != slot]
        for key in [key for key in self._laid if key[0] == slot]:
            self._num_bytes -= self._laid.pop(key).num_bytes
