"""The hand-over's kernels as the compile check sees them: the calls of a launch, without memory.

Owns which shapes are worth a compilation. Everything else (table, launch) is what a server uses.
Called through `configs.compile_cases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..call import KernelCall
from ..cases import CompileCase
from .launch import add_call, await_call, send_call
from .post import Post
from .slips import SLIP_LEN


@dataclass(frozen=True, slots=True)
class _Shape:
    """A site's input or output; of the latter, rows may be longer: it is some of their columns."""

    width: int
    row: int
    unaligned: str = ""


_SHAPES = {
    "wide": _Shape(4096, 6144),
    "odd": _Shape(895, 895, unaligned="rows of 895 elements start anywhere"),
}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NUM_ROWS = 64


def cases() -> Iterator[CompileCase]:
    """Every entry of the tables in every dtype, where alignment helps and where it cannot."""
    yield CompileCase("await_answer/plain/int64/any", _await)
    for dtype_name, dtype in _DTYPES.items():
        for shape_name, shape in _SHAPES.items():
            for kernel, build in (("send_rows", _send), ("add_answer", _add)):
                yield CompileCase(
                    f"{kernel}/plain/{dtype_name}/{shape_name}",
                    partial(build, dtype, shape),
                    unaligned=shape.unaligned,
                )


def _post() -> Post:
    return Post(
        torch.empty(1024, SLIP_LEN, dtype=torch.int64, device="meta"),
        torch.empty(1, dtype=torch.int32, device="meta"),
        torch.empty(1, dtype=torch.int64, device="meta"),
    )


def _await() -> KernelCall:
    return await_call(_post(), slip=3, max_polls=1 << 20)


def _send(dtype: torch.dtype, shape: _Shape) -> KernelCall:
    hidden_TI = torch.empty(_NUM_ROWS, shape.width, dtype=dtype, device="meta")
    return send_call(hidden_TI, _post(), slip=3, num_rows=_NUM_ROWS)


def _add(dtype: torch.dtype, shape: _Shape) -> KernelCall:
    rows = torch.empty(_NUM_ROWS, shape.row, dtype=dtype, device="meta")
    return add_call(rows[:, : shape.width], _post(), slip=3, place=1, num_rows=_NUM_ROWS)
