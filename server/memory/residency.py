"""Residency: which adapter is where, in which slot, and who still needs it.

Owns handles (`adapter_id`), slots, users, load orders and the usage book; page numbers come from
the pool, bytes are the link's business. Does not choose whom to load or evict (scheduling does,
by the worth that the economy gives). Called by the engine: commands (`intern`, `use`, `leave`,
`doom`, wishes), link events (`drain`), plans (`apply`). An adapter is ABSENT -> LOADING ->
RESIDENT -> ABSENT; a failed or cancelled load goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from ...adapters.key import AdapterCard, AdapterKey
from ..errors import InternalError
from ..scheduling.prefix_view import PrefixView
from ..scheduling.records import PlannedLoad, PoolView, StepPlan, Wish
from ..scheduling.starts import NO_PRICES, StartPrices
from .cold import ColdFacts, ColdLoads
from .economy import Economy
from .link_records import (
    LayerLanded,
    Link,
    LinkEvent,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from .pool import AdapterOwner, Pool
from .residency_records import (
    Applied,
    Arrived,
    Broken,
    Departed,
    Entry,
    Met,
    News,
    Place,
    ResidentStats,
)
from .shown import Shown, any_price
from .usage import UsageBook
from .wishes import Wanted, Wishes


class Residency:
    """Handles are small and reused: one without users and pages is forgotten.

    A handle that was interned but not put to use by the next `apply` is forgotten then.
    `reload_s`: how long an adapter would take to come back, `cross_s`: if it were in host
    memory (None: the same). `by_popularity`: also who is asked for often is wished for while it is
    away. `cold`: loads under way may be used; None: nobody is told that one is open.
    """

    def __init__(
        self,
        pool: Pool,
        link: Link,
        *,
        max_slots: int,
        economy: Economy,
        reload_s: Callable[[AdapterCard], float] = any_price,
        cross_s: Callable[[AdapterCard], float] | None = None,
        by_popularity: bool = False,
        cold: ColdFacts | None = None,
    ) -> None:
        self._pool, self._link, self.economy = pool, link, economy
        self._shown = Shown(economy, reload_s=reload_s, cross_s=cross_s or reload_s)
        self._book = UsageBook(economy)
        self.wishes = Wishes(
            self._book,
            worth=self._shown.wish_worth,
            changed=self._wish_changed,
            by_popularity=by_popularity,
        )
        # What the wishes come to; None: to be asked again, something has changed.
        self._wanted: list[Wanted] | None = None
        self.num_prefetches = 0  # loads that nobody in the line waited for
        self.num_cancelled = 0  # loads
        self._entries: dict[int, Entry] = {}
        self._ids: dict[AdapterKey, int] = {}
        self._loads: dict[int, int] = {}  # load_id -> adapter_id, of loads under way
        self._cold = ColdLoads(cold, self._entries, self._loads, pool=pool, link=link)
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
        self._entries[adapter_id] = Entry(card)
        self._unused.add(adapter_id)
        return adapter_id

    def use(self, adapter_id: int, now_s: float) -> None:
        """One more request names it."""
        entry = self._entry(adapter_id)
        entry.num_users += 1
        self._unused.discard(adapter_id)
        self._book.asked(entry.card, now_s, in_pool=entry.place is Place.RESIDENT)
        self._show(adapter_id)

    def leave(self, adapter_id: int, now_s: float) -> None:
        """A request that named it has ended, whatever became of it."""
        entry = self._entry(adapter_id)
        if entry.num_users == 0:
            raise InternalError(f"{entry.card.key} has no users, yet one leaves")
        entry.num_users -= 1
        entry.last_used_s = now_s
        if not entry.num_users:
            self._book.rested(entry.card.key, now_s)
        self._show(adapter_id)
        self._settle(adapter_id)

    def doom(self, key: AdapterKey) -> None:
        """Deleted or replaced: goes when it has no users and is not on its way."""
        self.wishes.forget(key)
        self._book.forget(key)
        self._wanted = None
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

    def is_doomed(self, adapter_id: int) -> bool:
        return self._entry(adapter_id).doomed

    def absent_card(self, adapter_id: int) -> AdapterCard | None:
        """None: it is in the pool or on its way."""
        entry = self._entry(adapter_id)
        return entry.card if entry.place is Place.ABSENT else None

    def met(self, key: AdapterKey) -> Met:
        """How requests have met this adapter; it may never have been heard of."""
        adapter_id = self._ids.get(key)
        entry = None if adapter_id is None else self._entries[adapter_id]
        return Met(
            place=entry.place if entry else Place.ABSENT,
            pinned=self.wishes.is_pinned(key),
            num_pages=entry.card.num_pages if entry and entry.place is not Place.ABSENT else 0,
            num_users=entry.num_users if entry else 0,
            usage=self._book.of(key),
        )

    def view(
        self, tokens_per_page: int, prefixes: PrefixView, prices: StartPrices = NO_PRICES
    ) -> PoolView:
        """What the planner may see of memory; `prices` are carried, not read."""
        return PoolView(
            num_pages=self._pool.num_pages,
            num_free=self._pool.num_free,
            tokens_per_page=tokens_per_page,
            num_free_slots=len(self._free_slots),
            adapters=dict(self._shown.placed),
            prefixes=prefixes,
            wishes=self._shown_wishes(),
            cold=self._cold.view,
            prices=prices,
        )

    def apply(self, plan: StepPlan) -> Applied:
        """After `pool.apply`: forgets what was evicted, starts the loads on the link.

        Raises:
            InternalError: the plan does not fit what is here.
        """
        for adapter_id in plan.evictions:
            entry = self._entry(adapter_id)
            if entry.place is not Place.RESIDENT:
                raise InternalError(f"the plan evicts {entry.card.key}, which is {entry.place}")
            self._depart(adapter_id)
        orders = tuple(self._order(load, plan.now_s) for load in plan.loads)
        for order in orders:
            opened = self._link.start(order)
            if opened is not None:
                self._cold.open(opened, plan.now_s)
        for adapter_id in tuple(self._unused):
            self._forget(adapter_id)
        return Applied(orders, self._cold.take_openings())

    def drain(self, events: Iterable[LinkEvent], now_s: float) -> tuple[News, ...]:
        """Takes in what the link says; events of loads that are over are ignored.

        Nobody hears of an opening whose load has ended by now.
        """
        ends: list[News] = []
        for event in events:
            adapter_id = self._loads.get(event.load_id)
            match event:
                case Opened():
                    self._cold.open(event, now_s)
                case LayerLanded(layer=layer):
                    if adapter_id is not None:
                        entry = self._entries[adapter_id]
                        entry.landed_layers = max(entry.landed_layers, layer + 1)
                case Loaded() | LoadFailed():
                    if adapter_id is not None:
                        self._cold.over(event, now_s)
                        ends += self._end(event, adapter_id, now_s)
        return (*self._cold.take_openings(), *ends)

    def _end(self, event: Loaded | LoadFailed, adapter_id: int, now_s: float) -> list[News]:
        entry = self._entries[adapter_id]
        del self._loads[event.load_id]
        match event:
            case Loaded(layout=layout, seconds=seconds, read_s=read_s):
                self.wishes.arrived(entry.card.key)
                self._book.loaded(entry.card.key, seconds=seconds, read_s=read_s)
                if entry.doomed and not entry.num_users:
                    self._depart(adapter_id)
                    return []
                entry.place, entry.last_used_s = Place.RESIDENT, now_s
                self._show(adapter_id)
                pages = self._pool.pages_of(AdapterOwner(adapter_id))
                return [Arrived(adapter_id, entry.slot, pages, layout)]
            case LoadFailed(error=LoadCancelled()):
                # Whoever has come meanwhile waits on: the planner orders it again.
                self.num_cancelled += 1
                self._depart(adapter_id)
                return []
            case LoadFailed(error=error):
                self.wishes.failed(entry.card.key)
                self._depart(adapter_id)
                return [Broken(adapter_id, error)] if adapter_id in self._entries else []

    def no_help(self, adapter_id: int) -> None:
        """Helpers have failed it: for the load under way they are not asked again."""
        self._entry(adapter_id).can_help = False

    def shut(self, adapter_id: int) -> None:
        """It could not be attached cold: nobody starts on the load under way."""
        self._entry(adapter_id).is_open = False

    def expel(self, adapter_id: int) -> None:
        """An adapter that arrived and could not be attached: its pages and slot go back.

        Those who name it are the engine's to answer; one more `use` would load it again.
        """
        entry = self._entry(adapter_id)
        entry.place = Place.LOADING  # for nobody it has been resident
        self.wishes.failed(entry.card.key)
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
            for adapter_id in sorted(self._shown.placed)
            for entry in (self._entries[adapter_id],)
        )

    def _entry(self, adapter_id: int) -> Entry:
        entry = self._entries.get(adapter_id)
        if entry is None:
            raise InternalError(f"no adapter has the handle {adapter_id}")
        return entry

    def _order(self, load: PlannedLoad, now_s: float) -> LoadOrder:
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
        entry.prefetched = not entry.num_users
        self.num_prefetches += entry.prefetched
        self._next_load_id += 1
        self._loads[entry.load_id] = load.adapter_id
        self._cold.ordered(entry, now_s)
        self._show(load.adapter_id)
        self._unused.discard(load.adapter_id)
        return LoadOrder(entry.load_id, load.adapter_id, entry.slot, entry.card, pages)

    def _show(self, adapter_id: int) -> None:
        """To the planner, as it is now: after every change of what it sees."""
        self._wanted = None
        entry = self._entries[adapter_id]
        key = entry.card.key
        pinned = self.wishes.is_pinned(key)
        self._shown.show(adapter_id, entry, self._book.of(key), pinned=pinned)

    def _wish_changed(self, key: AdapterKey) -> None:
        self._wanted = None
        if key in self._ids:
            self._show(self._ids[key])

    def _shown_wishes(self) -> tuple[Wish, ...]:
        """With handles that last until the next `apply`; none while the link is somebody's: to look
        for them would be a walk over all that are waited for, at each step.
        """
        if self._loads or self._shown.lacked:
            return ()
        if self._wanted is None:
            self._wanted = self.wishes.shown(self._is_near)
        return tuple(
            Wish(self.intern(card), card.num_pages, worth, card.key.tenant)
            for card, worth in self._wanted
        )

    def _is_near(self, key: AdapterKey) -> bool:
        """In the pool or on its way; or somebody waits for it, and the line has it brought."""
        adapter_id = self._ids.get(key)
        if adapter_id is None:
            return False
        entry = self._entries[adapter_id]
        return entry.place is not Place.ABSENT or entry.num_users > 0

    def _settle(self, adapter_id: int) -> None:
        """Lets go of an adapter nobody needs: at once when doomed, else when it has no pages."""
        entry = self._entries[adapter_id]
        if entry.num_users:
            return
        if entry.place is Place.LOADING:
            # One that was wished for goes on: whoever left had only joined in.
            if entry.doomed or not (entry.prefetched or self.wishes.is_pinned(entry.card.key)):
                entry.given_up = True
                self._link.cancel(entry.load_id)
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
        attached = entry.place is Place.RESIDENT or entry.is_open
        if attached or released:
            slot = entry.slot if attached else -1
            self._departed.append(Departed(entry.card.key, slot, released))
        if entry.slot >= 0:
            heappush(self._free_slots, entry.slot)
        entry.place, entry.slot, entry.load_id, entry.landed_layers = Place.ABSENT, -1, -1, 0
        entry.is_open = entry.can_help = entry.given_up = False
        self._show(adapter_id)
        if released:
            self._forget(adapter_id)
        elif entry.num_users == 0:
            self._unused.add(adapter_id)

    def _forget(self, adapter_id: int) -> None:
        entry = self._entries.pop(adapter_id)
        del self._ids[entry.card.key]
        self._unused.discard(adapter_id)
        heappush(self._free_ids, adapter_id)
