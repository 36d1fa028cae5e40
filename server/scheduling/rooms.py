"""Free pages, and what may go for them: one room for all, or one for adapters and one for KV.

One pool is the rule; two rooms are the static split of other servers, kept as a baseline. Which
of the two it is, only this file knows. Decides nothing: draft.py asks, then takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .blocks import Blocks
from .eviction import EvictionOrder, Idle, IdleAdapter
from .line import NOBODY
from .records import PoolView, StepLimits


@dataclass(slots=True)
class Room:
    """Pages that one kind of thing, or every kind, may have."""

    free_pages: int
    order: EvictionOrder

    def reachable(self, enough: int, position: int) -> int:
        """Pages free, or to be had from what is first needed by someone behind `position`.

        Stops counting at `enough`, or tells the whole.
        """
        if position != NOBODY and self.free_pages >= enough:
            return self.free_pages
        return self.free_pages + self.order.reachable(enough - self.free_pages, position)

    def can_take(self, num_pages: int, position: int) -> bool:
        return num_pages <= self.reachable(num_pages, position)

    def take(self, num_pages: int, position: int) -> list[Idle]:
        """Returns what goes for them; ask `can_take` first."""
        gone: list[Idle] = []
        while self.free_pages < num_pages:
            gone.append(self.order.pop(position))
            self.free_pages += gone[-1].num_pages
        self.free_pages -= num_pages
        return gone


@dataclass(frozen=True, slots=True)
class Rooms:
    """The same room twice where there is one pool."""

    adapters: Room
    kv: Room


def no_adapters() -> list[IdleAdapter]:
    return []


def make_rooms(
    view: PoolView,
    limits: StepLimits,
    blocks: Blocks,
    *,
    find_adapters: Callable[[], list[IdleAdapter]],
    num_adapter_pages: int,
    end: int,
    over_cap: dict[str, int],
) -> Rooms:
    """`find_adapters`, `num_adapter_pages`: the idle ones; `end`: length of the line; `over_cap`:
    pages that tenants are to give first, by name.
    """
    num_blocks, share = view.prefixes.num_idle, limits.adapter_share_pages
    if share is None:
        num_pages = num_adapter_pages + num_blocks
        order = EvictionOrder(
            find_adapters, blocks, num_pages=num_pages, end=end, over_cap=over_cap
        )
        room = Room(view.num_free, order)
        return Rooms(room, room)
    free = share - sum(seen.num_pages for seen in view.adapters.values())
    adapters = EvictionOrder(
        find_adapters, None, num_pages=num_adapter_pages, end=end, over_cap=over_cap
    )
    kv = EvictionOrder(no_adapters, blocks, num_pages=num_blocks, end=end, over_cap=over_cap)
    return Rooms(Room(free, adapters), Room(view.num_free - free, kv))
