"""How the kernels are cut: classes of rows, and a table of configurations for each.

One list, three readers: `pick_...` launches from it, the compile check walks it
(`compile_cases`), the bench sweeps it. What decides the order of a sum (`split_tiles`) follows
from the site's width alone. Imports no Triton: a CPU server may look at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..cases import CompileCase
from .work import TILE_ROWS

# The input's columns are cut into so many splits at most.
MAX_SPLITS = 16


# Splits have programs of their own, instead of being added up in one, where all partial sums of a
# site would otherwise be so few units (16 sums) that a GPU is left waiting: 256 items of long
# segments, 1024 rows of rank 256. It bounds their memory, 1 MiB a split, and changes no sum.
MAX_SPLIT_UNITS = 1 << 14


@dataclass(frozen=True, slots=True)
class RowClass:
    """Segments that are computed alike; their number of rows decides."""

    name: str
    block_rows: int  # rows of a program
    group_blocks: int  # blocks of 16 rank rows that one program of shrink takes

    @property
    def block_rank(self) -> int:
        return TILE_ROWS * self.group_blocks


SHORT = RowClass("short", 16, 1)
LONG = RowClass("long", 64, 4)
ROW_CLASSES = (SHORT, LONG)


def class_of(num_rows: int, *, fixed: bool) -> int:
    """Index of a segment's class. `fixed`: one launch must do for any step."""
    return 0 if fixed or num_rows <= SHORT.block_rows else 1


@dataclass(frozen=True, slots=True)
class ShrinkConfig:
    block_k: int  # columns read at once
    num_warps: int
    num_stages: int
    programs_per_sm: int  # that fit an H200 at once; the work is dealt out among them
    # Of a thread; where the compiler aims lower by itself, it spills.
    max_registers: int | None = None


@dataclass(frozen=True, slots=True)
class ExpandConfig:
    block_o: int  # columns read at once
    max_run: int  # such blocks that one program takes in a row, at most
    num_warps: int
    num_stages: int
    programs_per_sm: int
    max_registers: int | None = None


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """How one class of rows is computed in one width of numbers."""

    shrink: ShrinkConfig
    expand: ExpandConfig


# (class, bytes of an element) -> configuration. fp32 multiplies without tensor cores, out of
# registers: where these do not reach, fewer stages keep the compiler from spilling.
CONFIGS = {
    ("short", 2): LoraConfig(ShrinkConfig(128, 2, 4, 9), ExpandConfig(128, 8, 4, 4, 3, 168)),
    ("long", 2): LoraConfig(ShrinkConfig(64, 4, 4, 3), ExpandConfig(128, 8, 8, 3, 2)),
    ("short", 4): LoraConfig(ShrinkConfig(64, 4, 4, 6), ExpandConfig(128, 8, 4, 3, 2, 255)),
    ("long", 4): LoraConfig(ShrinkConfig(16, 4, 1, 3), ExpandConfig(32, 8, 8, 1, 3)),
}


def pick_shrink(row_class: RowClass, *, element_bytes: int, tile_cols: int) -> ShrinkConfig:
    """The table's entry, no wider than a tile is."""
    found = CONFIGS[row_class.name, element_bytes].shrink
    return replace(found, block_k=min(found.block_k, _widest(tile_cols)))


def pick_expand(
    row_class: RowClass, *, element_bytes: int, tile_cols: int, out_align: int
) -> ExpandConfig:
    """The same; half as wide where outputs are addressed one by one: addresses would spill."""
    found = CONFIGS[row_class.name, element_bytes].expand
    block_o = found.block_o if out_align * element_bytes >= 16 else found.block_o // 2
    return replace(found, block_o=min(block_o, _widest(tile_cols)))


def _widest(tile_cols: int) -> int:
    return max(16, 1 << (tile_cols - 1).bit_length())


def split_tiles(col_tiles: int) -> int:
    """Column tiles of one split: its sum is made first and joins the others in their order."""
    return -(-col_tiles // MAX_SPLITS)


def num_splits(col_tiles: int) -> int:
    return -(-col_tiles // split_tiles(col_tiles))


def compile_cases() -> Iterator[CompileCase]:
    """Every entry of the table, through the very calls that a launch would make."""
    from .compiled import cases  # loads Triton

    yield from cases()
