"""A workload as plain data: adapters with their ranks, and requests with their instants.

The one thing that the generators make, the file keeps, the open-loop client sends and the
simulator runs. Knows neither models nor servers: adapters are names, prompts are recipes for
tokens, instants count from the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

BASE = ""  # the adapter of a request to the base model


class Piece(NamedTuple):
    """A stretch of a prompt. Its tokens depend on these two numbers alone, and a shorter piece of
    the same seed begins like a longer one: so equal beginnings are shared prefixes.
    """

    seed: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class WorkloadAdapter:
    name: str
    rank: int
    weight: float  # share of the requests it is meant to get; all of a workload add up to 1


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    at_s: float  # instant at which it is due, from the start of the run
    adapter: str  # a name among the workload's; BASE: none
    prompt: tuple[Piece, ...]  # at least one
    num_new_tokens: int  # exactly so many are made: nothing ends an answer earlier
    session: int = -1  # conversation whose turn this is; -1: it stands alone
    turn: int = 0  # of that conversation, from 0
    ttft_s: float = 0.0  # bounds of its own; 0: those of the run
    tpot_s: float = 0.0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(piece.num_tokens for piece in self.prompt)


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    seed: int
    recipe: str  # JSON of the settings it was drawn with; "": it came from elsewhere
    adapters: tuple[WorkloadAdapter, ...]
    requests: tuple[WorkloadRequest, ...]  # by `at_s`

    @property
    def span_s(self) -> float:
        """Instant of the last request."""
        return self.requests[-1].at_s if self.requests else 0.0
