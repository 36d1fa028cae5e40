"""The work lists of a step: which block of queries looks at which stretch of its context.

Owns their layout in one flat int32 array, sent to the device as one copy, and the rules by which
items are cut. Does not know tensors, pages or layers: a layer's sliding window is the kernel's to
apply, so one list serves every layer. Called by the Triton backend once per step.

    [0, HEAD)       counts, see the constants
    [HEAD, ...)     MERGE integers for each request whose context is cut: row, first slot, slots
    then            ITEM integers for each item: row, tokens, position of its first token,
                    request, first cell, end cell, slot of partial results or -1; tokens of one
                    request alone first, blocks of many after them, the longest stretch first
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ragged import Ints, count_up, starts_of
from .splits import max_splits, most_splits, split_tokens
from .work import AttentionWork

HEAD, MERGE, ITEM = 16, 4, 8
# Places in the head; what the two kinds of items have lies side by side.
NUM_SINGLE, NUM_BLOCKS, FIRST_SINGLE, FIRST_BLOCK, NUM_ROWS, NUM_MERGES = range(6)


@dataclass(frozen=True, slots=True)
class ListLimits:
    """What lists are made for; all of it is fixed by the model and the room."""

    max_rows: int
    max_requests: int
    max_context_tokens: int
    num_kv_heads: int
    single_tokens: int  # tokens of an item of the kernel for single tokens
    block_tokens: int  # tokens of an item of the kernel for blocks

    @property
    def split_limit(self) -> int:
        return max_splits(self.num_kv_heads)

    @property
    def max_slots(self) -> int:
        """Partial results of a step: every request may be one token at the end of the longest."""
        return self.max_requests * most_splits(self.max_context_tokens, self.split_limit)

    @property
    def first_item(self) -> int:
        return HEAD + MERGE * self.max_requests

    @property
    def size(self) -> int:
        """Integers of the longest lists."""
        # A request of one token has as many items as slots, or one; a longer one at most its rows.
        return self.first_item + ITEM * (self.max_slots + self.max_rows)


@dataclass(frozen=True, slots=True, eq=False)
class StepLists:
    """One step's, and what the host has to know of them."""

    numbers: NDArray[np.int32]  # see the module
    num_single: int  # items
    num_blocks: int
    num_merges: int


def make_lists(work: AttentionWork, limits: ListLimits, *, fixed: bool) -> StepLists:
    """The step's lists. `fixed`: one kernel does all, blocks of queries are cut for its rows.

    Raises:
        ValueError: the step is larger than the room.
    """
    lens = np.array(work.query_lens, dtype=np.int64)
    contexts = np.array(work.context_lens, dtype=np.int64)
    _check(work, limits)
    rows = starts_of(lens)
    single = lens == 1
    items, merges = _single_items(rows, contexts, np.flatnonzero(single), limits)
    tokens = limits.single_tokens if fixed else limits.block_tokens
    blocks = _block_items(rows, lens, contexts, np.flatnonzero(~single), tokens)
    if fixed:
        items, blocks = np.concatenate([items, blocks]), blocks[:0]
    numbers = np.zeros(limits.first_item + ITEM * (len(items) + len(blocks)), dtype=np.int32)
    numbers[NUM_SINGLE], numbers[NUM_BLOCKS] = len(items), len(blocks)
    numbers[FIRST_SINGLE], numbers[FIRST_BLOCK] = 0, len(items)
    numbers[NUM_ROWS], numbers[NUM_MERGES] = work.num_tokens, len(merges)
    numbers[HEAD : HEAD + MERGE * len(merges)] = merges.reshape(-1)
    both = np.concatenate([_longest_first(items), _longest_first(blocks)])
    numbers[limits.first_item :] = both.reshape(-1)
    return StepLists(numbers, len(items), len(blocks), len(merges))


def _check(work: AttentionWork, limits: ListLimits) -> None:
    rows, longest = sum(work.query_lens), max(work.context_lens)
    for name, value, limit in (
        ("tokens", rows, limits.max_rows),
        ("requests", len(work.query_lens), limits.max_requests),
        ("tokens of context", longest, limits.max_context_tokens),
    ):
        if value > limit:
            raise ValueError(f"a step of {value} {name}; the attention's room is made for {limit}")
    if rows != work.num_tokens:
        raise ValueError(f"requests of {rows} tokens in all in a step of {work.num_tokens}")


def _single_items(rows: Ints, contexts: Ints, which: Ints, limits: ListLimits) -> tuple[Ints, Ints]:
    """Requests of one token, cut over their contexts; and what is to be merged afterwards."""
    contexts, rows = contexts[which], rows[which]
    tokens = split_tokens(contexts, limits.split_limit)
    counts = -(-contexts // tokens)
    is_cut = counts > 1
    num_slots = np.where(is_cut, counts, 0)
    first_slot = starts_of(num_slots)
    nth = count_up(counts)
    first_cell = nth * np.repeat(tokens, counts)
    end_cell = np.minimum(first_cell + np.repeat(tokens, counts), np.repeat(contexts, counts))
    slot = np.where(np.repeat(is_cut, counts), np.repeat(first_slot, counts) + nth, -1)
    items = _stack(
        np.repeat(rows, counts),
        np.ones_like(nth),
        np.repeat(contexts - 1, counts),
        np.repeat(which, counts),
        first_cell,
        end_cell,
        slot,
    )
    merges = np.zeros((int(is_cut.sum()), MERGE), dtype=np.int64)
    merges[:, 0], merges[:, 1], merges[:, 2] = rows[is_cut], first_slot[is_cut], counts[is_cut]
    return items, merges


def _block_items(rows: Ints, lens: Ints, contexts: Ints, which: Ints, tokens: int) -> Ints:
    """Longer chunks, cut over their queries; each looks at its context from its beginning on."""
    counts = -(-lens[which] // tokens)
    offset = count_up(counts) * tokens
    num_tokens = np.minimum(tokens, np.repeat(lens[which], counts) - offset)
    position = np.repeat((contexts - lens)[which], counts) + offset
    return _stack(
        np.repeat(rows[which], counts) + offset,
        num_tokens,
        position,
        np.repeat(which, counts),
        np.zeros_like(offset),
        position + num_tokens,
        np.full_like(offset, -1),
    )


def _stack(*columns: Ints) -> Ints:
    items = np.zeros((len(columns[0]), ITEM), dtype=np.int64)
    for i, column in enumerate(columns):
        items[:, i] = column
    return items


def _longest_first(items: Ints) -> Ints:
    """So that the last programs to end have little left; ties keep their order."""
    return items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]
