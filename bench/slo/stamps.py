"""What happened to each request of a run, by one clock: the raw result all figures come from.

Written by the open-loop client and by the simulator alike. Instants count from the start of the
run, on the clock of whoever sent. Knows no bounds and draws no conclusions (figures.py does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a request ended; everything but OK is a miss."""

    OK = "ok"  # all its tokens came
    REFUSED = "refused"  # the server said no: full, or given up early
    TIMEOUT = "timeout"  # it did not end within the client's patience
    FAILED = "failed"  # any other error, or fewer tokens than asked for


@dataclass(frozen=True, slots=True)
class RequestStamps:
    index: int  # of the workload's request
    due_s: float  # when it was to leave
    sent_s: float  # when it left
    outcome: Outcome
    end_s: float  # its last word, whatever that was
    piece_s: tuple[float, ...] = ()  # when each piece of the answer came
    piece_tokens: tuple[int, ...] = ()  # and how many tokens it held
    error: str = ""  # status and message of what was not OK

    @property
    def first_s(self) -> float:
        """NaN: no token came."""
        return self.piece_s[0] if self.piece_s else math.nan

    @property
    def last_s(self) -> float:
        return self.piece_s[-1] if self.piece_s else math.nan

    @property
    def num_tokens(self) -> int:
        return sum(self.piece_tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """One workload sent once: to one server under one policy, or to the simulator."""

    policy: str
    requests: tuple[RequestStamps, ...]  # in the workload's order, none left out
    simulated: bool = False
