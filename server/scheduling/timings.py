"""Where a request's time went, and how it started, from the stamps of its row.

Pure. Called by the engine: at the first token, and when a request finishes, before it drops the
row.
"""

from __future__ import annotations

import math

from .records import RowTimings
from .starts import StartTold, Way
from .state import SchedulerState

NO_CHOICE = "there was no other way, or the load was over too soon to choose"


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


def start_told(state: SchedulerState, row: int) -> StartTold | None:
    """How a row with a token came to its first one; None: its adapter was there, or it has none.

    Whom the planner left no choice has waited, without a prediction, from its arrival on.
    """
    first_s = float(state.first_token_s[row])
    told = state.starts.told(row, first_s)
    if told is None and state.load_wait_s[row] > 0.0:
        waited_s = _span_s(state.request(row).arrival_s, first_s)
        told = StartTold(Way.WAIT, NO_CHOICE, 0.0, waited_s)
    return told


def _span_s(start_s: float, end_s: float) -> float:
    return 0.0 if math.isnan(start_s) or math.isnan(end_s) else end_s - start_s
