"""Rows to helper processes and answers back, in Triton, through host memory that both see.

Of that memory, whole words that are loaded or stored are all that host and device agree about
without native atomics over the bus (libcu++'s memory model, "atomicity"), so flags are written by
`st.release.sys` and read by `ld.acquire.sys`, never exchanged. Triton has no words for these before
3.9: they are assembly, with a plain twin for the interpreter. Launched by `launch.py` only.
"""

# Triton's own types say nothing of what a kernel may do with them.
# pyright: basic, reportOperatorIssue=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from . import slips

HEAD_LEN = tl.constexpr(slips.HEAD_LEN)
EPOCH = tl.constexpr(slips.EPOCH)
SINCE = tl.constexpr(slips.SINCE)
START = tl.constexpr(slips.START)
NUM_SHARDS = tl.constexpr(slips.NUM_SHARDS)
OUTCOME = tl.constexpr(slips.OUTCOME)
SHARD_LEN = tl.constexpr(slips.SHARD_LEN)
FIRST = tl.constexpr(slips.FIRST)
NUM_ROWS = tl.constexpr(slips.NUM_ROWS)
INPUT = tl.constexpr(slips.INPUT)
GO = tl.constexpr(slips.GO)
DONE = tl.constexpr(slips.DONE)
ANSWERS = tl.constexpr(slips.ANSWERS)
SLIP_LEN = tl.constexpr(slips.SLIP_LEN)


@triton.jit
def _load_acquire(address, p_words, ON_GPU: tl.constexpr):
    if ON_GPU:
        value = tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b64 $0, [$1];",
            "=l,l,~{memory}",
            [address],
            dtype=tl.int64,
            is_pure=False,
            pack=1,
        )
    else:
        value = tl.load(address.to(p_words.dtype), volatile=True)
    return value


@triton.jit
def _store_release(address, value, p_words, ON_GPU: tl.constexpr):
    """By one thread; whatever all threads of the program wrote before a barrier is seen first."""
    if ON_GPU:
        tl.inline_asm_elementwise(
            """{
                .reg .pred is_first;
                .reg .u32 thread;
                mov.u32 thread, %tid.x;
                setp.eq.u32 is_first, thread, 0;
                @is_first st.release.sys.global.b64 [$1], $2;
                mov.u32 $0, 0;
            }""",
            "=r,l,l,~{memory}",
            [address, value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(address.to(p_words.dtype), value)


@triton.jit(do_not_specialize=["slip", "row_units"])
def send_rows(  # noqa: PLR0917 - a launch names no arguments
    p_hidden,  # [T, I], contiguous
    p_slips,  # int64, see slips.py
    p_counter,  # int32: programs of this launch that are done
    slip,
    row_units,  # width of a row in units of UNIT elements: what a compiler may know of alignment
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    p_slip = p_slips + slip.to(tl.int64) * SLIP_LEN
    num_shards = tl.load(p_slip + NUM_SHARDS).to(tl.int32)
    p_rows = p_hidden + tl.load(p_slip + START) * row_units * UNIT
    o_b = tl.arange(0, BLOCK)
    for shard in range(0, num_shards):
        p_shard = p_slip + HEAD_LEN + shard * SHARD_LEN
        p_from = p_rows + tl.load(p_shard + FIRST) * row_units * UNIT
        p_to = tl.multiple_of(tl.load(p_shard + INPUT).to(p_hidden.dtype), 16)
        num_elements = tl.load(p_shard + NUM_ROWS) * row_units * UNIT
        num_blocks = tl.cdiv(num_elements, BLOCK).to(tl.int32)
        for i_block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
            o_e = i_block * BLOCK + o_b  # a mailbox is far below 2**31 elements
            m_e = o_e < num_elements
            # [BLOCK]
            b_rows = tl.load(p_from + o_e, mask=m_e, other=0.0)
            tl.store(p_to + o_e, b_rows, mask=m_e)
    # Each program makes its own part visible to the host before it counts itself; whoever counts
    # last has seen all of them, and speaks for all.
    tl.debug_barrier()
    num_done = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="sys")
    if num_done == tl.num_programs(0) - 1:
        tl.store(p_counter, 0)
        epoch = tl.load(p_slip + EPOCH)
        for shard in range(0, num_shards):
            go = tl.load(p_slip + HEAD_LEN + shard * SHARD_LEN + GO)
            _store_release(go, epoch, p_slips, ON_GPU)


@triton.jit(do_not_specialize=["slip", "max_polls"])
def await_answer(
    p_slips,
    p_verdict,  # int64: what became of the newest errand: its epoch, or minus that: lost
    slip,
    max_polls,  # of all shards together
    ON_GPU: tl.constexpr,
):
    """One program of one warp. All of its threads poll; what the first one saw is stored."""
    p_slip = p_slips + slip.to(tl.int64) * SLIP_LEN
    epoch = tl.load(p_slip + EPOCH)
    last = tl.load(p_verdict)
    # One wait without an answer is what a step bears: from there on it is lost, and nobody waits.
    is_lost = (last < 0) & (-last >= tl.load(p_slip + SINCE))
    polls = tl.where(is_lost, max_polls, 0)
    for shard in range(0, tl.load(p_slip + NUM_SHARDS).to(tl.int32)):
        done = tl.load(p_slip + HEAD_LEN + shard * SHARD_LEN + DONE)
        seen = _load_acquire(done, p_slips, ON_GPU)
        while (seen != epoch) & (seen != -epoch) & (polls < max_polls):
            seen = _load_acquire(done, p_slips, ON_GPU)
            polls += 1
        is_lost = is_lost | (seen != epoch)
        polls = tl.where(is_lost, max_polls, polls)
    verdict = tl.where(is_lost, -epoch, epoch)
    tl.store(p_verdict, verdict)
    tl.store(p_slip + OUTCOME, verdict)


@triton.jit(do_not_specialize=["slip", "place", "width_units", "out_row_units"])
def add_answer(  # noqa: PLR0917
    p_out,  # [T, O], rows `out_row_units` apart
    p_slips,
    p_verdict,
    slip,
    place,  # which of the errand's sites
    width_units,  # in units of UNIT elements, as above
    out_row_units,
    UNIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    p_slip = p_slips + slip.to(tl.int64) * SLIP_LEN
    # Lost: rows stay as they are. `await_answer` was launched before this, and is over.
    if tl.load(p_verdict) == tl.load(p_slip + EPOCH):
        width = width_units * UNIT
        col_blocks = tl.cdiv(width, BLOCK_O)
        start = tl.load(p_slip + START)
        for shard in range(0, tl.load(p_slip + NUM_SHARDS).to(tl.int32)):
            p_shard = p_slip + HEAD_LEN + shard * SHARD_LEN
            num_rows = tl.load(p_shard + NUM_ROWS).to(tl.int32)
            p_answer = tl.load(p_shard + ANSWERS + place).to(p_out.dtype)
            p_answer = tl.multiple_of(p_answer, 16)
            row = start + tl.load(p_shard + FIRST)
            num_blocks = tl.cdiv(num_rows, BLOCK_T) * col_blocks
            for i_block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
                o_t = i_block // col_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
                o_o = i_block % col_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
                m_to = (o_t < num_rows)[:, None] & (o_o < width)[None, :]
                o_answer = o_t.to(tl.int64) * width_units * UNIT
                o_out = (row + o_t) * out_row_units * UNIT
                # [BLOCK_T, BLOCK_O]
                p_from = p_answer + o_answer[:, None] + o_o[None, :]
                b_answer = tl.load(p_from, mask=m_to, other=0.0)
                p_to = p_out + o_out[:, None] + o_o[None, :]
                b_out = tl.load(p_to, mask=m_to, other=0.0)
                b_sum = b_out.to(tl.float32) + b_answer.to(tl.float32)
                tl.store(p_to, b_sum.to(p_out.dtype.element_ty), mask=m_to)
