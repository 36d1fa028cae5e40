"""The waiting line as one plan sees it: who is in it, in which order, and what each one needs.

A *position* is a place in this line; whoever needs something first has the smallest. Read-only,
columns and no walk over the line. Knows no budgets. Made by draft.py for one call of `plan_step`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .prefix_view import PrefixView
from .state import SchedulerState

NOBODY = -1  # a position before everyone: may evict whatever is idle


class Line:
    """`ended`: rows, waiting or not, that this plan ends."""

    def __init__(
        self,
        state: SchedulerState,
        prefixes: PrefixView,
        *,
        ended: list[int],
        newest_first: bool,
    ) -> None:
        self._state, self._prefixes = state, prefixes
        rows = state.line.rows()
        if ended:
            going = np.isin(rows, ended)
            self.ended = rows[going]
            rows = rows[~going]
        else:
            self.ended = rows[:0]
        if newest_first:
            begun = state.has_begun(rows)
            rows = np.concatenate([rows[begun], rows[~begun][::-1]])
        self.rows = rows  # whoever comes first stands first
        self.adapters = state.adapter_id[rows]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def hits(self) -> NDArray[np.int64]:
        """By position: cached pages of what the row knows, as the plan began."""
        return self._prefixes.hit_pages(self.rows)

    @cached_property
    def positions(self) -> list[int]:
        """By row; the line's length: it is not in it."""
        positions = np.full(len(self._state.status), len(self.rows), np.int64)
        positions[self.rows] = np.arange(len(self.rows))
        return positions.tolist()

    def first_positions(self, num_adapters: int) -> NDArray[np.int64]:
        """Of each adapter, where its first row stands; the line's length: nobody names it."""
        first = np.full(num_adapters, len(self.rows), np.int64)
        # Of repeated indices the last one is kept: backwards, that is the first in line.
        first[self.adapters[::-1]] = np.arange(len(self.rows) - 1, -1, -1)
        return first

    def firsts_of_adapters(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these positions, in their order, the first of each adapter."""
        adapters = self.adapters[positions]
        first = np.zeros(int(adapters.max(initial=0)) + 2, np.int64)  # the base's -1 is the last
        first[adapters[::-1]] = positions[::-1]
        return positions[first[adapters] == positions]

    def wait_for_logits(self, num_left: int) -> NDArray[np.bool_]:
        """By position: who could not begin with its prompt in this step, whatever room there were.

        Logits go along the line: whoever comes once they are gone waits.
        """
        return self._is_late(self.rows, num_left)

    def those_with_logits(self, positions: NDArray[np.int64], num_left: int) -> NDArray[np.int64]:
        """Of these positions, in their order, those whose prompt gets logits if all get in."""
        return positions[~self._is_late(self.rows[positions], num_left)]

    def _is_late(self, rows: NDArray[np.int64], num_left: int) -> NDArray[np.bool_]:
        untold = self._state.num_to_tell[rows] - self._state.num_told[rows]
        before = untold.cumsum() - untold
        return self._state.is_untold(rows) & (before >= num_left)
