"""Where each number lies: what `lists.py`, `arena.py` and `groups.py` write and kernels read.

Owns the names of places and the lengths of entries, nothing else; the kernels import them as
constants.
"""

from __future__ import annotations

# A header: one for every position of `prepare` and every class of rows.
HEADER_LEN = 8
NUM_ITEMS, FIRST_ITEM, NUM_BLOCKS, FIRST_BLOCK, NUM_UNITS, IS_SPLIT = range(6)

# A row block, and an item of shrink: a row block with a group of its adapter's rank blocks.
ENTRY_LEN = 8
ROW, NUM_ROWS, RECORD, UNIT, ROW_UNITS, RANK_BLOCK = range(6)

# What a record has for each site. Places of tile starts count from the record's start.
SITE_LEN = 4
RANK, A_STARTS, B_STARTS, SCALE = range(SITE_LEN)
START_UNIT = 64  # elements; tiles start at multiples of it

# A block of columns of an expand launch. Widths and columns are in units of the outputs' alignment.
COLUMN_LEN = 8
SITE, PLACE, WIDTH, OUT_COLUMN, SITE_FIRST, SITE_END = range(6)
