"""How a request whose adapter is not in the pool may start, as the planner sees it.

Records only: the ways, what is known of an adapter on its way, what a way costs, and what was
chosen. The choice is cold_start.py's; what is seen is filled by server/memory, the prices by
whoever has the cost model. Instants are `now_s` of the engine's clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from .cost_model import NO_MODEL, CostModel


class Way(IntEnum):
    """After CaraServe (arXiv 2401.11240), whose requests are assisted; the order of preference
    between ways that are foretold alike.
    """

    WARM = 0  # the adapter was in the pool: nothing to choose
    WAIT = 1  # for the whole load
    STREAM = 2  # a layer is computed once it has landed
    ASSIST = 3  # layers that have not landed are computed by helpers, from the image in host memory


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """One adapter that is being loaded, or would be if it were ordered now."""

    landed_s: float  # instant, foretold: the whole image is in the pool
    begun_s: float  # instant, foretold: the wire is free for it and its first pages are there
    held_s: float  # instant, foretold: the whole image is in host memory; the past: it is
    is_open: bool  # its layout and its cells in host memory are known: a step may use it
    can_help: bool  # helpers may compute it: in the slab, not at the head, and none has failed it
    calls_share: float = 1.0  # of the hand-overs that a step can have, those it needs


class ColdView(Protocol):
    """Read-only facts about loads, asked for few adapters a step."""

    def on_its_way(self, adapter_id: int, num_bytes: int, now_s: float) -> OnItsWay:
        """Of one that is LOADING; of one that is ABSENT what would be, were it ordered now."""
        ...


@dataclass(frozen=True, slots=True)
class NoColdView:
    """Of a server that always waits."""

    def on_its_way(self, adapter_id: int, num_bytes: int, now_s: float) -> OnItsWay:
        del adapter_id, num_bytes
        return OnItsWay(now_s, now_s, now_s, is_open=False, can_help=False)


NO_COLD_VIEW = NoColdView()


@dataclass(frozen=True, slots=True)
class HelpCosts:
    """What helpers take, all of them together, sharing a prompt's tokens."""

    call_s: float = 0.0  # one hand-over, beyond what is computed meanwhile
    token_byte_s: float = 0.0  # seconds for one token and one byte of the adapter's weights
    num_calls: int = 0  # of one step, at most: groups of sites that share an input, in all layers

    @property
    def calls_s(self) -> float:
        """Of the rows of one adapter that changes every site, in one step."""
        return self.num_calls * self.call_s

    def compute_s(self, token_bytes: int) -> float:
        """`token_bytes`: tokens times their adapter's bytes, summed up."""
        return self.token_byte_s * token_bytes


@dataclass(frozen=True, slots=True)
class StartPrices:
    """What the choice is made by, as it is now."""

    ways: frozenset[Way] = frozenset({Way.WAIT})  # that are allowed; WAIT always is
    steps: CostModel = NO_MODEL
    help: HelpCosts = field(default_factory=HelpCosts)
    num_layers: int = 1
    slack_s: float = math.inf  # that helpers may hold up others by now


@dataclass(frozen=True, slots=True)
class Start:
    """What was chosen for one request."""

    way: Way
    reason: str  # one short clause, for people
    predicted_s: float  # duration: from the choice to the first token
    start_s: float  # instant from which it may run this way; the past: now
    # What each allowed way was foretold to take, for those who wonder.
    others_s: Mapping[Way, float] = field(default_factory=dict[Way, float])


@dataclass(frozen=True, slots=True)
class StartTold:
    """What became of a choice; the seam carries it to the front end."""

    way: Way
    reason: str
    predicted_s: float
    measured_s: float  # from the choice to the first token; 0: there was none


NO_PRICES = StartPrices()
