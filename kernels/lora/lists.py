"""The lists of a step: which blocks of rows there are, and what shrink has to make of them.

Owns their layout in one preallocated int32 buffer: for every position of `prepare` and every class
of rows a header, then the items of all, then the row blocks of all; `places.py` names the numbers.
A unit is the 16 partial sums that a row has of one rank block; whether a plane of them is stored
for each split is decided here. Does not know sites or widths: one pair of lists serves every
layer. Called by the backend once a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..ragged import Ints, count_up, starts_of
from ..staging import Staging
from .arena import Record
from .configs import MAX_SPLIT_UNITS, ROW_CLASSES, SHORT, class_of
from .places import (
    ENTRY_LEN,
    FIRST_BLOCK,
    FIRST_ITEM,
    HEADER_LEN,
    IS_SPLIT,
    NUM_BLOCKS,
    NUM_ITEMS,
    NUM_ROWS,
    NUM_UNITS,
    RANK_BLOCK,
    RECORD,
    ROW,
    ROW_UNITS,
    UNIT,
)
from .room import LoraRoom
from .work import TILE_ROWS, LoraWork

_BLOCK_ROWS = np.array([row_class.block_rows for row_class in ROW_CLASSES])
_GROUP_BLOCKS = np.array([row_class.group_blocks for row_class in ROW_CLASSES])


@dataclass(frozen=True, slots=True)
class Counts:
    """What the host knows of one list."""

    num_items: int = 0
    num_blocks: int = 0
    is_split: bool = False


def header_at(position: int, class_idx: int) -> int:
    """Where the header of a position's class lies in the buffer."""
    return (position * len(ROW_CLASSES) + class_idx) * HEADER_LEN


def max_numbers(room: LoraRoom) -> int:
    """Room for the lists of the largest step, however its rows are cut.

    A segment ends in at most one block that is not full, and no block is empty.
    """
    blocks = sum(min(rows, room.max_segments + rows // SHORT.block_rows) for rows in room.max_rows)
    headers = len(room.max_rows) * len(ROW_CLASSES) * HEADER_LEN
    return headers + blocks * (1 + room.max_blocks) * ENTRY_LEN


class StepLists:
    """The buffer, and the counts of what was last written into it."""

    def __init__(self, room: LoraRoom) -> None:
        self._num_keys = len(room.max_rows) * len(ROW_CLASSES)
        self.numbers = torch.zeros(max_numbers(room), dtype=torch.int32, device=room.device)
        self._staging = Staging(len(self.numbers), room.device)
        self._counts: dict[tuple[int, int], Counts] = {}

    def counts(self, position: int, class_idx: int) -> Counts:
        return self._counts.get((position, class_idx), Counts())

    def write(
        self, works: Sequence[LoraWork | None], records: Mapping[int, Record], *, fixed: bool
    ) -> None:
        """Make the lists of `works` and send them; `records`: of every slot in them."""
        segments: list[tuple[int, ...]] = []
        for position, work in enumerate(works):
            for segment, _ in [] if work is None else work.live:
                record = records[segment.slot]
                if record.max_rank:
                    num_rows = segment.end - segment.start
                    key = position * len(ROW_CLASSES) + class_of(num_rows, fixed=fixed)
                    blocks = -(-record.max_rank // TILE_ROWS)
                    segments.append((key, segment.start, num_rows, record.start, blocks))
        # Lists of one key lie together; within a key the longest rank comes first, because what
        # takes longest must not start last.
        segments.sort(key=lambda segment: (segment[0], -segment[4]))
        numbers = self._lay(np.array(segments, dtype=np.int64).reshape(-1, 5))
        if len(numbers) > len(self.numbers):
            raise ValueError(
                f"the step's lists have {len(numbers)} numbers; room is for {len(self.numbers)}"
            )
        self._staging.send(numbers, self.numbers[: len(numbers)])

    def _lay(self, segments: Ints) -> Ints:
        """All lists at once, [segments, (key, first row, rows, record, rank blocks)] in."""
        key_B, blocks = _cut_rows(segments)
        # Units count anew for every key: its partial sums have the buffer for themselves.
        units_B = blocks[:, NUM_ROWS] * blocks[:, ROW_UNITS]
        units = self._sum_by(key_B, units_B)
        blocks[:, UNIT] = starts_of(units_B) - starts_of(units)[key_B]
        group_B = _GROUP_BLOCKS[key_B % len(ROW_CLASSES)]
        items_B = -(-blocks[:, ROW_UNITS] // group_B)
        items = np.repeat(blocks, items_B, axis=0)
        items[:, RANK_BLOCK] = count_up(items_B) * np.repeat(group_B, items_B)
        headers = np.zeros((self._num_keys, HEADER_LEN), dtype=np.int64)
        num_items, num_blocks = self._sum_by(key_B, items_B), self._sum_by(key_B, 1)
        headers[:, NUM_ITEMS], headers[:, NUM_BLOCKS] = num_items, num_blocks
        headers[:, FIRST_ITEM] = headers.size + starts_of(num_items) * ENTRY_LEN
        headers[:, FIRST_BLOCK] = headers.size + (len(items) + starts_of(num_blocks)) * ENTRY_LEN
        headers[:, NUM_UNITS], headers[:, IS_SPLIT] = units, units <= MAX_SPLIT_UNITS
        self._counts = {
            divmod(key, len(ROW_CLASSES)): Counts(items, blocks, bool(is_split))
            for key, (items, blocks, is_split) in enumerate(
                headers[:, [NUM_ITEMS, NUM_BLOCKS, IS_SPLIT]].tolist()
            )
        }
        return np.concatenate([part.reshape(-1) for part in (headers, items, blocks)])

    def _sum_by(self, keys: Ints, values: Ints | int) -> Ints:
        total = np.zeros(self._num_keys, dtype=np.int64)
        np.add.at(total, keys, values)
        return total


def _cut_rows(segments: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """Segments as row blocks: the key of each, and its entry."""
    size = _BLOCK_ROWS[segments[:, 0] % len(ROW_CLASSES)]
    counts = -(-segments[:, 2] // size)
    key_B, row_B, rows_B, record_B, units_B = np.repeat(segments, counts, axis=0).T
    skipped = count_up(counts) * np.repeat(size, counts)
    blocks = np.zeros((len(key_B), ENTRY_LEN), dtype=np.int64)
    blocks[:, ROW], blocks[:, RECORD], blocks[:, ROW_UNITS] = row_B + skipped, record_B, units_B
    blocks[:, NUM_ROWS] = np.minimum(rows_B - skipped, np.repeat(size, counts))
    return key_B, blocks
