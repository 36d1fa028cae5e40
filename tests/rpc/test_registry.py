"""The registry against a store whose answers come exactly when the test says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from lorry.adapters.errors import AdapterLoadFailed, AdapterNotFound
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.rpc.registry import AdapterRegistry
from lorry.server.rpc.store_client import StoreClient
from lorry.server.store_messages import Stored
from lorry.tests.access_builders import make_card_of
from lorry.tests.rpc_builders import make_card


class ScriptedStore:
    """Each question is a future the test answers."""

    def __init__(self) -> None:
        self.cards: list[asyncio.Future[AdapterCard]] = []
        self.deletes: list[asyncio.Future[AdapterKey]] = []
        self.commits: list[asyncio.Future[Stored]] = []
        self.purged: list[AdapterKey] = []

    async def get_card(self, tenant: str, name: str) -> AdapterCard:
        self.cards.append(asyncio.Future())
        return await self.cards[-1]

    async def delete(self, tenant: str, name: str) -> AdapterKey:
        self.deletes.append(asyncio.Future())
        return await self.deletes[-1]

    async def begin_upload(self, tenant: str, name: str) -> int:
        return 1

    async def commit_upload(self, upload_id: int) -> Stored:
        self.commits.append(asyncio.Future())
        return await self.commits[-1]

    def purge(self, key: AdapterKey) -> None:
        self.purged.append(key)


class Desk:
    """A registry, its store, and an engine that only listens."""

    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.forgotten: list[AdapterKey] = []
        self.engine_up = True
        self.pinned: list[AdapterCard] = []  # what the engine was told to keep
        self.registry = AdapterRegistry(
            cast(StoreClient, self.store), forget=self._forget, pin=self._pin
        )

    def _pin(self, card: AdapterCard) -> bool:
        if self.engine_up:
            self.pinned.append(card)
        return self.engine_up

    def _forget(self, key: AdapterKey) -> bool:
        if self.engine_up:
            self.forgotten.append(key)
        return self.engine_up

    async def resolve(self) -> AdapterKey:
        """Stands for a submission: what it returns was current when it returned."""
        card = await self.registry.resolve("default", "upper")
        assert card.key not in self.forgotten
        return card.key


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(body: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await body()

    asyncio.run(main())


def test_no_card_is_handed_out_after_the_engine_was_told_to_forget_it():
    """Broken: a deleted adapter is loaded again, after its files were purged."""
    old, new = make_card(version=1), make_card(version=2)

    async def body() -> None:
        retried = 0
        for distance in range(8):  # loop turns between the answer to Get and the replacement
            desk = Desk()
            upload_id = await desk.registry.begin_upload("default", "upper")
            asking = [asyncio.create_task(desk.resolve()) for _ in range(3)]
            committing = asyncio.create_task(desk.registry.commit_upload(upload_id))
            await turns(3)
            assert len(desk.store.cards) == 1  # one question for all who ask
            desk.store.cards[0].set_result(old)
            await turns(distance)
            desk.store.commits[0].set_result(Stored(new, old.key, True))
            await committing
            await turns(4)
            if len(desk.store.cards) > 1:
                retried += 1
                desk.store.cards[1].set_result(new)
            await asyncio.gather(*asking)
            assert desk.forgotten == [old.key]
        assert 0 < retried < 8

    run(body)


def test_two_tenants_who_ask_for_one_name_at_once_get_two_answers():
    """Broken: whoever asks second is given the first one's adapter, being of the same name."""

    async def body() -> None:
        desk = Desk()
        tenants = ("acme", "rival", "acme")
        asking = [asyncio.create_task(desk.registry.resolve(t, "upper")) for t in tenants]
        await turns(3)
        assert len(desk.store.cards) == 2
        for future, tenant in zip(desk.store.cards, ("acme", "rival"), strict=True):
            future.set_result(make_card_of(tenant, "upper"))
        cards = await asyncio.gather(*asking)
        assert [card.key.tenant for card in cards] == list(tenants)
        for tenant in tenants:  # and again from memory
            assert (await desk.registry.resolve(tenant, "upper")).key.tenant == tenant
        assert len(desk.store.cards) == 2

    run(body)


def test_the_store_is_asked_once_for_a_name_that_does_not_change():
    """Broken: every request costs a trip to the store's process."""

    async def body() -> None:
        desk = Desk()
        first = asyncio.create_task(desk.resolve())
        await turns(2)
        desk.store.cards[0].set_result(make_card())
        await first
        assert await desk.resolve() == make_card().key
        assert len(desk.store.cards) == 1
        desk.registry.store_lost()
        again = asyncio.create_task(desk.resolve())
        await turns(2)
        desk.store.cards[1].set_result(make_card())
        await again

    run(body)


def test_a_caller_that_leaves_does_not_stop_a_delete():
    """Broken: the store drops a name and the engine never hears of it."""

    async def body() -> None:
        desk = Desk()
        calling = asyncio.create_task(desk.registry.delete("default", "upper"))
        await turns(2)
        calling.cancel()
        await turns(2)
        desk.store.deletes[0].set_result(make_card().key)
        await turns(3)
        assert desk.forgotten == [make_card().key]
        assert desk.store.purged == []
        desk.registry.released(make_card().key)
        assert desk.store.purged == [make_card().key]
        desk.registry.engine_lost()
        assert len(desk.store.purged) == 1

    run(body)


def test_a_delete_while_no_engine_is_up_purges_at_once():
    """Broken: files of adapters deleted during a restart of the engine are never purged."""

    async def body() -> None:
        desk = Desk()
        desk.engine_up = False
        calling = asyncio.create_task(desk.registry.delete("default", "upper"))
        await turns(2)
        desk.store.deletes[0].set_result(make_card().key)
        await calling
        assert desk.store.purged == [make_card().key]

    run(body)


def test_a_lookup_that_fails_over_a_version_that_is_no_more_is_made_again():
    """Broken: a request beside an upload ends with INTERNAL, because the old files just went."""
    old, new = make_card(version=1), make_card(version=2)

    async def body() -> None:
        desk = Desk()
        upload_id = await desk.registry.begin_upload("default", "upper")
        asking = asyncio.create_task(desk.resolve())
        committing = asyncio.create_task(desk.registry.commit_upload(upload_id))
        await turns(3)
        desk.store.commits[0].set_result(Stored(new, old.key, True))
        await committing
        desk.store.cards[0].set_exception(AdapterLoadFailed("its files are gone"))
        await turns(4)
        desk.store.cards[1].set_result(new)
        assert await asking == new.key
        failing = asyncio.create_task(desk.registry.resolve("default", "other"))
        await turns(3)
        desk.store.cards[2].set_exception(AdapterLoadFailed("bad disk"))
        with pytest.raises(AdapterLoadFailed, match="bad disk"):
            await failing

    run(body)


def test_a_pin_is_told_before_its_card_is_used_and_never_after_its_forget():
    """Broken: a pinned version is served from unpinned; or a renewal that a delete overtook brings
    a forgotten key back, or pins what is uploaded under that name later.
    """

    async def body() -> None:
        desk = Desk()
        desk.registry.pins.add(make_card())
        desk.registry.engine_lost()
        desk.registry.renew_pins()
        await turns(2)
        deleting = asyncio.create_task(desk.registry.delete("default", "upper"))
        await turns(2)
        desk.store.deletes[0].set_result(make_card().key)
        await deleting
        desk.store.cards[0].set_result(make_card())
        await turns(4)
        desk.store.cards[1].set_exception(AdapterNotFound("none", name="upper"))
        await turns(4)
        assert desk.pinned == [] and desk.registry.pins.places == ()

    run(body)


def test_a_name_that_is_no_more_loses_its_pin_when_pins_are_renewed():
    """Broken: a delete whose answer died with the store leaves its pin for ever."""

    async def body() -> None:
        desk = Desk()
        desk.registry.pins.add(make_card())
        desk.registry.engine_lost()
        desk.registry.renew_pins()
        await turns(2)
        desk.store.cards[0].set_exception(AdapterNotFound("none", name="upper"))
        await turns(4)
        assert desk.registry.pins.places == ()

    run(body)


def test_an_engine_that_is_down_is_told_of_a_pin_in_its_next_life():
    """Broken: a request that came too early took the one chance to pin."""

    async def body() -> None:
        desk = Desk()
        desk.registry.pins.add(make_card())
        desk.registry.engine_lost()
        desk.engine_up = False
        for _ in range(2):
            asking = asyncio.create_task(desk.resolve())
            await turns(2)
            if not asking.done():
                desk.store.cards[0].set_result(make_card())
            await asking
            desk.engine_up = True
        assert desk.pinned == [make_card()]
        await desk.resolve()
        assert desk.pinned == [make_card()]  # once a life

    run(body)
