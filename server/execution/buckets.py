"""Which batch sizes of a decode step have a recorded graph of their own.

A step runs in the smallest bucket that holds it; its rows past the last are padding. Few sizes
keep start-up and memory small, close ones keep the padding small. Pure; called by graphs.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SMALL = (1, 2, 4, 8)
FINE, FINE_LIMIT, COARSE = 8, 64, 16  # rows between buckets, up to 64 and past it


def batch_buckets(max_running: int) -> tuple[int, ...]:
    """Rising; the last is `max_running` itself, so that no step is larger."""
    fine = range(SMALL[-1] + FINE, FINE_LIMIT + 1, FINE)
    coarse = range(FINE_LIMIT + COARSE, max_running + 1, COARSE)
    sizes = [size for size in (*SMALL, *fine, *coarse) if size < max_running]
    return (*sizes, max_running)


def pick_bucket(buckets: Sequence[int], num_rows: int) -> int:
    """The smallest that holds so many rows; 0: none does."""
    place = bisect_left(buckets, num_rows)
    return buckets[place] if place < len(buckets) else 0
