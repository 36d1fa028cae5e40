"""Launches of the attention kernels, built from tensors and never run here.

Owns the way from tensors to `KernelCall`s: pure functions, called with real tensors by the
backend and with tensors without memory by the compile check. Of what they are given, only shapes,
strides, dtypes and options of a layer decide; what a step asks for lies in device memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import KernelCall
from .configs import BLOCKS, MERGE, SINGLE, STORE, AttendConfig, pick_config, power_of_two
from .kernel import attend_pages, merge_splits
from .lists import ListLimits
from .room import AttentionRoom
from .store_kernel import store_pages
from .work import AttentionOptions

VECTOR_BYTES = 16  # of the widest load of one thread


@dataclass(frozen=True, eq=False)
class StepMemory:
    """Device memory beside the pool, taken once: a step's lists and partial results."""

    room: AttentionRoom  # what it was taken for
    limits: ListLimits  # what the lists are made for
    lists: Tensor  # int32, see lists.py
    table_BM: Tensor  # int32, the room's requests and pages
    cell_T: Tensor  # int64, page * Z + cell of each token
    part_SHK: Tensor  # fp32; S slots
    stat_SH2: Tensor  # fp32


def make_limits(room: AttentionRoom) -> ListLimits:
    """How the model's configurations cut a step."""

    def tokens(kind: str) -> int:
        config = pick_config(kind, dtype=room.dtype, head_dim=room.head_dim, fold=room.fold)
        return config.block_m // room.fold

    return ListLimits(
        max_rows=room.max_rows,
        max_requests=room.max_requests,
        max_context_tokens=room.max_context_tokens,
        num_kv_heads=room.num_kv_heads,
        single_tokens=tokens(SINGLE),
        block_tokens=tokens(BLOCKS),
    )


def take_memory(room: AttentionRoom, *, device: torch.device) -> StepMemory:
    """Everything a step needs beside its results."""
    limits = make_limits(room)
    slots = limits.max_slots
    return StepMemory(
        room=room,
        limits=limits,
        lists=torch.zeros(limits.size, dtype=torch.int32, device=device),
        table_BM=torch.zeros(room.max_requests, room.max_pages, dtype=torch.int32, device=device),
        cell_T=torch.zeros(room.max_rows, dtype=torch.int64, device=device),
        part_SHK=torch.zeros(slots, room.num_heads, room.head_dim, device=device),
        stat_SH2=torch.zeros(slots, room.num_heads, 2, device=device),
    )


def attend_call(
    kind: str,
    query_THK: Tensor,
    kv_PL2GZK: Tensor,
    out_THK: Tensor,
    memory: StepMemory,
    *,
    layer: int,
    options: AttentionOptions,
    num_programs: int,
    config: AttendConfig | None = None,
) -> KernelCall:
    """All items of one kind. `config`: another than the table's, of no fewer rows, for a bench."""
    room = memory.room
    if config is None:
        config = pick_config(kind, dtype=room.dtype, head_dim=room.head_dim, fold=room.fold)
    return KernelCall(
        kernel=attend_pages,
        grid=(num_programs,),
        args=(
            query_THK,
            kv_PL2GZK,
            out_THK,
            memory.part_SHK,
            memory.stat_SH2,
            memory.table_BM,
            memory.lists,
            options.sinks_H,
            layer,
            room.max_pages,
            float(options.scaling),
            float(options.softcap or 1.0),
            options.sliding_window or 0,
        ),
        options={
            "KV_HEADS": room.num_kv_heads,
            "FOLD": room.fold,
            "HEAD_DIM": room.head_dim,
            "PAGE_TOKENS": room.tokens_per_page,
            "PAGE_ELEMENTS": kv_PL2GZK.stride(0),
            "FIRST_ITEM": memory.limits.first_item,
            "LIST": 0 if kind == SINGLE else 1,
            "USE_WINDOW": options.sliding_window is not None,
            "USE_SOFTCAP": options.softcap is not None,
            "USE_SINKS": options.sinks_H is not None,
            "BLOCK_M": config.block_m,
            "BLOCK_C": config.block_c,
            "BLOCK_K": power_of_two(room.head_dim),
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        },
    )


def merge_call(
    out_THK: Tensor, memory: StepMemory, *, options: AttentionOptions, num_programs: int
) -> KernelCall:
    """Partial results of tokens whose contexts were cut."""
    room = memory.room
    return KernelCall(
        kernel=merge_splits,
        grid=(num_programs,),
        args=(memory.part_SHK, memory.stat_SH2, out_THK, memory.lists, options.sinks_H),
        options={
            "HEADS": room.num_heads,
            "HEAD_DIM": room.head_dim,
            "USE_SINKS": options.sinks_H is not None,
            "BLOCK_S": power_of_two(memory.limits.split_limit),
            "BLOCK_A": MERGE.block_a,
            "BLOCK_K": power_of_two(room.head_dim),
            "num_warps": MERGE.num_warps,
        },
    )


def store_call(
    key_TGK: Tensor,
    value_TGK: Tensor,
    kv_PL2GZK: Tensor,
    memory: StepMemory,
    *,
    layer: int,
) -> KernelCall:
    """Keys and values of all rows of the step; rows past its tokens are skipped."""
    room = memory.room
    # A head's elements lie together in every model's projections; where not, they are copied.
    key_TGK, value_TGK = (x if x.stride(2) == 1 else x.contiguous() for x in (key_TGK, value_TGK))
    strides = (*key_TGK.stride()[:2], *value_TGK.stride()[:2])
    unit = VECTOR_BYTES // room.dtype.itemsize
    if any(stride % unit for stride in strides):
        unit = 1
    return KernelCall(
        kernel=store_pages,
        grid=(-(-key_TGK.shape[0] * room.num_kv_heads // STORE.block_r),),
        args=(
            key_TGK,
            value_TGK,
            kv_PL2GZK,
            memory.cell_T,
            memory.lists,
            layer,
            *(stride // unit for stride in strides),
        ),
        options={
            "UNIT": unit,
            "KV_HEADS": room.num_kv_heads,
            "HEAD_DIM": room.head_dim,
            "PAGE_TOKENS": room.tokens_per_page,
            "PAGE_ELEMENTS": kv_PL2GZK.stride(0),
            "BLOCK_R": STORE.block_r,
            "BLOCK_K": power_of_two(room.head_dim),
            "num_warps": STORE.num_warps if unit > 1 else STORE.odd_warps,
        },
    )
