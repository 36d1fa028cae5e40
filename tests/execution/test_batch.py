"""build_batch: the one place from rows to tensors."""

from array import array

import pytest
import torch

from lorry.kernels.lora import Segment
from lorry.server.execution.batch import StepBuffers, StepCapacity, StepRow, build_batch
from lorry.server.scheduling.sampling import SamplingParams

LIMITS = StepCapacity(max_running=4, max_step_tokens=32, max_model_len=64, max_rows=4)


def make_buffers() -> StepBuffers:
    return StepBuffers(LIMITS, tokens_per_page=4, device=torch.device("cpu"))


def make_row(row: int, **fields: object) -> StepRow:
    settings: dict[str, object] = {
        "token_ids": (5,),
        "num_tokens": 1,
        "start": 0,
        "pages": (9,),
        "adapter_slot": -1,
        "sample": True,
        "sampling": SamplingParams(),
    }
    return StepRow(row, **(settings | fields))  # pyright: ignore


def test_rows_become_tensors() -> None:
    """Every index of a mixed step, written out by hand."""
    rows = [
        make_row(3, token_ids=(), start=6, pages=(7, 2)),
        make_row(0, token_ids=(4, 5, 6), num_tokens=3, start=3, pages=(8, 1), sample=False),
        make_row(1, token_ids=[6, 7], num_tokens=2, pages=[5], adapter_slot=1),
    ]
    batch = build_batch(rows, make_buffers())
    work = batch.attention
    assert batch.input_ids_T.tolist() == [0, 4, 5, 6, 6, 7]
    assert batch.position_T.tolist() == [6, 3, 4, 5, 0, 1]
    assert work.query_lens == (1, 3, 2)
    assert work.context_lens == (7, 6, 2)
    assert work.page_T.tolist() == [2, 8, 1, 1, 5, 5]
    assert work.offset_T.tolist() == [2, 3, 0, 1, 0, 1]
    assert work.block_table_BM.tolist() == [[7, 2], [8, 1], [5, 5]]
    assert work.fresh_pages.tolist() == [1, 5]
    assert batch.segments == (Segment(4, 6, 1),)
    assert batch.sample_idx.tolist() == [0, 5]
    assert batch.drawn_row.tolist() == [3, 1]
    batch.feed(torch.tensor([10, 11, 12, 13]))
    assert batch.input_ids_T.tolist() == [13, 4, 5, 6, 6, 7]


def test_places_that_are_told_come_before_the_row_s_last() -> None:
    """A logit of one place judged, or drawn from, as another's; head segments that slip."""
    known = list(range(9))
    rows = [
        make_row(2, num_tokens=4, token_ids=known[:4], known_ids=known, num_prompt=9, sample=False),
        make_row(
            3,
            num_tokens=4,
            token_ids=known[4:8],
            start=4,
            pages=(7, 2),
            known_ids=known[:8],
            num_prompt=8,
            tell=range(5, 7),
            adapter_slot=0,
        ),
        make_row(1, token_ids=(), start=6, pages=(7, 2), adapter_slot=0),
        make_row(
            0,
            num_tokens=3,
            token_ids=known[:3],
            known_ids=known,
            num_prompt=9,
            tell=range(3),
            sample=False,
            adapter_slot=1,
        ),
    ]
    batch = build_batch(rows, make_buffers())
    assert batch.sample_idx.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert [(row.row, first) for row, first in batch.told] == [(3, 0), (0, 4)]
    assert [row.row for row in batch.drawn] == batch.drawn_row.tolist() == [3, 1]
    assert batch.drawn_idx.tolist() == [2, 3]
    assert batch.head_segments == (Segment(0, 4, 0), Segment(4, 7, 1))


def test_neighbours_of_one_slot_are_one_segment() -> None:
    """Segments follow adapters, not requests; two slots never share one."""
    rows = [make_row(i, adapter_slot=slot) for i, slot in enumerate([-1, 2, 2, 4])]
    segments = build_batch(rows, make_buffers()).segments
    assert segments == (Segment(1, 3, 2), Segment(3, 4, 4))


def test_pages_may_be_an_array() -> None:
    """What the pool hands out: the same table, without a loop over the numbers."""
    rows = [make_row(i, start=4 * i, pages=array("q", range(9 * i, 9 * i + 9))) for i in range(3)]
    table_BM = build_batch(rows, make_buffers()).attention.block_table_BM
    assert table_BM.tolist() == [[0, 0, 0], [9, 10, 10], [18, 19, 20]]


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([make_row(0, token_ids=(1, 2), num_tokens=3)], "2 token ids for 3 tokens"),
        ([make_row(0, token_ids=(), num_tokens=2)], "0 token ids for 2 tokens"),
        ([make_row(0, num_tokens=0, token_ids=())], "0 token"),
        ([make_row(0, start=4)], "need 2 pages, it has 1"),
        ([make_row(i) for i in range(5)], "do not fit 4"),
        ([make_row(0, tell=range(1), num_prompt=1)], "places"),
        ([make_row(0, tell=range(1, 2), num_prompt=9)], "places"),
    ],
    ids=["count", "feed", "none", "pages", "running", "last-place", "other-chunk"],
)
def test_a_step_that_contradicts_itself_is_refused(rows: list[StepRow], word: str) -> None:
    """These are bugs of ours; they must stop here and not as wrong numbers."""
    with pytest.raises(ValueError, match=word):
        build_batch(rows, make_buffers())
