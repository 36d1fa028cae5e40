"""The loads of a run: a workload at rates that are told, or at shares of what a server carries.

Pure. Owns the loads of the full and of the quick run and their labels, and the requests of the
closed loop, which must have the workload's lengths and adapters and share no prefix with it.
Called by run.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from ..workload.records import Piece, Workload, WorkloadRequest
from .cells import Offer
from .rates import at_rate, mean_rate_per_s

LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)  # of the capacity
QUICK_LOADS = (0.7, 1.4)
# Seeds of prompts that no workload has: its own are below 2^53.
FRESH_SEED = 1 << 60


@dataclass(frozen=True, slots=True)
class Axis:
    """How much is offered; all empty: the workload as it was drawn."""

    loads: tuple[float, ...] = ()  # of the capacity
    rates_per_s: tuple[float, ...] = ()  # requests


def make_offers(workload: Workload, axis: Axis, *, capacity_per_s: float) -> tuple[Offer, ...]:
    """By rising rate."""
    told = [(f"{rate:g}/s", rate) for rate in axis.rates_per_s]
    told += [(f"{load:g}x", load * capacity_per_s) for load in axis.loads]
    offers = [Offer(label, rate, at_rate(workload, rate)) for label, rate in told]
    if not offers:
        return (Offer("as drawn", mean_rate_per_s(workload), workload),)
    return tuple(sorted(offers, key=lambda offer: offer.rate_per_s))


def shown_offer(offers: Sequence[Offer], *, capacity_per_s: float) -> Offer:
    """The one that plots of a single load show: the first above capacity, where policies part."""
    above = [offer for offer in offers if offer.rate_per_s > 1.1 * capacity_per_s]
    return above[0] if above else offers[-1]


def fresh_requests(workload: Workload, count: int) -> list[WorkloadRequest]:
    """As many of the workload's as asked for, over and over, each with a prompt of its own."""
    return [
        replace(request, prompt=(Piece(FRESH_SEED + idx, request.num_prompt_tokens),))
        for idx, request in enumerate(islice(cycle(workload.requests), count))
    ]
