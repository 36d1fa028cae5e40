"""Scheduling policies: who comes first, who may join, and who is not worth serving any more.

A policy is a few small functions of the table, never a copy of the planner's loop, so that
comparing two policies compares nothing else. The key may not depend on the time, or 10,000
waiting requests would have to be sorted again at every step; a policy may turn the line round
as a whole, which costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import early_abort
from .records import Request

if TYPE_CHECKING:
    from .state import SchedulerState


def _by_arrival(request: Request) -> float:
    return request.arrival_s


def _always(newcomer: Request, running: Sequence[Request], now_s: float) -> bool:
    del newcomer, running, now_s
    return True


_NOBODY = np.zeros(0, np.int64)


def _nobody(state: SchedulerState, now_s: float) -> NDArray[np.int64]:
    del state, now_s
    return _NOBODY


def _oldest_first(state: SchedulerState, now_s: float) -> bool:
    del state, now_s
    return False


def _timeless(state: SchedulerState, now_s: float) -> float:
    del state, now_s
    return math.inf


@dataclass(frozen=True, slots=True)
class Policy:
    """`sort_key`: smaller is older, that is, more important; ties go by order of arrival.

    `admits(newcomer, running, now_s)`: False lets the newcomer wait although there is room. It
    must be True when `running` is empty, or a request could wait for ever.

    `gives_up(state, now_s)`: waiting rows to be answered at once that they would be too late;
    none that has had a token.

    `newest_first(state, now_s)`: True turns the line round for this plan, but for those who have
    had a token: they stay in front, oldest first. Nobody is wronged by being passed then, so a
    policy that does this must see to it that everyone is given up in the end.

    `next_change_s(state, now_s)`: first instant after `now_s` at which any of these would say
    something else about the same table; inf: time alone changes nothing.
    """

    name: str
    sort_key: Callable[[Request], float]
    admits: Callable[[Request, Sequence[Request], float], bool]
    gives_up: Callable[[SchedulerState, float], NDArray[np.int64]] = _nobody
    newest_first: Callable[[SchedulerState, float], bool] = _oldest_first
    next_change_s: Callable[[SchedulerState, float], float] = _timeless


FCFS = Policy(name="fcfs", sort_key=_by_arrival, admits=_always)
SLORA = Policy(
    name="slora",
    sort_key=_by_arrival,
    admits=_always,
    gives_up=early_abort.gives_up,
    newest_first=early_abort.newest_first,
    next_change_s=early_abort.next_change_s,
)
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (FCFS, SLORA)}
