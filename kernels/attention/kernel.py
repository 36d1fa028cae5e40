"""Attention over pages, in Triton: one body for single tokens and for blocks of a chunk.

Persistent programs walk a work list in device memory (`lists.py`): nothing that changes from step
to step is in a launch. The rows of a program's matrix are an item's tokens times the query heads
of one KV head. Softmax runs on as the context goes by, in fp32 (Milakov and Gimelshein 2018;
FlashAttention); a token whose context is cut leaves partial results that `merge_splits` adds up
in the order of the pieces (as in FlashDecoding). Launched by `launch.py` only.

Cells outside [first, end) of an item and rows outside its tokens are masked where they are loaded,
so that whatever lies there, NaN included, reaches nothing.
"""

# Triton's own types say nothing of what a kernel may do with them.
# pyright: basic, reportOperatorIssue=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from . import lists

LOG2_E = tl.constexpr(1.4426950408889634)
# Places in the lists.
HEAD, MERGE, ITEM = tl.constexpr(lists.HEAD), tl.constexpr(lists.MERGE), tl.constexpr(lists.ITEM)
NUM_ITEMS = tl.constexpr(lists.NUM_SINGLE)  # of the first kind; the second's is beside it
FIRST_OF = tl.constexpr(lists.FIRST_SINGLE)  # in the same way
NUM_MERGES = tl.constexpr(lists.NUM_MERGES)


@triton.jit
def _tanh(x):
    # Near zero the closed form would lose what the model's scores are made of: a series there,
    # whose first term left out is below fp32's rounding.
    square = x * x
    series = 62.0 / 2835.0 * square - 17.0 / 315.0
    series = series * square + 2.0 / 15.0
    series = series * square - 1.0 / 3.0
    series = x + x * square * series
    small = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    closed = (1.0 - small) / (1.0 + small)
    closed = tl.where(x < 0, -closed, closed)
    return tl.where(square < 0.0625, series, closed)


@triton.jit(do_not_specialize=["layer", "table_width", "window", "scaling", "softcap"])
def attend_pages(  # noqa: PLR0917 - a launch names no arguments
    query_ptr,  # [rows, H, K]
    kv_ptr,  # [P, L, 2, G, Z, K]
    out_ptr,  # [rows, H, K]
    part_ptr,  # fp32 [slots, H, K], the sums of pieces, not yet divided
    stat_ptr,  # fp32 [slots, H, 2], their largest score (times log2 e) and the sum of weights
    table_ptr,  # int32 [requests, table_width]
    lists_ptr,  # int32, see lists.py
    sinks_ptr,  # fp32 [H] or None
    layer,
    table_width,
    scaling,
    softcap,
    window,
    KV_HEADS: tl.constexpr,
    FOLD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    PAGE_ELEMENTS: tl.constexpr,
    FIRST_ITEM: tl.constexpr,
    LIST: tl.constexpr,  # 0: single tokens, whose contexts may be cut; 1: blocks
    USE_WINDOW: tl.constexpr,
    USE_SOFTCAP: tl.constexpr,
    USE_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    HEADS: tl.constexpr = KV_HEADS * FOLD
    TILE: tl.constexpr = PAGE_TOKENS * HEAD_DIM  # elements of one head's keys in a page
    num_work = tl.load(lists_ptr + NUM_ITEMS + LIST) * KV_HEADS
    p_items = lists_ptr + FIRST_ITEM + tl.load(lists_ptr + FIRST_OF + LIST) * ITEM
    o_m, o_c, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    m_k = o_k < HEAD_DIM
    for i_work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        i_g = i_work % KV_HEADS
        p_item = p_items + i_work // KV_HEADS * ITEM
        row, num_tokens = tl.load(p_item), tl.load(p_item + 1)
        position, request = tl.load(p_item + 2), tl.load(p_item + 3)
        first, end, slot = tl.load(p_item + 4), tl.load(p_item + 5), tl.load(p_item + 6)

        m_m = o_m < num_tokens * FOLD
        head_m = i_g * FOLD + o_m % FOLD
        position_m = position + o_m // FOLD
        o_q = ((row + o_m // FOLD).to(tl.int64) * HEADS + head_m) * HEAD_DIM
        m_q = m_m[:, None] & m_k[None, :]
        # [BLOCK_M, BLOCK_K]
        b_q = tl.load(query_ptr + o_q[:, None] + o_k[None, :], mask=m_q, other=0.0)
        if USE_WINDOW:
            first = tl.maximum(first, position - window + 1)

        b_top = tl.full([BLOCK_M], -float("inf"), tl.float32)
        b_total = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        p_table = table_ptr + request.to(tl.int64) * table_width
        p_head = kv_ptr + (layer.to(tl.int64) * (2 * KV_HEADS) + i_g) * TILE
        # Blocks start at multiples of their size, so that a row meets the same ones whoever
        # shares its item.
        for start in range(first // BLOCK_C * BLOCK_C, end, BLOCK_C):
            cell = start + o_c
            m_c = (cell >= first) & (cell < end)
            page = tl.load(p_table + cell // PAGE_TOKENS, mask=m_c, other=0).to(tl.int64)
            o_cell = page * PAGE_ELEMENTS + cell % PAGE_TOKENS * HEAD_DIM
            p_cells = p_head + o_cell[:, None] + o_k[None, :]
            m_cells = m_c[:, None] & m_k[None, :]
            # [BLOCK_C, BLOCK_K]
            b_k = tl.load(p_cells, mask=m_cells, other=0.0)
            # [BLOCK_M, BLOCK_C]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
            if USE_SOFTCAP:
                b_s = _tanh(b_s * (scaling / softcap)) * (softcap * LOG2_E)
            else:
                b_s = b_s * (scaling * LOG2_E)
            m_s = m_c[None, :] & (cell[None, :] <= position_m[:, None])
            if USE_WINDOW:
                m_s = m_s & (cell[None, :] > position_m[:, None] - window)
            b_s = tl.where(m_s, b_s, -float("inf"))

            b_new_top = tl.maximum(b_top, tl.max(b_s, 1))
            # A row that has seen nothing yet: minus infinity less itself would be NaN.
            b_base = tl.where(b_new_top == -float("inf"), 0.0, b_new_top)
            b_weight = tl.exp2(b_s - b_base[:, None])
            b_shrunk = tl.exp2(b_top - b_base)
            b_total = b_total * b_shrunk + tl.sum(b_weight, 1)
            # [BLOCK_C, BLOCK_K]
            b_v = tl.load(p_cells + KV_HEADS * TILE, mask=m_cells, other=0.0)
            b_acc = b_acc * b_shrunk[:, None]
            b_acc = tl.dot(b_weight.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
            b_top = b_new_top

        if LIST == 0 and slot >= 0:
            # One token: rows are its heads.
            o_part = slot.to(tl.int64) * HEADS + head_m
            tl.store(part_ptr + (o_part * HEAD_DIM)[:, None] + o_k[None, :], b_acc, mask=m_q)
            tl.store(stat_ptr + o_part * 2, b_top, mask=m_m)
            tl.store(stat_ptr + o_part * 2 + 1, b_total, mask=m_m)
        else:
            if USE_SINKS:
                b_sink = tl.load(sinks_ptr + head_m) * LOG2_E
                b_new_top = tl.maximum(b_top, b_sink)
                b_shrunk = tl.exp2(b_top - b_new_top)
                b_total = b_total * b_shrunk + tl.exp2(b_sink - b_new_top)
                b_acc = b_acc * b_shrunk[:, None]
            b_total = tl.where(m_m, b_total, 1.0)
            b_out = (b_acc / b_total[:, None]).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + o_q[:, None] + o_k[None, :], b_out, mask=m_q)


@triton.jit
def merge_splits(  # noqa: PLR0917
    part_ptr,  # fp32 [slots, H, K]
    stat_ptr,  # fp32 [slots, H, 2]
    out_ptr,  # [rows, H, K]
    lists_ptr,  # int32, see lists.py
    sinks_ptr,  # fp32 [H] or None
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    USE_SINKS: tl.constexpr,
    BLOCK_S: tl.constexpr,  # at least the pieces of any context
    BLOCK_A: tl.constexpr,  # pieces added up at once
    BLOCK_K: tl.constexpr,
):
    num_work = tl.load(lists_ptr + NUM_MERGES) * HEADS
    o_s, o_a, o_k = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_K)
    m_k = o_k < HEAD_DIM
    for i_work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        head = i_work % HEADS
        p_merge = lists_ptr + HEAD + i_work // HEADS * MERGE
        row, slot = tl.load(p_merge).to(tl.int64), tl.load(p_merge + 1).to(tl.int64)
        num_slots = tl.load(p_merge + 2)

        m_s = o_s < num_slots
        p_stat = stat_ptr + ((slot + o_s) * HEADS + head) * 2
        b_top = tl.load(p_stat, mask=m_s, other=-float("inf"))
        # Its own position is always seen: the largest is finite.
        top = tl.max(b_top, 0)
        if USE_SINKS:
            sink = tl.load(sinks_ptr + head) * LOG2_E
            top = tl.maximum(top, sink)
        b_total = tl.load(p_stat + 1, mask=m_s, other=0.0)
        total = tl.sum(b_total * tl.exp2(b_top - top), 0)
        if USE_SINKS:
            total += tl.exp2(sink - top)

        b_acc = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, num_slots, BLOCK_A):
            m_a = start + o_a < num_slots
            o_part = (slot + start + o_a) * HEADS + head
            b_weight = tl.exp2(tl.load(stat_ptr + o_part * 2, mask=m_a, other=-float("inf")) - top)
            # [BLOCK_A, BLOCK_K]
            b_part = tl.load(
                part_ptr + (o_part * HEAD_DIM)[:, None] + o_k[None, :],
                mask=m_a[:, None] & m_k[None, :],
                other=0.0,
            )
            b_acc += tl.sum(b_part * b_weight[:, None], 0)
        b_out = (b_acc / total).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + (row * HEADS + head) * HEAD_DIM + o_k, b_out, mask=m_k)
