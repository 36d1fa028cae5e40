"""A run of the bench on servers that are up: unloaded figures, capacity, offers, cells.

Owns the order of these and their sizes; one thing at a time, since all share the machine. Knows
no process and no file: servers, the asking of one request and the sending of a workload are
handed in. Called by command.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..workload.records import Piece, Workload, WorkloadRequest
from .asking import AskOne
from .bounds import BoundsRule, FixedBounds, MultipleBounds, with_bounds
from .cells import Cell, Offer, Send, Server, run_cells
from .live import MAX_RUNNING
from .offers import FRESH_SEED, LOADS, QUICK_LOADS, Axis, fresh_requests, make_offers
from .rates import Capacity, measure_capacity
from .unloaded import NUM_RUNS, SoloFailed, measure_unloaded

# Bounds as multiples of the unloaded figures. First tokens: between Chameleon's 5 and S-LoRA's 6 s,
# which is 17 times the 0.36 s it takes at low load; on a CPU the prompts of two others in the same
# step are most of 5 already. The others: Toppings has 1.5, on devices where a row more in a step is
# nearly free; on a CPU it is not, and a full batch with prompts in between takes three to four
# times as long as a request alone.
TTFT_X, TPOT_X = 10.0, 5.0

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    axis: Axis = field(default_factory=lambda: Axis(LOADS))
    num_rounds: int = 3  # of fewer, the difference between repeats is a matter of luck
    num_solo_runs: int = NUM_RUNS
    num_in_flight: int = MAX_RUNNING  # of the closed loop: a full batch
    num_closed_loop: int = 120  # requests of it
    fixed: FixedBounds | None = None  # None: multiples of unloaded
    ttft_x: float = TTFT_X
    tpot_x: float = TPOT_X


QUICK = Plan(Axis(QUICK_LOADS), num_rounds=1, num_solo_runs=3, num_closed_loop=48)


@dataclass(frozen=True, slots=True)
class Measured:
    workload: Workload  # as drawn, with the bounds it was sent with
    rule: BoundsRule
    capacity: Capacity
    offers: tuple[Offer, ...]
    cells: tuple[Cell, ...]


async def prime(ask: AskOne, workload: Workload) -> None:
    """Each adapter once, the most popular last: so all servers begin with the same in their pools,
    whatever was measured on one of them before.

    Raises:
        SoloFailed: a request failed.
    """
    for adapter in sorted(workload.adapters, key=lambda one: one.weight):
        prompt = (Piece(FRESH_SEED - 2, 8),)
        reply = await ask(WorkloadRequest(0.0, adapter.name, prompt, num_new_tokens=2))
        if reply.error:
            raise SoloFailed(f"alone on the server, adapter {adapter.name} failed: {reply.error}")


class Hands(Protocol):
    """What reaches the servers."""

    def ask_alone(self, policy: str, work: Callable[[AskOne], Awaitable[Found]]) -> Found:
        """Runs `work`, which asks that policy's server, to its end."""
        ...

    def warm_up(self, policy: str) -> None: ...

    @property
    def send(self) -> Send: ...


def measure(
    workload: Workload,
    servers: Mapping[str, Server],
    hands: Hands,
    plan: Plan,
    *,
    now_s: Callable[[], float],
    tell: Callable[[str], None],
) -> Measured:
    """Unloaded figures are of the first policy's server: alone no policy has anything to decide,
    nor with never more requests than fit a batch. So the capacity is the best of all servers, from
    which whatever else the machine did took least. That each runs the closed loop makes it fair,
    too: a server that has computed nothing would be the slower one in its first cells.

    Raises:
        SoloFailed, NoCapacity, ServerUnfit: there is nothing to compare.
    """
    first = next(iter(servers))
    rule: BoundsRule
    if plan.fixed:
        rule = plan.fixed
    else:
        table = hands.ask_alone(
            first,
            lambda ask: measure_unloaded(ask, workload, num_runs=plan.num_solo_runs, tell=tell),
        )
        rule = MultipleBounds(table, ttft_x=plan.ttft_x, tpot_x=plan.tpot_x)
    loop = fresh_requests(workload, plan.num_closed_loop)
    capacities: list[Capacity] = []
    for policy in servers:
        found = hands.ask_alone(
            policy,
            lambda ask: measure_capacity(ask, loop, in_flight=plan.num_in_flight, now_s=now_s),
        )
        tell(f"closed loop, {policy}: {found.requests_per_s:.2f} requests/s")
        capacities.append(found)
    capacity = max(capacities, key=lambda one: one.requests_per_s)
    bounded = with_bounds(workload, rule)
    offers = make_offers(bounded, plan.axis, capacity_per_s=capacity.requests_per_s)
    for policy in servers:
        hands.ask_alone(policy, lambda ask: prime(ask, workload))
    cells = run_cells(
        servers,
        offers,
        num_rounds=plan.num_rounds,
        warm_up=hands.warm_up,
        send=hands.send,
        tell=tell,
    )
    return Measured(bounded, rule, capacity, offers, tuple(cells))
