"""Residency: which adapter is where, in which slot, and who still needs it.

Owns handles (`adapter_id`), slots, users and load orders; page numbers come from the pool,
bytes are the link's business. Does not choose whom to load or evict (scheduling does).
Called by the engine: commands (`intern`, `use`, `leave`, `doom`), link events (`drain`), plans
(`apply`). An adapter is ABSENT -> LOADING -> RESIDENT -> ABSENT; a failed load goes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush

from ...adapters.image import ImageLayout
from ...adapters.key import AdapterCard, AdapterKey
from ..errors import InternalError
from ..scheduling.records import AdapterView, PlannedLoad, PoolView, StepPlan
from .link_records import LayerLanded, Link, LinkEvent, Loaded, LoadFailed, LoadOrder
from .pool import AdapterOwner, Pool


class Place(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(frozen=True, slots=True)
class Arrived:
    """An adapter has become resident: attach it, and tell the scheduler's table."""

    adapter_id: int
    slot: int
    pages: tuple[int, ...]
    layout: ImageLayout


@dataclass(frozen=True, slots=True)
class Broken:
    """A load failed; its pages are free again. Those who name the adapter must be answered."""

    adapter_id: int
    error: Exception  # AdapterError


@dataclass(frozen=True, slots=True)
class Departed:
    """An adapter is not resident any more, or a doomed one has been let go of."""

    key: AdapterKey
    slot: int  # to detach; -1: it was never announced by `Arrived`
    released: bool  # deleted or replaced and without users: nothing of it will be asked for again


@dataclass(frozen=True, slots=True)
class ResidentStats:
    key: AdapterKey
    adapter_id: int
    num_pages: int
    loading: bool
    num_users: int  # requests that name it, waiting or running


@dataclass(slots=True)
class _Entry:
    card: AdapterCard
    place: Place = Place.ABSENT
    slot: int = -1
    load_id: int = -1  # of the load under way
    landed_layers: int = 0  # of the load under way: layers 0 to this one, excluded, are there
    num_users: int = 0
    last_used_s: float = 0.0
    doomed: bool = False


class Residency:
    """Handles are small and reused: one without users and pages is forgotten.

    A handle that was interned but not put to use by the next `apply` is forgotten then.
    """

    def __init__(self, pool: Pool, link: Link, *, max_slots: int) -> None:
        self._pool, self._link = pool, link
        self._entries: dict[int, _Entry] = {}
        self._ids: dict[AdapterKey, int] = {}
        self._loads: dict[int, int] = {}  # load_id -> adapter_id, of loads under way
        # Those not ABSENT, as the planner sees them: it looks at every step, they change seldom.
        self._placed: dict[int, AdapterView] = {}
        self._unused: set[int] = set()  # ABSENT without users, forgotten at the next apply
        self._free_ids: list[int] = []  # heaps: small numbers first
        self._free_slots = list(range(max_slots))
        self._next_load_id = 0
        self._departed: list[Departed] = []

    def intern(self, card: AdapterCard) -> int:
        """The handle of this adapter; the same key has the same handle while it is in use."""
        adapter_id = self._ids.get(card.key)
        if adapter_id is not None:
            self._entries[adapter_id].card = card
            self._show(adapter_id)
            return adapter_id
        adapter_id = heappop(self._free_ids) if self._free_ids else len(self._entries)
        self._ids[card.key] = adapter_id
        self._entries[adapter_id] = _Entry(card)
        self._unused.add(adapter_id)
        return adapter_id

    def use(self, adapter_id: int) -> None:
        """One more request names it."""
        self._entry(adapter_id).num_users += 1
        self._unused.discard(adapter_id)

    def leave(self, adapter_id: int, now_s: float) -> None:
        """A request that named it has ended, whatever became of it."""
        entry = self._entry(adapter_id)
        if entry.num_users == 0:
            raise InternalError(f"{entry.card.key} has no users, yet one leaves")
        entry.num_users -= 1
        entry.last_used_s = now_s
        self._show(adapter_id)
        self._settle(adapter_id)

    def doom(self, key: AdapterKey) -> None:
        """Deleted or replaced: goes when it has no users and is not on its way."""
        adapter_id = self._ids.get(key)
        if adapter_id is None:
            self._departed.append(Departed(key, -1, released=True))
            return
        self._entries[adapter_id].doomed = True
        self._settle(adapter_id)

    def is_resident(self, adapter_id: int) -> bool:
        return self._entry(adapter_id).place is Place.RESIDENT

    def landed(self, adapter_id: int, layer: int) -> bool:
        """Whether everything of layers 0 to `layer` is in the pool."""
        entry = self._entry(adapter_id)
        return entry.place is Place.RESIDENT or layer < entry.landed_layers

    def slot_of(self, adapter_id: int) -> int:
        """-1: it holds none."""
        return self._entry(adapter_id).slot

    def key_of(self, adapter_id: int) -> AdapterKey:
        return self._entry(adapter_id).card.key

    def view(self, tokens_per_page: int) -> PoolView:
        """What the planner may see of memory."""
        return PoolView(
            num_pages=self._pool.num_pages,
            num_free=self._pool.num_free,
            tokens_per_page=tokens_per_page,
            num_free_slots=len(self._free_slots),
            adapters=dict(self._placed),
        )

    def apply(self, plan: StepPlan) -> tuple[LoadOrder, ...]:
        """After `pool.apply`: forgets what was evicted, starts the loads on the link.

        Raises:
            InternalError: the plan does not fit what is here.
        """
        for adapter_id in plan.evictions:
            entry = self._entry(adapter_id)
            if entry.place is not Place.RESIDENT:
                raise InternalError(f"the plan evicts {entry.card.key}, which is {entry.place}")
            self._depart(adapter_id)
        orders = tuple(self._order(load) for load in plan.loads)
        for order in orders:
            self._link.start(order)
        for adapter_id in tuple(self._unused):
            self._forget(adapter_id)
        return orders

    def drain(self, events: Iterable[LinkEvent], now_s: float) -> tuple[Arrived | Broken, ...]:
        """Takes in what the link says; events of loads that are over are ignored."""
        news: list[Arrived | Broken] = []
        for event in events:
            adapter_id = self._loads.get(event.load_id)
            if adapter_id is None:
                continue
            entry = self._entries[adapter_id]
            match event:
                case LayerLanded(layer=layer):
                    entry.landed_layers = max(entry.landed_layers, layer + 1)
                case Loaded(layout=layout):
                    del self._loads[event.load_id]
                    if entry.doomed and not entry.num_users:
                        self._depart(adapter_id)
                        continue
                    entry.place, entry.last_used_s = Place.RESIDENT, now_s
                    self._show(adapter_id)
                    pages = self._pool.pages_of(AdapterOwner(adapter_id))
                    news.append(Arrived(adapter_id, entry.slot, pages, layout))
                case LoadFailed(error=error):
                    del self._loads[event.load_id]
                    self._depart(adapter_id)
                    if adapter_id in self._entries:
                        news.append(Broken(adapter_id, error))
        return tuple(news)

    def expel(self, adapter_id: int) -> None:
        """An adapter that arrived and could not be attached: its pages and slot go back.

        Those who name it are the engine's to answer; one more `use` would load it again.
        """
        self._entry(adapter_id).place = Place.LOADING  # for nobody it has been resident
        self._depart(adapter_id)

    def take_departed(self) -> tuple[Departed, ...]:
        """Who has left since the last call, oldest first: slots to detach, keys to release.

        To be called before the next `Arrived` is attached, since slots are given again.
        """
        departed, self._departed = tuple(self._departed), []
        return departed

    def stats(self) -> tuple[ResidentStats, ...]:
        """Everyone who holds pages, by handle."""
        return tuple(
            ResidentStats(
                key=entry.card.key,
                adapter_id=adapter_id,
                num_pages=entry.card.num_pages,
                loading=entry.place is Place.LOADING,
                num_users=entry.num_users,
            )
            for adapter_id in sorted(self._placed)
            for entry in (self._entries[adapter_id],)
        )

    def _entry(self, adapter_id: int) -> _Entry:
        entry = self._entries.get(adapter_id)
        if entry is None:
            raise InternalError(f"no adapter has the handle {adapter_id}")
        return entry

    def _order(self, load: PlannedLoad) -> LoadOrder:
        entry = self._entry(load.adapter_id)
        pages = self._pool.pages_of(AdapterOwner(load.adapter_id))
        if entry.place is not Place.ABSENT or len(pages) != entry.card.num_pages:
            raise InternalError(
                f"the plan loads {entry.card.key} of {entry.card.num_pages} pages into "
                f"{len(pages)}; it is {entry.place}"
            )
        if not self._free_slots:
            raise InternalError(f"the plan loads {entry.card.key}, no slot is free")
        entry.place, entry.slot = Place.LOADING, heappop(self._free_slots)
        entry.load_id, entry.landed_layers = self._next_load_id, 0
        self._next_load_id += 1
        self._loads[entry.load_id] = load.adapter_id
        self._show(load.adapter_id)
        self._unused.discard(load.adapter_id)
        return LoadOrder(entry.load_id, load.adapter_id, entry.slot, entry.card, pages)

    def _show(self, adapter_id: int) -> None:
        """To the planner, as it is now: after every change of what `AdapterView` holds."""
        entry = self._entries[adapter_id]
        if entry.place is not Place.ABSENT:
            self._placed[adapter_id] = AdapterView(
                num_pages=entry.card.num_pages,
                resident=entry.place is Place.RESIDENT,
                last_used_s=entry.last_used_s,
            )

    def _settle(self, adapter_id: int) -> None:
        """Lets go of an adapter nobody needs: at once when doomed, else when it has no pages."""
        entry = self._entries[adapter_id]
        if entry.num_users or entry.place is Place.LOADING:
            return
        if entry.doomed:
            self._depart(adapter_id)
        elif entry.place is Place.ABSENT:
            self._unused.add(adapter_id)

    def _depart(self, adapter_id: int) -> None:
        """Pages and slot go back; pages of an eviction have gone with `pool.apply`."""
        entry = self._entries[adapter_id]
        self._pool.release(AdapterOwner(adapter_id))
        released = entry.doomed and entry.num_users == 0
        attached = entry.place is Place.RESIDENT
        if attached or released:
            slot = entry.slot if attached else -1
            self._departed.append(Departed(entry.card.key, slot, released))
        if entry.slot >= 0:
            heappush(self._free_slots, entry.slot)
        entry.place, entry.slot, entry.load_id, entry.landed_layers = Place.ABSENT, -1, -1, 0
        self._placed.pop(adapter_id, None)
        if released:
            self._forget(adapter_id)
        elif entry.num_users == 0:
            self._unused.add(adapter_id)

    def _forget(self, adapter_id: int) -> None:
        entry = self._entries.pop(adapter_id)
        del self._ids[entry.card.key]
        self._unused.discard(adapter_id)
        heappush(self._free_ids, adapter_id)
