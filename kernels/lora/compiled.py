"""The LoRA kernels as the compile check sees them: the calls of a launch, without memory.

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
from .configs import ROW_CLASSES, RowClass, pick_expand, pick_shrink
from .groups import OutLayout, make_columns
from .launch import StepTensors, expand_call, shrink_call
from .work import LoraTable, SiteShape


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sites that share an input, as a model has them."""

    in_width: int
    out_widths: tuple[int, ...]
    tile_cols: int = 512
    unaligned: str = ""


_SHAPES = {
    "llama-8b-qkv": _Shape(4096, (4096, 1024, 1024)),
    "llama-8b-gate-up": _Shape(4096, (14336, 14336)),
    "llama-8b-down": _Shape(14336, (4096,)),
    "qwen-0.5b-qkv": _Shape(896, (896, 128, 128)),
    "odd": _Shape(895, (895,), unaligned="rows of 895 elements start anywhere"),
    "small-tiles": _Shape(1536, (328,), tile_cols=48),
}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def cases() -> Iterator[CompileCase]:
    """Every entry of the table in every dtype, at shapes that make a difference."""
    for row_class in ROW_CLASSES:
        for dtype_name, dtype in _DTYPES.items():
            for shape_name, shape in _SHAPES.items():
                for kernel, build in (("sgmv_shrink", _shrink), ("sgmv_expand", _expand)):
                    yield CompileCase(
                        f"{kernel}/{row_class.name}/{dtype_name}/{shape_name}",
                        partial(build, row_class, dtype, shape),
                        unaligned=shape.unaligned,
                    )


def _meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _shrink(row_class: RowClass, dtype: torch.dtype, shape: _Shape) -> KernelCall:
    config = pick_shrink(row_class, element_bytes=dtype.itemsize, tile_cols=shape.tile_cols)
    return shrink_call(
        _meta(64, shape.in_width, dtype=dtype),
        _meta(64, 1 << 20, dtype=dtype),
        StepTensors(_meta(1 << 20), _meta(1 << 16), 0),
        sites=_meta(len(shape.out_widths)),
        partial=_meta(1 << 20, dtype=torch.float32),
        tile_cols=shape.tile_cols,
        row_class=row_class,
        config=config,
        num_programs=132,
    )


def _expand(row_class: RowClass, dtype: torch.dtype, shape: _Shape) -> KernelCall:
    widths = shape.out_widths
    sites = [SiteShape(shape.in_width, width) for width in widths]
    table = LoraTable(sites, tile_cols=shape.tile_cols, pool_elements=64 << 20)
    ends = [sum(widths[:i]) for i in range(len(widths))]
    layout = OutLayout.of(sum(widths), ends, widths)
    config = pick_expand(
        row_class,
        element_bytes=dtype.itemsize,
        tile_cols=shape.tile_cols,
        out_align=layout.align,
    )
    columns = make_columns(table, range(len(widths)), layout, first=0, block_o=config.block_o)
    return expand_call(
        _meta(64, sum(widths), dtype=dtype),
        _meta(64, 1 << 20, dtype=dtype),
        StepTensors(_meta(1 << 20), _meta(1 << 16), 0),
        columns=columns.to("meta"),
        out_stride=layout.stride,
        out_align=layout.align,
        partial=_meta(1 << 20, dtype=torch.float32),
        in_width=shape.in_width,
        tile_cols=shape.tile_cols,
        row_class=row_class,
        config=config,
        num_programs=132,
    )
