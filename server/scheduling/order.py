"""The waiting line: rows of the table, kept sorted by key as they come and go.

Owns three parallel arrays (key, sequence number, row). Knows nothing of requests. Called by
state.py; plan.py reads `rows()` as one array, so that 10,000 waiting requests are never
walked one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class WaitingLine:
    """Rows by (key, seq), smallest first. `seq` is unique and settles ties."""

    def __init__(self, capacity: int) -> None:
        self._keys = np.zeros(capacity, np.float64)
        self._seqs = np.zeros(capacity, np.int64)
        self._rows = np.zeros(capacity, np.int64)
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def rows(self) -> NDArray[np.int64]:
        """All rows, oldest first: a view that cannot be written and goes stale on change."""
        view = self._rows[: self._len]
        view.flags.writeable = False
        return view

    def position(self, key: float, seq: int) -> int:
        """How many waiting rows are older than (key, seq)."""
        keys = self._keys[: self._len]
        first = int(np.searchsorted(keys, key, side="left"))
        last = int(np.searchsorted(keys, key, side="right"))
        return first + int(np.searchsorted(self._seqs[first:last], seq))

    def insert(self, row: int, key: float, seq: int) -> None:
        place, end = self.position(key, seq), self._len
        for column, value in ((self._keys, key), (self._seqs, seq), (self._rows, row)):
            column[place + 1 : end + 1] = column[place:end]
            column[place] = value
        self._len = end + 1

    def remove(self, row: int, key: float, seq: int) -> None:
        """Raises KeyError when the row does not wait under this key."""
        place, end = self.position(key, seq), self._len
        if place >= end or self._rows[place] != row:
            raise KeyError(row)
        for column in (self._keys, self._seqs, self._rows):
            column[place : end - 1] = column[place + 1 : end]
        self._len = end - 1
