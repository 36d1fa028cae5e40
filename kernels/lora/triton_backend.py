"""The serving path on a GPU: one shrink and one expand for sites that share an input.

Owns all device memory of the operator (arena, lists, partial sums), taken once, and what is known
of each group of sites. Does not know why a step is fixed: it then launches what depends on shapes
alone. Copies and launches go to the current stream. The interpreter runs the same on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import KernelCall
from .arena import Arena
from .configs import ROW_CLASSES, SHORT, RowClass, num_splits, pick_expand, pick_shrink
from .groups import OutLayout, find_layout, make_columns
from .launch import StepTensors, expand_call, shrink_call
from .lists import Counts, StepLists, header_at
from .room import MAX_SITES, LoraRoom, max_units
from .work import TILE_ROWS, LoraTable, LoraWork

INTERPRETED_SMS = 2  # programs must share work there too, or sharing would go untested


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Sites that share an input, as one `add` names them."""

    hidden_TI: Tensor
    pool_PE: Tensor
    sites: tuple[int, ...]
    outs_TO: tuple[Tensor, ...]


class TritonBackend:
    """See the Semantics in kernels/lora/__init__.py. Sums in fp32, rounded once.

    What the product with B is made of in a 16-bit model: see `expand_call`.
    """

    def __init__(self, table: LoraTable, room: LoraRoom) -> None:
        self._table = table
        self._room = room
        self._arena = Arena(
            table, max_adapters=room.max_segments, max_rank=room.max_rank, device=room.device
        )
        self._lists = StepLists(room)
        self._partial = torch.zeros(
            max_units(table, room) * TILE_ROWS, dtype=torch.float32, device=room.device
        )
        self._num_sms = INTERPRETED_SMS
        if room.device.type == "cuda":
            self._num_sms = torch.cuda.get_device_properties(room.device).multi_processor_count
        self._works: tuple[LoraWork | None, ...] = ()
        self._is_fixed = False
        # Sites of each group, and the columns of its outputs: made once, at the first step.
        self._sites: dict[tuple[int, ...], Tensor] = {}
        self._columns: dict[tuple[tuple[int, ...], int, OutLayout, int], Tensor] = {}

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """See `LoraBackend`. New adapters get their record, the lists are made and sent off."""
        self._check(works)
        self._works, self._is_fixed = tuple(works), fixed
        if any(works) or fixed:  # an eager step without adapters launches nothing
            wanted = {s.slot: factors for work in works if work for s, factors in work.live}
            self._lists.write(works, self._arena.hold(wanted), fixed=fixed)

    def _check(self, works: Sequence[LoraWork | None]) -> None:
        room = self._room
        if len(works) > len(room.max_rows):
            raise ValueError(f"{len(works)} works; room is for {len(room.max_rows)}")
        slots: set[int] = set()
        for work, max_rows in zip(works, room.max_rows, strict=False):
            if work is None:
                continue
            if work.end_row > max_rows:
                raise ValueError(f"segments end at row {work.end_row}; room is for {max_rows}")
            if len(work.live) > room.max_segments:
                raise ValueError(f"{len(work.live)} segments; room is for {room.max_segments}")
            slots.update(segment.slot for segment, _ in work.live)
        if len(slots) > room.max_segments:
            raise ValueError(f"{len(slots)} adapters in a step; room is for {room.max_segments}")

    def forget(self) -> None:
        """Nothing to forget: pages are read at every call."""

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None:
        for call in self.calls(hidden_TI, pool_PE, work, sites=sites, outs_TO=outs_TO):
            call.run()

    def calls(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> Iterator[KernelCall]:
        """The launches of `add`, in their order; each pair reuses the buffer of partial sums."""
        position = self._position(work)
        classes = [(0, SHORT)] if self._is_fixed else enumerate(ROW_CLASSES)
        for class_idx, row_class in classes:
            counts = self._lists.counts(position, class_idx)
            if self._is_fixed:
                counts = self._most(hidden_TI.shape[0])
            if not counts.num_blocks:
                continue
            header = header_at(position, class_idx)
            step = StepTensors(self._arena.numbers, self._lists.numbers, header)
            for first in range(0, len(sites), MAX_SITES):
                part = slice(first, first + MAX_SITES)
                group = _Group(hidden_TI, pool_PE, tuple(sites[part]), tuple(outs_TO[part]))
                yield self._shrink(group, step, row_class, counts)
                yield from self._expand(group, step, row_class, counts)

    def _most(self, num_rows: int) -> Counts:
        """Of any step of so many rows: what a fixed launch has to be large enough for."""
        return Counts(num_rows * self._room.max_blocks, num_rows, is_split=True)

    def _shrink(
        self, group: _Group, step: StepTensors, row_class: RowClass, counts: Counts
    ) -> KernelCall:
        config = pick_shrink(
            row_class,
            element_bytes=group.pool_PE.element_size(),
            tile_cols=self._table.tile_cols,
        )
        pieces = counts.num_items * len(group.sites)
        if counts.is_split:
            pieces *= num_splits(-(-group.hidden_TI.shape[1] // self._table.tile_cols))
        return shrink_call(
            group.hidden_TI,
            group.pool_PE,
            step,
            sites=self._sites_of(group.sites),
            partial=self._partial,
            tile_cols=self._table.tile_cols,
            row_class=row_class,
            config=config,
            num_programs=min(pieces, config.programs_per_sm * self._num_sms),
        )

    def _expand(
        self, group: _Group, step: StepTensors, row_class: RowClass, counts: Counts
    ) -> Iterator[KernelCall]:
        layout = find_layout(group.outs_TO)
        # (first site of the launch, the place of its outputs)
        parts = (
            [(0, layout)]
            if layout
            else [(i, find_layout([o])) for i, o in enumerate(group.outs_TO)]
        )
        for first, part in parts:
            assert part is not None, "one output is always a layout"
            config = pick_expand(
                row_class,
                element_bytes=group.pool_PE.element_size(),
                tile_cols=self._table.tile_cols,
                out_align=part.align,
            )
            sites = group.sites[first : first + len(part.offsets)]
            columns = self._columns_of(sites, first, part, config.block_o)
            yield expand_call(
                group.outs_TO[first],
                group.pool_PE,
                step,
                columns=columns,
                out_stride=part.stride,
                out_align=part.align,
                partial=self._partial,
                in_width=group.hidden_TI.shape[1],
                tile_cols=self._table.tile_cols,
                row_class=row_class,
                config=config,
                num_programs=min(
                    counts.num_blocks * len(columns), config.programs_per_sm * self._num_sms
                ),
            )

    def _sites_of(self, sites: tuple[int, ...]) -> Tensor:
        found = self._sites.get(sites)
        if found is None:
            found = torch.tensor(sites, dtype=torch.int32).to(self._room.device)
            self._sites[sites] = found
        return found

    def _columns_of(
        self, sites: tuple[int, ...], first: int, layout: OutLayout, block_o: int
    ) -> Tensor:
        found = self._columns.get((sites, first, layout, block_o))
        if found is None:
            made = make_columns(self._table, sites, layout, first=first, block_o=block_o)
            found = self._columns[sites, first, layout, block_o] = made.to(self._room.device)
        return found

    def _position(self, work: LoraWork) -> int:
        for position, prepared in enumerate(self._works):
            if prepared is work:
                return position
        raise ValueError("this work was not the last one that was prepared")
