"""The two kernels: rows times A into partial sums, partial sums times B onto the rows.

Both are persistent: a program takes every `num_programs`-th piece of work, and how many pieces
there are it reads from device memory. Lists, records and columns are laid out by `lists.py`,
`arena.py` and `groups.py`; called through `launch.py` only. Within a class of rows the order of a
sum follows from the site's width and the adapter's rank, never from the batch: no atomics.
Tile starts lie in memory as int32 in units of 64 elements: multiplied back, they prove to the
compiler that a row of a tile may be read 16 bytes at a time.
"""

# Triton's language is not Python to a type checker.
# pyright: basic, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

import triton
import triton.language as tl

from . import places
from .work import TILE_ROWS

TILE = tl.constexpr(TILE_ROWS)
ENTRY_LEN = tl.constexpr(places.ENTRY_LEN)
SITE_LEN = tl.constexpr(places.SITE_LEN)
COLUMN_LEN = tl.constexpr(places.COLUMN_LEN)
START_UNIT = tl.constexpr(places.START_UNIT)
NUM_ITEMS = tl.constexpr(places.NUM_ITEMS)
FIRST_ITEM = tl.constexpr(places.FIRST_ITEM)
NUM_BLOCKS = tl.constexpr(places.NUM_BLOCKS)
FIRST_BLOCK = tl.constexpr(places.FIRST_BLOCK)
NUM_UNITS = tl.constexpr(places.NUM_UNITS)
IS_SPLIT = tl.constexpr(places.IS_SPLIT)
ROW = tl.constexpr(places.ROW)
NUM_ROWS = tl.constexpr(places.NUM_ROWS)
RECORD = tl.constexpr(places.RECORD)
UNIT = tl.constexpr(places.UNIT)
ROW_UNITS = tl.constexpr(places.ROW_UNITS)
RANK_BLOCK = tl.constexpr(places.RANK_BLOCK)
RANK = tl.constexpr(places.RANK)
A_STARTS = tl.constexpr(places.A_STARTS)
B_STARTS = tl.constexpr(places.B_STARTS)
SCALE = tl.constexpr(places.SCALE)
SITE = tl.constexpr(places.SITE)
PLACE = tl.constexpr(places.PLACE)
WIDTH = tl.constexpr(places.WIDTH)
OUT_COLUMN = tl.constexpr(places.OUT_COLUMN)
SITE_FIRST = tl.constexpr(places.SITE_FIRST)
SITE_END = tl.constexpr(places.SITE_END)


@triton.jit(do_not_specialize=["x_stride", "header"])
def sgmv_shrink(  # noqa: PLR0917 - Triton takes them by place
    p_x,
    p_pool,
    p_arena,
    p_lists,
    p_sites,
    p_partial,
    x_stride,  # in units of X_ALIGN elements
    header,  # where in the lists this position's and class's header is
    IN: tl.constexpr,
    TILE_COLS: tl.constexpr,
    SPLIT_TILES: tl.constexpr,  # column tiles that are added up before they join the others
    NUM_SITES: tl.constexpr,
    X_ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COL_TILES: tl.constexpr = (IN + TILE_COLS - 1) // TILE_COLS
    NUM_SPLITS: tl.constexpr = (COL_TILES + SPLIT_TILES - 1) // SPLIT_TILES
    PADDED: tl.constexpr = (IN + 15) // 16 * 16
    LAST: tl.constexpr = (PADDED - (COL_TILES - 1) * TILE_COLS) // 16
    p_header = p_lists + header
    num_items = tl.load(p_header + NUM_ITEMS)
    p_items = p_lists + tl.load(p_header + FIRST_ITEM)
    plane = tl.load(p_header + NUM_UNITS).to(tl.int64)
    # A program for each split, or one that adds them up itself, in the same order.
    is_split = tl.load(p_header + IS_SPLIT) != 0
    stored = tl.where(is_split, NUM_SPLITS, 1)

    for i_work in range(tl.program_id(0), num_items * stored * NUM_SITES, tl.num_programs(0)):
        # The sites of an item run side by side: the rows are read from memory once.
        i_site = i_work % NUM_SITES
        i_split = i_work // NUM_SITES % stored
        p_item = p_items + i_work // (NUM_SITES * stored) * ENTRY_LEN
        row = tl.load(p_item + ROW)
        num_rows = tl.load(p_item + NUM_ROWS)
        p_record = p_arena + tl.load(p_item + RECORD)
        unit = tl.load(p_item + UNIT)
        row_units = tl.load(p_item + ROW_UNITS)
        first = tl.load(p_item + RANK_BLOCK) * TILE
        p_factor = p_record + tl.load(p_sites + i_site) * SITE_LEN
        rank = tl.load(p_factor + RANK)
        if rank > first:
            o_t = tl.arange(0, BLOCK_T)
            o_r = first + tl.arange(0, BLOCK_R)
            o_k = tl.arange(0, BLOCK_K)
            m_t = o_t < num_rows
            m_r = o_r < rank
            p_starts = p_record + tl.load(p_factor + A_STARTS)
            p_rows = p_x + (row + o_t).to(tl.int64) * (x_stride * X_ALIGN)
            b_total = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
            for split in range(i_split, tl.where(is_split, i_split + 1, NUM_SPLITS)):
                b_acc = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
                for c in range(split * SPLIT_TILES, min((split + 1) * SPLIT_TILES, COL_TILES)):
                    stride = tl.where(c == COL_TILES - 1, LAST, TILE_COLS // 16) * 16
                    if BLOCK_R == TILE:
                        start = tl.load(p_starts + first // TILE * COL_TILES + c)
                        p_tile = p_pool + start.to(tl.int64) * START_UNIT
                        p_tile += tl.arange(0, BLOCK_R) * stride
                    else:
                        # [BLOCK_R]
                        b_start = tl.load(p_starts + o_r // TILE * COL_TILES + c, mask=m_r, other=0)
                        p_tile = p_pool + b_start.to(tl.int64) * START_UNIT + o_r % TILE * stride
                    for k in range(0, TILE_COLS, BLOCK_K):
                        o_col = k + o_k
                        m_x = (o_col < TILE_COLS) & (c * TILE_COLS + o_col < IN)
                        m_a = (o_col < TILE_COLS) & (c * TILE_COLS + o_col < PADDED)
                        # [BLOCK_T, BLOCK_K]
                        b_x = tl.load(
                            p_rows[:, None] + (c * TILE_COLS + o_col)[None, :],
                            mask=m_t[:, None] & m_x[None, :],
                            other=0.0,
                        )
                        # [BLOCK_R, BLOCK_K]
                        b_a = tl.load(
                            p_tile[:, None] + o_col[None, :],
                            mask=m_r[:, None] & m_a[None, :],
                            other=0.0,
                        )
                        if IN % 16 != 0:
                            # Whole 16-byte pieces were read: what pads a row may be NaN.
                            b_a = tl.where(m_x[None, :], b_a, 0.0)
                        # [BLOCK_T, BLOCK_R]
                        b_acc = tl.dot(b_x, tl.trans(b_a), b_acc, input_precision="ieee")
                b_total += b_acc
            # A unit is what a row has of one rank block: 16 sums, all of them written.
            p_plane = p_partial + (i_site * stored + i_split) * plane * TILE
            tl.store(
                p_plane + ((unit + o_t * row_units) * TILE)[:, None] + o_r[None, :],
                b_total,
                mask=m_t[:, None] & (o_r // TILE * TILE < rank)[None, :],
            )


@triton.jit
def _round_to_tf32(b_value):
    """To the nearest: the hardware would cut the last 13 bits off, which leans to one side."""
    b_bits = b_value.to(tl.int32, bitcast=True)
    b_near = ((b_bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # Infinities and NaN stay what they are.
    return tl.where((b_bits & 0x7F800000) == 0x7F800000, b_value, b_near)


@triton.jit
def _load_sums(  # noqa: PLR0917
    p_sums, m_t, first, rank, plane, stored, NUM_SPLITS: tl.constexpr, PRECISION: tl.constexpr
):
    """[BLOCK_T, 16]: what A gives of a rank block, the splits added in their order."""
    o_r = first + tl.arange(0, TILE)
    p_block = p_sums[:, None] + o_r[None, :]
    b_sums = tl.load(p_block, mask=m_t[:, None], other=0.0)
    for split in tl.static_range(1, NUM_SPLITS):
        m_r = o_r < tl.where(stored > split, first + TILE, 0)
        p_split = p_block + split * plane * TILE
        b_sums += tl.load(p_split, mask=m_t[:, None] & m_r[None, :], other=0.0)
    # A row that holds an infinity has no zeros past its rank.
    b_sums = tl.where((o_r < rank)[None, :], b_sums, 0.0)
    return _round_to_tf32(b_sums) if PRECISION == "tf32" else b_sums


@triton.jit
def _load_tile(  # noqa: PLR0917
    p_pool, p_start, j, first, rank, width, TILE_COLS: tl.constexpr, BLOCK_O: tl.constexpr
):
    """[16, BLOCK_O] fp32: column block `j` of a rank block of B."""
    TILE_BLOCKS: tl.constexpr = (TILE_COLS + BLOCK_O - 1) // BLOCK_O
    tile = j // TILE_BLOCKS
    col = j % TILE_BLOCKS * BLOCK_O
    # A tile's row stride: its columns rounded up to 16.
    stride = min(TILE_COLS // 16, (width - tile * TILE_COLS + 15) // 16) * 16
    start = tl.load(p_start + tile).to(tl.int64) * START_UNIT
    o_r = tl.arange(0, TILE)
    o_o = tl.arange(0, BLOCK_O)
    # A row's padding ends in columns that nobody stores.
    b_tile = tl.load(
        p_pool + start + col + (o_r * stride)[:, None] + o_o[None, :],
        mask=(first + o_r < rank)[:, None] & (o_o < stride - col)[None, :],
        other=0.0,
    )
    return b_tile.to(tl.float32)


@triton.jit
def _add_to_rows(  # noqa: PLR0917
    p_rows,
    m_t,
    b_acc,
    j,
    width,
    TILE_COLS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
):
    """Onto column block `j` of a site's rows."""
    TILE_BLOCKS: tl.constexpr = (TILE_COLS + BLOCK_O - 1) // BLOCK_O
    tile = j // TILE_BLOCKS
    col = j % TILE_BLOCKS * BLOCK_O
    o_o = tl.arange(0, BLOCK_O)
    # A block never crosses its tile. Counted in OUT_ALIGN: the compiler has to see it.
    end = min(TILE_COLS, width - tile * TILE_COLS) // OUT_ALIGN * OUT_ALIGN
    p_cells = (p_rows + (tile * TILE_COLS + col))[:, None] + o_o[None, :]
    m_o = m_t[:, None] & (o_o < end - col)[None, :]
    b_out = tl.load(p_cells, mask=m_o, other=0.0).to(tl.float32) + b_acc
    tl.store(p_cells, b_out.to(p_rows.dtype.element_ty), mask=m_o)


@triton.jit(do_not_specialize=["out_stride", "header"])
def sgmv_expand(  # noqa: PLR0917
    p_out,
    p_pool,
    p_arena,
    p_lists,
    p_columns,
    p_partial,
    out_stride,  # in units of OUT_ALIGN elements
    header,
    TILE_COLS: tl.constexpr,
    NUM_COLUMNS: tl.constexpr,  # blocks of columns of all sites
    MAX_RUN: tl.constexpr,  # of them in a piece
    NUM_SPLITS: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
):
    p_header = p_lists + header
    num_blocks = tl.load(p_header + NUM_BLOCKS)
    p_blocks = p_lists + tl.load(p_header + FIRST_BLOCK)
    plane = tl.load(p_header + NUM_UNITS).to(tl.int64)
    stored = tl.where(tl.load(p_header + IS_SPLIT) != 0, NUM_SPLITS, 1)
    # A piece is a row block and a run of column blocks: as long as every program still has one,
    # and so that all have as many. It changes no sum.
    total = num_blocks * NUM_COLUMNS
    rounds = tl.cdiv(total, tl.num_programs(0) * MAX_RUN)
    run = tl.cdiv(total, tl.num_programs(0) * tl.maximum(rounds, 1))
    pieces = tl.cdiv(NUM_COLUMNS, tl.maximum(run, 1))

    for i_work in range(tl.program_id(0), num_blocks * pieces, tl.num_programs(0)):
        p_block = p_blocks + i_work // pieces * ENTRY_LEN
        row = tl.load(p_block + ROW)
        num_rows = tl.load(p_block + NUM_ROWS)
        p_record = p_arena + tl.load(p_block + RECORD)
        unit = tl.load(p_block + UNIT)
        row_units = tl.load(p_block + ROW_UNITS)
        o_t = tl.arange(0, BLOCK_T)
        m_t = o_t < num_rows
        p_units = p_partial + (unit + o_t * row_units) * TILE
        p_rows = p_out + (row + o_t).to(tl.int64) * (out_stride * OUT_ALIGN)
        column = i_work % pieces * run
        end = min(column + run, NUM_COLUMNS)
        while column < end:
            # Up to the end of a site.
            p_column = p_columns + column * COLUMN_LEN
            site_first = tl.load(p_column + SITE_FIRST)
            from_j = column - site_first
            column = min(end, tl.load(p_column + SITE_END))
            to_j = column - site_first
            p_factor = p_record + tl.load(p_column + SITE) * SITE_LEN
            rank = tl.load(p_factor + RANK)
            if rank > 0:
                width = tl.load(p_column + WIDTH) * OUT_ALIGN
                col_tiles = tl.cdiv(width, TILE_COLS)
                place = tl.load(p_column + PLACE)
                p_start = p_record + tl.load(p_factor + B_STARTS)
                scale = tl.load(p_factor + SCALE).to(tl.float32, bitcast=True)
                p_sums = p_units + place * stored * plane * TILE
                p_site = p_rows + tl.load(p_column + OUT_COLUMN) * OUT_ALIGN
                if rank <= TILE:
                    # Sums stay in registers while the tiles stream by.
                    b_sums = _load_sums(p_sums, m_t, 0, rank, plane, stored, NUM_SPLITS, PRECISION)
                    for j in range(from_j, to_j):
                        b_tile = _load_tile(p_pool, p_start, j, 0, rank, width, TILE_COLS, BLOCK_O)
                        b_acc = tl.dot(b_sums, b_tile, input_precision=PRECISION)
                        _add_to_rows(
                            p_site, m_t, b_acc * scale, j, width, TILE_COLS, BLOCK_O, OUT_ALIGN
                        )
                else:
                    for j in range(from_j, to_j):
                        b_acc = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
                        for first in tl.range(0, rank, TILE, num_stages=2):
                            p_block_start = p_start + first // TILE * col_tiles
                            b_tile = _load_tile(
                                p_pool, p_block_start, j, first, rank, width, TILE_COLS, BLOCK_O
                            )
                            b_sums = _load_sums(
                                p_sums, m_t, first, rank, plane, stored, NUM_SPLITS, PRECISION
                            )
                            b_acc = tl.dot(b_sums, b_tile, b_acc, input_precision=PRECISION)
                        _add_to_rows(
                            p_site, m_t, b_acc * scale, j, width, TILE_COLS, BLOCK_O, OUT_ALIGN
                        )
