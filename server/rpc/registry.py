"""Which adapter a name means right now, and when its files may go.

Owns the cache of cards, the keys the engine may know, and those that are deleted or replaced
but perhaps still in use. Joins the store (durable truth) and the engine (who is using what);
all uploads and deletes of the server pass here, so the cache cannot go stale unnoticed.

A key's way out: the store drops the name; the engine is told to forget the key; it answers
Released when no request, page or host copy needs the files; only then are they purged. An
engine that is down or dies uses no files, so its keys are purged at once. A store worker that
starts is told which versions to keep (`store_ready`) and drops the others that nobody names;
a commit or delete that its death left unanswered is looked up then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ...adapters.errors import AdapterError, AdapterNotFound
from ...adapters.key import AdapterCard, AdapterKey
from ..errors import EngineUnavailable, LorryError
from ..store_messages import CardPage, Stored
from .pins import Pins, Place
from .store_client import StoreClient

MAX_CACHED_CARDS = 10_000

_log = logging.getLogger("lorry.rpc")

T = TypeVar("T")


class _Lookup:
    """A card being asked for; stale once its name changed meanwhile."""

    def __init__(self, answer: asyncio.Task[AdapterCard]) -> None:
        self.answer = answer
        self.num_waiting = 0
        self.stale = False


class AdapterRegistry:
    """`forget` tells the engine and returns whether it will answer Released; `pin` tells it and
    returns whether it is up.
    """

    def __init__(
        self,
        store: StoreClient,
        *,
        forget: Callable[[AdapterKey], bool],
        pin: Callable[[AdapterCard], bool],
    ) -> None:
        self._store = store
        self._forget = forget
        self.pins = Pins(pin)
        self._cards: dict[Place, AdapterCard] = {}  # oldest use first
        self._lookups: dict[Place, _Lookup] = {}
        self._given: dict[Place, AdapterKey] = {}  # submitted in this engine's life
        self._leaving: set[AdapterKey] = set()  # the engine owes a Released for these
        self._uploads: dict[int, Place] = {}  # begun, neither aborted nor committed
        self._doubtful: set[Place] = set()  # a change of theirs was never answered
        # Adapters by tenant, as far as the store has said; None: of all.
        self._num_stored: dict[str | None, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def resolve(self, tenant: str, name: str) -> AdapterCard:
        """The card to submit with; the caller submits without waiting in between.

        Raises:
            AdapterNotFound: no such name.
        """
        place = (tenant, name)
        while True:
            if (card := self._cards.pop(place, None)) is not None:
                return self._hand_out(card)
            lookup = self._lookups.get(place)
            if lookup is None or lookup.stale:
                lookup = _Lookup(self._keep(self._store.get_card(tenant, name)))
                self._lookups[place] = lookup
            try:
                card = await self._wait_for(lookup, place)
            except (LorryError, AdapterError):
                if not lookup.stale:
                    raise
                continue  # what failed was a version that is no more
            if not lookup.stale:
                return self._hand_out(card)

    async def _wait_for(self, lookup: _Lookup, place: Place) -> AdapterCard:
        """Registered until its last waiter has run on, so that a change meanwhile is seen."""
        lookup.num_waiting += 1
        try:
            return await asyncio.shield(lookup.answer)
        finally:
            lookup.num_waiting -= 1
            if lookup.num_waiting == 0 and self._lookups.get(place) is lookup:
                del self._lookups[place]

    async def card(self, tenant: str, name: str) -> AdapterCard:
        """As the store has it now."""
        return await self._store.get_card(tenant, name)

    async def page(self, tenant: str, *, prefix: str, limit: int, after: str) -> CardPage:
        return await self._store.list_cards(tenant, prefix=prefix, limit=limit, after=after)

    async def count(self, tenant: str | None = None) -> int:
        """Of all tenants when none is named. As the store last said, while it is down."""
        with contextlib.suppress(EngineUnavailable):
            self._num_stored[tenant] = await self._store.count_cards(tenant)
        return self._num_stored.get(tenant, 0)

    async def begin_upload(self, tenant: str, name: str, **announced: Any) -> int:
        """Raises what the store says; a caller that goes away meanwhile leaves nothing open."""
        task = self._keep(self._store.begin_upload(tenant, name, **announced))
        try:
            upload_id = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._abort_begun)
            raise
        self._uploads[upload_id] = (tenant, name)
        return upload_id

    async def upload_chunk(self, upload_id: int, data: bytes) -> None:
        await self._store.upload_chunk(upload_id, data)

    def abort_upload(self, upload_id: int) -> None:
        del self._uploads[upload_id]
        self._store.abort_upload(upload_id)

    async def commit_upload(self, upload_id: int) -> Stored:
        """Goes to its end even when the caller goes away."""
        return await asyncio.shield(self._keep(self._commit(upload_id)))

    async def delete(self, tenant: str, name: str) -> AdapterKey:
        """Goes to its end even when the caller goes away."""
        return await asyncio.shield(self._keep(self._delete(tenant, name)))

    def released(self, key: AdapterKey) -> None:
        self._leaving.discard(key)
        self._store.purge(key)

    def load_failed(self, key: AdapterKey) -> None:
        """The engine could not use this image: the store looks at it again before the next."""
        self._changed(key)
        self._store.unproven(key)

    def renew_pins(self) -> None:
        """An engine or a store has come up: what is pinned is looked up, and the engine told."""
        self._keep(self._renew_pins())

    async def _renew_pins(self) -> None:
        for place in self.pins.places:  # one by one: whoever asks the store meanwhile comes between
            if place in self.pins:
                await self._renew_pin(place)

    async def _renew_pin(self, place: Place) -> None:
        try:
            await self.resolve(*place)  # whatever is handed out is pinned
        except AdapterNotFound:
            self.pins.remove(place)  # a delete that died with a store
        except (LorryError, AdapterError) as error:
            _log.warning("%s/%s is pinned and cannot be loaded: %s", *place, error)

    def engine_lost(self) -> None:
        """No process uses any file of theirs any more."""
        self.pins.engine_lost()
        # A doubtful key may still be what its name means: then the store keeps its files.
        for key in (*self._leaving, *(self._given[place] for place in self._doubtful)):
            self._store.purge(key)
        self._leaving.clear()
        self._given.clear()
        self._doubtful.clear()

    def store_lost(self) -> None:
        """What it did last is unknown: ask again."""
        self.drop_cards()

    def drop_cards(self) -> None:
        """Nothing the store said before this is believed any more."""
        self._cards.clear()
        for lookup in self._lookups.values():
            lookup.stale = True

    def store_ready(self, num_adapters: int) -> None:
        """Before anything else is asked of a store that has just opened."""
        self._num_stored = {None: num_adapters}
        doubtful = [self._given[place] for place in self._doubtful]
        self._store.sweep((*self._leaving, *doubtful))

    def settle(self) -> None:
        """Once the store knows the layout: what became of the changes it never answered?"""
        while self._doubtful:
            place = self._doubtful.pop()
            self._keep(self._settle(place, self._given[place]))

    async def _settle(self, place: Place, given: AdapterKey) -> None:
        try:
            current = (await self._store.get_card(*place)).key
        except AdapterNotFound:
            current = None
        except (LorryError, AdapterError) as error:
            if self._given.get(place) == given:
                self._doubtful.add(place)  # for the next store that opens
            _log.warning("%s could not be looked up again: %s", given, error)
            return
        if current == given:
            return
        if self._given.get(place) == given:
            self._retire(given)
        else:
            self._store.purge(given)  # the engine that had it is gone; a second purge is nothing

    async def _commit(self, upload_id: int) -> Stored:
        place = self._uploads.pop(upload_id)
        try:
            stored = await self._store.commit_upload(upload_id)
        except EngineUnavailable:
            self._doubt(place)
            raise
        if stored.created:
            if stored.replaced is None:
                self._counted(stored.card.key.tenant, 1)
            self._changed(stored.card.key)
        if stored.replaced is not None:
            self._retire(stored.replaced)
            if place in self.pins:
                self._keep(self._renew_pin(place))
        return stored

    async def _delete(self, tenant: str, name: str) -> AdapterKey:
        try:
            key = await self._store.delete(tenant, name)
        except EngineUnavailable:
            self._doubt((tenant, name))
            raise
        self._counted(tenant, -1)
        self.pins.remove((tenant, name))
        self._retire(key)
        return key

    def _counted(self, tenant: str, change: int) -> None:
        for scope in (None, tenant):
            if scope in self._num_stored:
                self._num_stored[scope] += change

    def _doubt(self, place: Place) -> None:
        if place in self._given:
            self._doubtful.add(place)

    def _retire(self, key: AdapterKey) -> None:
        place = (key.tenant, key.name)
        self._changed(key)
        if self._given.get(place) == key:
            del self._given[place]
            self._doubtful.discard(place)
        if key in self._leaving:
            return
        if self._forget(key):
            self._leaving.add(key)
        else:
            self._store.purge(key)

    def _changed(self, key: AdapterKey) -> None:
        place = (key.tenant, key.name)
        self._cards.pop(place, None)
        if (lookup := self._lookups.get(place)) is not None:
            lookup.stale = True

    def _hand_out(self, card: AdapterCard) -> AdapterCard:
        place = (card.key.tenant, card.key.name)
        given = self._given.get(place)
        if given is not None and given != card.key:
            self._retire(given)  # the answer that replaced it is late, or died with a store
        self._given[place] = card.key
        self._cards[place] = card
        self.pins.handed_out(card)
        if len(self._cards) > MAX_CACHED_CARDS:
            del self._cards[next(iter(self._cards))]
        return card

    def _abort_begun(self, task: asyncio.Task[int]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._store.abort_upload(task.result())

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task nobody may drop: the loop itself holds tasks only weakly."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever still waits hears it, a caller that left does not
