"""Storing a step's keys and values in their pages, in Triton: one launch for both.

Rows of the step past its tokens are skipped: how many there are is read on the device, so that a
launch depends on shapes alone. Launched by `launch.py` only.
"""

# Triton's own types say nothing of what a kernel may do with them.
# pyright: basic, reportOperatorIssue=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from . import lists

NUM_ROWS = tl.constexpr(lists.NUM_ROWS)


@triton.jit(do_not_specialize=["layer", "key_row", "key_head", "value_row", "value_head"])
def store_pages(  # noqa: PLR0917 - a launch names no arguments
    key_ptr,  # [rows, G, K], K contiguous
    value_ptr,  # [rows, G, K], K contiguous
    kv_ptr,  # [P, L, 2, G, Z, K]
    cells_ptr,  # int64 [rows], page * Z + cell
    lists_ptr,  # int32, see lists.py
    layer,
    key_row,  # strides, in units of UNIT elements: what a compiler may know of their alignment
    key_head,
    value_row,
    value_head,
    UNIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    PAGE_ELEMENTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TILE: tl.constexpr = PAGE_TOKENS * HEAD_DIM
    num_rows = tl.load(lists_ptr + NUM_ROWS) * KV_HEADS
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_k = tl.arange(0, BLOCK_K)
    m_r = o_r < num_rows
    token, head = (o_r // KV_HEADS).to(tl.int64), o_r % KV_HEADS
    cell = tl.load(cells_ptr + token, mask=m_r, other=0)
    o_home = cell // PAGE_TOKENS * PAGE_ELEMENTS + cell % PAGE_TOKENS * HEAD_DIM
    o_home += (layer.to(tl.int64) * (2 * KV_HEADS) + head) * TILE
    m_rk = m_r[:, None] & (o_k < HEAD_DIM)[None, :]
    o_key = (token * key_row + head * key_head) * UNIT
    o_value = (token * value_row + head * value_head) * UNIT
    # [BLOCK_R, BLOCK_K]
    b_key = tl.load(key_ptr + o_key[:, None] + o_k[None, :], mask=m_rk, other=0.0)
    b_value = tl.load(value_ptr + o_value[:, None] + o_k[None, :], mask=m_rk, other=0.0)
    p_home = kv_ptr + o_home[:, None] + o_k[None, :]
    tl.store(p_home, b_key, mask=m_rk)
    tl.store(p_home + KV_HEADS * TILE, b_value, mask=m_rk)
