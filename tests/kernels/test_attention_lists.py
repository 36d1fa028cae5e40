"""The work lists of the Triton attention: every cell once, whoever is in the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorry.kernels.attention import AttentionWork
from lorry.kernels.attention.configs import ATTEND, AttendConfig
from lorry.kernels.attention.lists import (
    FIRST_BLOCK,
    FIRST_SINGLE,
    HEAD,
    ITEM,
    MERGE,
    NUM_BLOCKS,
    NUM_MERGES,
    NUM_ROWS,
    NUM_SINGLE,
    ListLimits,
    make_lists,
)
from lorry.kernels.attention.splits import (
    SPLIT_STEP,
    SPLIT_TOKENS,
    max_splits,
    most_splits,
    split_tokens,
)

MAX_CONTEXT = 100_000


def make_limits(**changes: int) -> ListLimits:
    sizes = {"max_rows": 400, "max_requests": 8, "max_context_tokens": MAX_CONTEXT}
    tokens = {"num_kv_heads": 8, "single_tokens": 4, "block_tokens": 16}
    return ListLimits(**{**sizes, **tokens, **changes})


def make_lengths(starts: list[int], lens: list[int]) -> AttentionWork:
    """A step of which only lengths matter."""
    rows = torch.zeros(sum(lens), dtype=torch.int64)
    contexts = tuple(start + n for start, n in zip(starts, lens, strict=True))
    return AttentionWork(tuple(lens), contexts, rows[:, None], rows, rows, rows, rows)


class Lists:
    """What the kernels would read."""

    def __init__(
        self, starts: list[int], lens: list[int], *, fixed: bool = False, **limits: int
    ) -> None:
        made_for = make_limits(**limits)
        flat = make_lists(make_lengths(starts, lens), made_for, fixed=fixed).numbers
        self.size = len(flat)
        self.head = flat[:HEAD]
        self.merges = flat[HEAD:][: MERGE * self.head[NUM_MERGES]].reshape(-1, MERGE)
        items = flat[made_for.first_item :].reshape(-1, ITEM)
        self.single = items[self.head[FIRST_SINGLE] :][: self.head[NUM_SINGLE]]
        self.blocks = items[self.head[FIRST_BLOCK] :][: self.head[NUM_BLOCKS]]
        assert len(items) == len(self.single) + len(self.blocks)


REQUESTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 700), st.integers(0, MAX_CONTEXT - 50)),
        st.one_of(st.just(1), st.integers(1, 50)),
    ),
    min_size=1,
    max_size=8,
)


@given(requests=REQUESTS, fixed=st.booleans())
def test_every_row_looks_at_each_of_its_cells_once(
    requests: list[tuple[int, int]], fixed: bool
) -> None:
    """A cell left out or counted twice is a wrong sum; a slot shared by two, a race."""
    starts, lens = (list(column) for column in zip(*requests, strict=True))
    lists = Lists(starts, lens, fixed=fixed)
    assert lists.head[NUM_ROWS] == sum(lens)
    items = np.concatenate([lists.single, lists.blocks]).tolist()
    first_rows = (np.cumsum(lens) - lens).tolist()
    merges = {row: (slot, count) for row, slot, count, _ in lists.merges.tolist()}
    used_slots = sorted(item[6] for item in items if item[6] >= 0)
    assert used_slots == sorted(s for slot, n in merges.values() for s in range(slot, slot + n))
    assert len(set(used_slots)) == len(used_slots) <= make_limits().max_slots
    by_request: dict[int, list[list[int]]] = {}
    for item in items:
        by_request.setdefault(item[3], []).append(item)
    for request, (start, num_rows) in enumerate(requests):
        own = sorted(by_request[request], key=lambda item: (item[0], item[4]))
        covered = [(row, item) for item in own for row in range(item[0], item[0] + item[1])]
        first_row = first_rows[request]
        assert sorted({row for row, _ in covered}) == list(range(first_row, first_row + num_rows))
        for row, item in covered:
            assert item[2] + row - item[0] == start + row - first_row
        if num_rows == 1:
            pieces = [(item[4], item[5]) for item in own]
            assert [pieces[0][0], *(end for _, end in pieces)] == [
                *(first for first, _ in pieces),
                start + 1,
            ]
            slots = [item[6] for item in own]
            slot, count = merges.get(first_row, (-1, 1))
            assert slots == list(range(slot, slot + count))
        else:
            assert len(covered) == num_rows
            assert all(i[4] == 0 and i[5] == i[2] + i[1] and i[6] == -1 for i in own)


def test_fixed_lists_are_for_the_first_kernel_alone() -> None:
    """A graph launches one kernel of a fixed shape: blocks are cut for its rows."""
    lists = Lists([0, 40], [9, 1], fixed=True)
    assert len(lists.blocks) == 0
    assert sorted(lists.single[:, 1].tolist()) == [1, 1, 4, 4]
    assert Lists([0, 40], [9, 1]).blocks[:, 1].tolist() == [9]


def test_the_longest_stretch_comes_first() -> None:
    """A long one started last would keep a whole device waiting for one program."""
    lists = Lists([0, 5000, 10, 300], [40, 30, 1, 1])
    for items in (lists.single, lists.blocks):
        lengths = (items[:, 5] - items[:, 4]).tolist()
        assert lengths == sorted(lengths, reverse=True)


def test_neighbours_do_not_change_how_a_context_is_cut() -> None:
    """Otherwise the order of a sum, and so a token, would depend on who else is served."""

    def pieces(lists: Lists, request: int) -> list[list[int]]:
        own = lists.single[lists.single[:, 3] == request]
        return sorted((own[:, 4:6]).tolist())

    alone: list[NDArray[np.int32]] = [pieces(Lists([n], [1]), 0) for n in (70, 700, 90_000)]
    assert [pieces(Lists([70, 700, 90_000], [1, 1, 1]), i) for i in range(3)] == alone


@pytest.mark.parametrize("kv_heads", [1, 2, 8, 16, 40])
def test_pieces_are_bounded_and_alike(kv_heads: int) -> None:
    """Room for partial results is taken once, for any context; and 513 cells used to be cut into
    256, 256 and 1, a program and a slot for one cell."""
    limit = max_splits(kv_heads)
    contexts = np.arange(1, MAX_CONTEXT)
    tokens = split_tokens(contexts, limit)
    counts = -(-contexts // tokens)
    most = np.array([most_splits(n, limit) for n in contexts.tolist()])
    assert (tokens % SPLIT_STEP == 0).all()
    assert (counts <= most).all() and (np.diff(most) >= 0).all() and most.max() == limit <= 64
    assert (tokens[counts > 1] >= SPLIT_TOKENS).all()
    assert (tokens < 2 * SPLIT_TOKENS + SPLIT_STEP)[contexts < limit * SPLIT_TOKENS].all()
    shortest = contexts - (counts - 1) * tokens
    assert (tokens - shortest < counts * SPLIT_STEP).all()
    assert [tokens[n - 1] for n in (511, 512, 513)] == [512, 256, 320]


@pytest.mark.parametrize("config", ATTEND.values(), ids=str)
def test_a_piece_begins_where_a_block_of_cells_does(config: AttendConfig) -> None:
    """Otherwise two pieces would both read a block, each a part of it."""
    assert SPLIT_STEP % config.block_c == 0


def test_the_longest_step_fits() -> None:
    """Every request one token at the end of a context of the most pieces, or many short chunks."""
    made_for = make_limits()
    full = Lists([SPLIT_TOKENS * max_splits(8) - 1] * 8, [1] * 8)
    assert full.size <= made_for.size
    assert len(full.single) == made_for.max_slots
    assert Lists([MAX_CONTEXT - 1] * 8, [1] * 8).size <= made_for.size
    assert Lists([0] * 8, [50] * 8, fixed=True).size <= made_for.size
