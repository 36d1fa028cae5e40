"""Small kernels for the compile check, a case for each thing it must see. Nothing of it runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from lorry.kernels.call import KernelCall
from lorry.kernels.cases import CompileCase


@triton.jit
def load_tile(p_lists, p_pool, p_out, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """A tile whose offset lies in device memory, in units of that many elements."""
    offset = tl.load(p_lists + tl.program_id(0)).to(tl.int64) * UNIT
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_pool + offset + o).to(tl.float32))


@triton.jit
def scale_rows(p_x, p_out, num_rows, BLOCK: tl.constexpr):
    """An integer that Triton looks at: a launch of 16 rows has another binary than one of 17."""
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o, mask=o < num_rows, other=0.0) * 2, mask=o < num_rows)


@triton.jit
def _load_square(p_x, o, WIDTH: tl.constexpr):
    return tl.load(p_x + o[:, None] * WIDTH + o[None, :])


@triton.jit(do_not_specialize=["num_cols"])
def multiply(  # noqa: PLR0917
    p_a, p_b, p_out, num_cols, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """A product along the columns: shared memory follows num_stages, the sum lies in registers."""
    o = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for col in tl.range(0, num_cols, BLOCK):
        a = _load_square(p_a + col, o, WIDTH)
        total = tl.dot(a, tl.trans(_load_square(p_b + col, o, WIDTH)), total)
    tl.store(p_out + o[:, None] * BLOCK + o[None, :], total)


def on_paper(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call_load_tile(*, unit: int = 64) -> KernelCall:
    lists = on_paper(8, dtype=torch.int32)
    args = (lists, on_paper(4096), on_paper(256, dtype=torch.float32))
    return KernelCall(load_tile, (8,), args, {"UNIT": unit, "BLOCK": 256, "num_warps": 1})


def call_scale_rows(*, num_rows: int = 16, first: int = 0) -> KernelCall:
    options = {"BLOCK": 256, "num_warps": 1}
    return KernelCall(scale_rows, (1,), (on_paper(512)[first:], on_paper(512), num_rows), options)


def call_multiply(*, num_cols: int = 4096, block: int = 32, **options: int) -> KernelCall:
    sides = (on_paper(block, 4096), on_paper(block, 4096))
    out = on_paper(block, block, dtype=torch.float32)
    options = {"WIDTH": 4096, "BLOCK": block, "num_warps": 4, **options}
    return KernelCall(multiply, (1,), (*sides, out, num_cols), options)


def small_cases() -> Iterator[CompileCase]:
    """What the check must let pass, and what it must not."""
    yield CompileCase("load_tile/fine", call_load_tile)
    yield CompileCase("load_tile/two-bytes", lambda: call_load_tile(unit=1))
    yield CompileCase("load_tile/excused", lambda: call_load_tile(unit=1), unaligned="any offset")
    yield CompileCase("multiply/fine", call_multiply)
    yield CompileCase("multiply/too-much-shared", lambda: call_multiply(block=128, num_stages=6))
    yield CompileCase("multiply/spills", lambda: call_multiply(block=128, maxnreg=32))
    yield CompileCase("scale_rows/specialised", call_scale_rows)
    yield CompileCase("scale_rows/shifted", lambda: call_scale_rows(first=1))
