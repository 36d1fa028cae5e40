"""LoRA over mixed ranks, from pool pages: shrink to the rank, expand and add.

Owns the operator's meaning and its checks; the arithmetic is a backend's, chosen once when
a server is built. After Punica's SGMV (segmented gather matrix-vector product).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .cpu import CpuBackend
from .dense import DenseBackend
from .reference import ReferenceBackend
from .room import LoraRoom
from .tiles import TileBackend
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
from .workspace import Workspace, workspace_row_bytes

__all__ = [
    "TILE_ROWS",
    "FactorTiles",
    "LoraBackend",
    "LoraRoom",
    "LoraTable",
    "LoraWork",
    "Segment",
    "SiteShape",
    "Workspace",
    "add_lora",
    "choose_backend",
    "num_tiles",
    "row_stride",
    "workspace_row_bytes",
]


class LoraBackend(Protocol):
    """Unchecked arithmetic of `add_lora`."""

    def prepare(self, works: Sequence[LoraWork | None], *, fixed: bool = False) -> None:
        """The host's part of a step, before its first `add`: lists are made and sent off.

        A step has several works when some sites see other rows (the head: sampled ones); each
        keeps its position from step to step. `fixed`: what `add` launches after this depends on
        shapes alone, so that it may be recorded once and replayed for any other works.
        """
        ...

    def add(
        self,
        hidden_TI: Tensor,
        pool_PE: Tensor,
        work: LoraWork,
        *,
        sites: Sequence[int],
        outs_TO: Sequence[Tensor],
    ) -> None: ...

    def forget(self) -> None:
        """Pages of attached adapters were written: whatever is kept of them is void."""
        ...


def choose_backend(
    name: str,
    *,
    workspace: Workspace | None = None,
    table: LoraTable | None = None,
    room: LoraRoom | None = None,
) -> LoraBackend:
    """`cpu` serves, `dense` what is not in the pool as a whole yet, `tiles` is their plain path,
    `triton` serves on a GPU, `reference` defines.

    One per pool. `triton` needs the table of the works that it will be given, and its room.

    Raises:
        ValueError: no such backend, or `triton` without its table and room.
    """
    if name == "triton":
        if table is None or room is None:
            raise ValueError("the LoRA backend triton needs a table and a room")
        # Triton takes a second to load: a server on a CPU does not.
        from .triton_backend import TritonBackend

        return TritonBackend(table, room)
    if name == "cpu":
        return CpuBackend(workspace)
    if name == "dense":
        return DenseBackend()
    if name == "tiles":
        return TileBackend()
    if name == "reference":
        return ReferenceBackend()
    raise ValueError(f"LoRA backend is {name!r}; it must be cpu, dense, tiles, triton or reference")


def add_lora(
    hidden_TI: Tensor,
    pool_PE: Tensor,
    work: LoraWork,
    *,
    sites: Sequence[int],
    outs_TO: Sequence[Tensor],
    backend: LoraBackend,
) -> None:
    """Semantics: for every site, out[t] += scale * ((hidden[t] @ A.T) @ B.T) of slot[t] there.

    hidden_TI  [T, I]  model dtype, contiguous rows; rows of a segment lie together
    pool_PE    [P, E]  model dtype, contiguous, the whole pool; A and B are found through
                       work.table, and are finite for every slot of the step
    outs_TO    [T, O]  one for each site: all of them are given `hidden`. Model dtype, contiguous
                       rows (they may be columns of one buffer), changed in place; rows of no
                       segment, of slot -1 or of a slot that lacks the site keep their values

    All may have more rows than the step. Products add up in fp32, the scale is applied outside
    the weights.
    """
    for site, out_TO in zip(sites, outs_TO, strict=True):
        shape = work.table.sites[site]
        _check(hidden_TI, pool_PE, work, "hidden_TI", shape.in_width)
        _check(out_TO, pool_PE, work, "out_TO", shape.out_width)
    backend.add(hidden_TI, pool_PE, work, sites=sites, outs_TO=outs_TO)


def _check(rows: Tensor, pool_PE: Tensor, work: LoraWork, name: str, width: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; this site has width {width}")
    if rows.shape[0] < work.end_row:
        raise ValueError(f"{name} has {rows.shape[0]} rows; the segments end at {work.end_row}")
    # The stride of an axis of one says nothing.
    if (rows.stride(1) != 1 and width > 1) or (rows.stride(0) < width and rows.shape[0] > 1):
        raise ValueError(
            f"{name} (shape {tuple(rows.shape)}, strides {rows.stride()}) must have contiguous rows"
        )
    if not pool_PE.is_contiguous():
        raise ValueError(f"the pool (shape {tuple(pool_PE.shape)}) must be contiguous")
    if rows.dtype != pool_PE.dtype:
        raise ValueError(f"{name} is {rows.dtype}, the pool {pool_PE.dtype}; they must agree")
