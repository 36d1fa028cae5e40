"""One row's columns as plain integers, for a plan that looks at rows one by one.

Reading single numbers from numpy costs more than all the rest of a plan; so the few rows that are
walked are gathered at once. Knows no rules. Used by draft.py and plan.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .state import SchedulerState


class Row(NamedTuple):
    row: int
    start: int  # tokens computed; of a newcomer, those it finds cached
    num_known: int
    num_final: int
    num_pages: int
    adapter_id: int
    adapter_pages: int
    num_to_tell: int
    num_told: int

    def num_tells(self, num_tokens: int) -> int:
        """Places of the prompt that a run of so many tokens tells."""
        end = min(self.start + num_tokens, self.num_to_tell)
        return max(end - max(self.start, self.num_told), 0)


def gather(state: SchedulerState, rows: NDArray[np.int64] | list[int]) -> dict[int, Row]:
    """The facts of these rows, in their order."""
    index = np.asarray(rows, np.int64)
    columns = (
        index,
        state.num_computed[index],
        state.num_known[index],
        state.num_final[index],
        state.num_pages[index],
        state.adapter_id[index],
        state.adapter_pages[index],
        state.num_to_tell[index],
        state.num_told[index],
    )
    facts = map(Row._make, zip(*(column.tolist() for column in columns), strict=True))
    return {fact.row: fact for fact in facts}
