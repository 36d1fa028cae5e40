"""Scheduling policies: who comes first, and whether a newcomer may join those that run.

A policy is a sort key and a test, never a copy of the planner's loop, so that comparing two
policies compares nothing else. The key may not depend on the time, or 10,000 waiting requests
would have to be sorted again at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .records import Request


@dataclass(frozen=True, slots=True)
class Policy:
    """`sort_key`: smaller is older, that is, more important; ties go by order of arrival.

    `admits(newcomer, running, now_s)`: False lets the newcomer wait although there is room. It
    must be True when `running` is empty, or a request could wait for ever.
    """

    name: str
    sort_key: Callable[[Request], float]
    admits: Callable[[Request, Sequence[Request], float], bool]


def _by_arrival(request: Request) -> float:
    return request.arrival_s


def _always(newcomer: Request, running: Sequence[Request], now_s: float) -> bool:
    del newcomer, running, now_s
    return True


FCFS = Policy(name="fcfs", sort_key=_by_arrival, admits=_always)
