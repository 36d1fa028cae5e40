"""LoRA over mixed ranks, straight from pool pages: shrink to the rank, expand and add.

Owns the operators' meaning and their checks; the arithmetic is a backend's, chosen once when
a server is built. After Punica's SGMV (segmented gather matrix-vector product).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .cpu import CpuBackend
from .reference import ReferenceBackend
from .work import (
    TILE_ROWS,
    FactorTiles,
    LoraTable,
    LoraWork,
    Segment,
    SiteShape,
    num_tiles,
    row_stride,
)

__all__ = [
    "TILE_ROWS",
    "FactorTiles",
    "LoraBackend",
    "LoraTable",
    "LoraWork",
    "Segment",
    "SiteShape",
    "choose_backend",
    "num_tiles",
    "row_stride",
    "sgmv_expand",
    "sgmv_shrink",
]


class LoraBackend(Protocol):
    """Unchecked arithmetic of the two operators."""

    def shrink(
        self, hidden_TI: Tensor, pool_PE: Tensor, work: LoraWork, *, site: int, out_TR: Tensor
    ) -> None: ...

    def expand(
        self, hidden_TR: Tensor, pool_PE: Tensor, work: LoraWork, *, site: int, out_TO: Tensor
    ) -> None: ...


def choose_backend(name: str) -> LoraBackend:
    """`cpu` serves, `reference` defines. A backend caches views: one per pool.

    Raises:
        ValueError: no such backend.
    """
    if name == "cpu":
        return CpuBackend()
    if name == "reference":
        return ReferenceBackend()
    raise ValueError(f"LoRA backend is {name!r}; it must be cpu or reference")


def sgmv_shrink(
    hidden_TI: Tensor,
    pool_PE: Tensor,
    work: LoraWork,
    *,
    site: int,
    out_TR: Tensor,
    backend: LoraBackend,
) -> None:
    """Semantics: out[t, :r] = hidden[t] @ A[slot[t]].T, with r the rank of that slot here.

    hidden_TI  [T, I]  model dtype, contiguous; rows of a segment lie together
    pool_PE    [P, E]  model dtype, contiguous, the whole pool; A is found through work.table
    out_TR     [T, R]  fp32, contiguous, changed in place; rows of no segment, of slot -1 or of a
                       slot that lacks the site, and columns past r, stay untouched
    """
    _check(hidden_TI, pool_PE, work, "hidden_TI", work.table.sites[site].in_width)
    _check_ranks(out_TR, work, "out_TR", len(hidden_TI))
    backend.shrink(hidden_TI, pool_PE, work, site=site, out_TR=out_TR)


def sgmv_expand(
    hidden_TR: Tensor,
    pool_PE: Tensor,
    work: LoraWork,
    *,
    site: int,
    out_TO: Tensor,
    backend: LoraBackend,
) -> None:
    """Semantics: out[t] += scale[slot[t]] * (hidden[t, :r] @ B[slot[t]].T), summed in fp32.

    hidden_TR  [T, R]  fp32, contiguous, what sgmv_shrink left
    pool_PE    [P, E]  model dtype, contiguous, the whole pool; B is found through work.table
    out_TO     [T, O]  model dtype, contiguous, changed in place; rows of no segment, of slot -1
                       or of a slot that lacks the site stay untouched
    """
    _check(out_TO, pool_PE, work, "out_TO", work.table.sites[site].out_width)
    _check_ranks(hidden_TR, work, "hidden_TR", len(out_TO))
    backend.expand(hidden_TR, pool_PE, work, site=site, out_TO=out_TO)


def _check(rows: Tensor, pool_PE: Tensor, work: LoraWork, name: str, width: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; this site has width {width}")
    if rows.shape[0] < work.end_row:
        raise ValueError(f"{name} has {rows.shape[0]} rows; the segments end at {work.end_row}")
    if not rows.is_contiguous() or not pool_PE.is_contiguous():
        raise ValueError(f"{name} (shape {tuple(rows.shape)}) and the pool must be contiguous")
    if rows.dtype != pool_PE.dtype:
        raise ValueError(f"{name} is {rows.dtype}, the pool {pool_PE.dtype}; they must agree")


def _check_ranks(rows_TR: Tensor, work: LoraWork, name: str, num_rows: int) -> None:
    if rows_TR.ndim != 2 or rows_TR.shape[1] < work.max_rank or rows_TR.shape[0] < num_rows:
        raise ValueError(
            f"{name} has shape {tuple(rows_TR.shape)}; it must hold {num_rows} rows of the step's "
            f"largest rank, {work.max_rank}"
        )
    if rows_TR.dtype != torch.float32 or not rows_TR.is_contiguous():
        raise ValueError(f"{name} is {rows_TR.dtype}; it must be float32 and contiguous")
