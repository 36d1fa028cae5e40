"""Launches of the two kernels, built from tensors: pure, so that they can be compiled unrun.

Owns the order of arguments and what is a constant of the binary. Called by the backend with the
step's tensors, and by the compile check with tensors without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from ..call import KernelCall
from .configs import ExpandConfig, RowClass, ShrinkConfig, num_splits, split_tiles
from .kernel import sgmv_expand, sgmv_shrink


@dataclass(frozen=True, slots=True)
class StepTensors:
    """What both kernels read of a step, besides rows and weights: int32, on the device."""

    arena: Tensor
    lists: Tensor
    header: int  # where in `lists` the header is


def shrink_call(
    hidden_TI: Tensor,
    pool_PE: Tensor,
    step: StepTensors,
    *,
    sites: Tensor,
    partial: Tensor,
    tile_cols: int,
    row_class: RowClass,
    config: ShrinkConfig,
    num_programs: int,
) -> KernelCall:
    """Semantics: partial[site, split, unit of (t, block)] = hidden[t] @ A[block].T of a split.

    hidden_TI  [T, I]  model dtype, contiguous rows
    pool_PE    [P, E]  model dtype, the whole pool
    sites      [n]     int32, the sites that share the input
    partial    fp32, changed in place: 16 sums a unit, of the step's rows and ranks only
    """
    in_width = hidden_TI.shape[1]
    align = gcd(8, hidden_TI.stride(0), in_width)
    return KernelCall(
        sgmv_shrink,
        (num_programs,),
        (
            hidden_TI,
            pool_PE,
            step.arena,
            step.lists,
            sites,
            partial,
            hidden_TI.stride(0) // align,
            step.header,
        ),
        {
            "IN": in_width,
            "TILE_COLS": tile_cols,
            "SPLIT_TILES": split_tiles(-(-in_width // tile_cols)),
            "NUM_SITES": len(sites),
            "X_ALIGN": align,
            "BLOCK_T": row_class.block_rows,
            "BLOCK_R": row_class.block_rank,
            "BLOCK_K": config.block_k,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            **({"maxnreg": config.max_registers} if config.max_registers else {}),
        },
    )


def expand_call(
    out_TO: Tensor,
    pool_PE: Tensor,
    step: StepTensors,
    *,
    columns: Tensor,
    out_stride: int,
    out_align: int,
    partial: Tensor,
    in_width: int,
    tile_cols: int,
    row_class: RowClass,
    config: ExpandConfig,
    num_programs: int,
) -> KernelCall:
    """Semantics: out[t, col] += scale * (sum of partial[.., t] over splits) @ B[:, col].

    out_TO   [T, O]   model dtype, the first site's output: others lie in its rows, see `columns`
    columns  [n, 8]   int32, from `make_columns`
    partial  fp32, what `shrink_call` of the same group has written

    B of a 16-bit model is exact in TF32; what A gives is rounded to it, to the nearest (10 bits of
    mantissa, the exponents of fp32: nothing overflows). fp32 models multiply in fp32.
    """
    return KernelCall(
        sgmv_expand,
        (num_programs,),
        (
            out_TO,
            pool_PE,
            step.arena,
            step.lists,
            columns,
            partial,
            out_stride // out_align,
            step.header,
        ),
        {
            "TILE_COLS": tile_cols,
            "NUM_COLUMNS": len(columns),
            "MAX_RUN": config.max_run,
            "NUM_SPLITS": num_splits(-(-in_width // tile_cols)),
            "OUT_ALIGN": out_align,
            "BLOCK_T": row_class.block_rows,
            "BLOCK_O": config.block_o,
            "PRECISION": "ieee" if out_TO.dtype == torch.float32 else "tf32",
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            **({"maxnreg": config.max_registers} if config.max_registers else {}),
        },
    )
