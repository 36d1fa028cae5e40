"""The shipped configurations of the attention kernels: one table, three readers.

`pick_config` launches from it, the compile check walks it (`compile_cases`), the bench sweeps it.
What is picked follows from the model (dtype, head size, heads that share a KV head) and the kind
of rows, never from a step: a row's sum is made in one order. Knows no tensors with memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..cases import CompileCase

SINGLE, BLOCKS = "single", "blocks"
MIN_DOT = 16  # the smallest side of a matrix product
MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class AttendConfig:
    """One shape of `attend_pages`."""

    block_m: int  # rows: tokens times query heads of a KV head
    block_c: int  # cells of the context at a time
    num_warps: int
    num_stages: int
    programs_per_sm: int  # a guess below what sm_90 holds at once; for a sweep on a GPU


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """One shape of `merge_splits`."""

    block_a: int = 16  # pieces added up at once
    num_warps: int = 4
    programs_per_sm: int = 8


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One shape of `store_pages`."""

    block_r: int = 16  # tokens times KV heads
    num_warps: int = 4
    odd_warps: int = 8  # where rows are loaded element by element: a thread has fewer


# (kind of rows, bytes of an element, head size rounded up to a power of two)
ATTEND = {
    # Pages are looked up before they are read, so two stages of the pipeline hold one block: five
    # have two blocks of keys and of values on their way.
    (SINGLE, 2, 16): AttendConfig(16, 32, 4, 5, 4),
    (SINGLE, 2, 32): AttendConfig(16, 64, 4, 5, 4),
    (SINGLE, 2, 64): AttendConfig(16, 64, 4, 5, 4),
    (SINGLE, 2, 128): AttendConfig(16, 64, 4, 5, 2),
    (SINGLE, 2, 256): AttendConfig(16, 32, 4, 5, 2),
    (BLOCKS, 2, 16): AttendConfig(64, 64, 4, 5, 4),
    (BLOCKS, 2, 32): AttendConfig(64, 64, 4, 5, 4),
    (BLOCKS, 2, 64): AttendConfig(128, 64, 8, 5, 1),
    (BLOCKS, 2, 128): AttendConfig(128, 64, 8, 5, 1),
    (BLOCKS, 2, 256): AttendConfig(64, 32, 8, 5, 1),
    # fp32 products are made without tensor cores: small blocks, for their registers.
    (SINGLE, 4, 16): AttendConfig(16, 32, 4, 2, 4),
    (SINGLE, 4, 32): AttendConfig(16, 32, 4, 2, 4),
    (SINGLE, 4, 64): AttendConfig(16, 32, 4, 2, 4),
    (SINGLE, 4, 128): AttendConfig(16, 32, 4, 2, 2),
    (SINGLE, 4, 256): AttendConfig(16, 16, 8, 2, 1),
    (BLOCKS, 4, 16): AttendConfig(32, 32, 4, 2, 4),
    (BLOCKS, 4, 32): AttendConfig(32, 32, 4, 2, 4),
    (BLOCKS, 4, 64): AttendConfig(32, 32, 4, 2, 2),
    (BLOCKS, 4, 128): AttendConfig(32, 16, 8, 2, 2),
    (BLOCKS, 4, 256): AttendConfig(32, 16, 8, 1, 1),
}
MERGE = MergeConfig()
STORE = StoreConfig()


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size` and may be a side of a product."""
    return max(MIN_DOT, 1 << (size - 1).bit_length())


def pick_config(kind: str, *, dtype: torch.dtype, head_dim: int, fold: int) -> AttendConfig:
    """The table's entry; where one token's heads would not fit, that of blocks, or a longer one.

    Raises:
        ValueError: no entry: the head or its dtype is none that is shipped.
    """
    key = (kind, dtype.itemsize, power_of_two(head_dim))
    if key not in ATTEND or not dtype.is_floating_point:
        raise ValueError(
            f"attention over heads of {head_dim} in {dtype}: a head has 1 to {MAX_HEAD_DIM} "
            "elements of 2 or 4 bytes"
        )
    config, rows = ATTEND[key], power_of_two(fold)
    if rows > config.block_m:
        config = ATTEND[BLOCKS, *key[1:]]
    if rows > config.block_m:
        config = replace(config, block_m=rows, block_c=MIN_DOT, num_warps=8)
    return config


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides a binary."""

    name: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tokens_per_page: int = 16


LLAMA_8B = ModelShape("llama-8b", 32, 32, 8, 128)
QWEN_05B = ModelShape("qwen-0.5b", 24, 14, 2, 64)
SHAPES = (
    LLAMA_8B,
    QWEN_05B,
    ModelShape("gemma3-1b", 26, 4, 1, 256),
    ModelShape("falcon-7b", 32, 71, 1, 64),
    ModelShape("head-80", 32, 32, 32, 80, 8),
    ModelShape("head-96", 4, 6, 2, 96),
    ModelShape("head-112", 4, 8, 8, 112),
    ModelShape("head-32", 4, 12, 4, 32),
    ModelShape("head-16", 4, 8, 2, 16),
)


def compile_cases() -> Iterator[CompileCase]:
    """Every entry of the table, through the very calls that a launch would make."""
    from .compiled import cases  # loads Triton

    yield from cases(SHAPES)
