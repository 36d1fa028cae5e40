"""Where a request's time went, from the stamps of its row.

Pure. Called by the engine when a request finishes, before it drops the row.
"""

from __future__ import annotations

import math

from .records import RowTimings
from .state import SchedulerState


def timings(state: SchedulerState, row: int) -> RowTimings:
    """Spans whose end has not come yet are 0."""
    arrival_s = state.request(row).arrival_s
    scheduled_s = float(state.first_scheduled_s[row])
    first_s, last_s = float(state.first_token_s[row]), float(state.last_token_s[row])
    return RowTimings(
        queue_s=_span_s(arrival_s, scheduled_s),
        load_s=float(state.load_wait_s[row]),
        prefill_s=_span_s(scheduled_s, first_s),
        decode_s=_span_s(first_s, last_s),
        num_preemptions=int(state.num_preemptions[row]),
    )


def _span_s(start_s: float, end_s: float) -> float:
    return 0.0 if math.isnan(start_s) or math.isnan(end_s) else end_s - start_s
