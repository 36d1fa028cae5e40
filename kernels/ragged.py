"""Counting within runs: what lists of unequal parts are laid out with.

Pure, on numpy. Read by the operators' `lists.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def starts_of(counts: Ints) -> Ints:
    """Where each run begins when they lie one behind the other."""
    return np.cumsum(counts) - counts


def count_up(counts: Ints) -> Ints:
    """0, 1, ... for each of the counts, one after the other."""
    return np.arange(counts.sum()) - np.repeat(starts_of(counts), counts)
