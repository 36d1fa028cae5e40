"""S-LoRA's early abort: whom it gives up, and when the newest go first.

After S-LoRA (MLSys 2024, its admission control, and the queue of its router that aborts): a
request that cannot get its first token within the bound any more is answered at once, so that
nobody computes for it; and while no fewer come than are let in, the newest go first, because
those who have waited long would only just miss. Pure functions of the table and an instant; used
by policies.py.

What differs from the published system, and why:
- the bound is each request's own `ttft_s`, not 6 s for all; the published margin of 0.5 s for the
  first token itself is kept as the same share of the bound;
- newest first begins only once somebody has waited half of its bound. The published queue has
  no such condition, and need not: what it lets in at once, it computes at once. Here prompts are
  cut to the step's budget, so order tells, and without overload this policy is to equal `fcfs`;
- its counts are kept in fractions, and taken at every batch let in, not at every tenth step: a
  step lets in whoever fits, there is no wait of ten steps;
- memory is what is free, not the worst case of all answers, so there are preemptions. Who has had
  a first token is never given up, and goes before everyone who has not, oldest first;
- who does not fit does not stop those behind, adapters come on a link of their own, and the
  order tells whose comes first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .state import SchedulerState

# Of a request's bound on its first token: 0.5 s of 6 s is what S-LoRA leaves for computing it.
MARGIN_SHARE = 0.5 / 6.0
PRESSED_SHARE = 0.5


def gives_up(state: SchedulerState, now_s: float) -> NDArray[np.int64]:
    """Waiting rows that would have their first token too late, in the order of the line."""
    rows = _unbegun(state)
    return rows[_give_up_s(state, rows) <= now_s]


def newest_first(state: SchedulerState, now_s: float) -> bool:
    """Whether those who wait are too many for their bounds, and become more."""
    return state.flow.grows and bool((_pressed_s(state, _unbegun(state)) <= now_s).any())


def next_change_s(state: SchedulerState, now_s: float) -> float:
    """First instant after `now_s` at which either says something else, if nothing happens."""
    rows = _unbegun(state)
    changes_s = _give_up_s(state, rows)
    if state.flow.grows and not newest_first(state, now_s):
        changes_s = np.concatenate([changes_s, _pressed_s(state, rows)])
    return float(changes_s[changes_s > now_s].min(initial=math.inf))


def _unbegun(state: SchedulerState) -> NDArray[np.int64]:
    """Waiting rows that were never given a token."""
    rows = state.line.rows()
    return rows[~state.has_begun(rows)]


def _give_up_s(state: SchedulerState, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return state.arrival_s[rows] + (1.0 - MARGIN_SHARE) * state.ttft_s[rows]


def _pressed_s(state: SchedulerState, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return state.arrival_s[rows] + PRESSED_SHARE * state.ttft_s[rows]
