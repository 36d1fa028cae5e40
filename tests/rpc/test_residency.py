"""Where adapters are, brought nearer and pinned, through a real gRPC channel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.config import MemoryConfig, ServerConfig
from lorry.server.rpc.pins import Pins
from lorry.server.seam import AskResidency, Forget, Prefetch, Submit
from lorry.server.store_messages import GetCard
from lorry.tests.access_builders import make_card_of
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    FakeStore,
    Service,
    make_card,
    make_config,
    make_info,
    make_residency,
    running_service,
)

UPPER, ROT13 = make_card("upper"), make_card("rot13")
UNSET = {}


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


def stub(service: Service) -> Any:
    return pb_grpc.AdaptersStub(service.channel)


async def prefetch(service: Service, name: str = "upper", **fields: Any) -> pb.Adapter:
    request = pb.PrefetchRequest(name=name, **fields)
    return await stub(service).Prefetch(request, timeout=PATIENCE_S)


async def replace_upper(service: Service) -> None:
    header = pb.UploadHeader(name="upper", config_json=b"{}", size_bytes=1, sha256="ab")
    parts = [pb.UploadRequest(header=header), pb.UploadRequest(chunk=b"x")]
    await stub(service).Upload(iter(parts), timeout=PATIENCE_S)


def small(**memory: Any) -> ServerConfig:
    return replace(make_config(), memory=MemoryConfig(**memory))


def test_get_and_list_say_where_adapters_are():
    """Broken: a place is another adapter's, a mean of no loads is a number, or a list of a
    thousand asks the engine a thousand times.
    """
    engine = FakeEngine()
    engine.places[UPPER.key] = make_residency(
        UPPER.key,
        place="pool",
        pinned=True,
        num_pages=2,
        num_users=3,
        num_requests=8,
        num_pool_hits=6,
        num_loads=2,
        num_reads=1,
        load_s=0.125,
    )

    async def body(service: Service) -> None:
        got = await stub(service).Get(pb.GetAdapterRequest(name="upper"))
        assert got.residency == pb.Residency(
            place=pb.PLACE_POOL,
            pinned=True,
            num_pages=2,
            num_users=3,
            requests_total=8,
            pool_hits_total=6,
            loads_total=2,
            reads_total=1,
            load_s=0.125,
        )
        assert (await service.engine.heard(AskResidency)).keys == (UPPER.key,)
        page = await stub(service).List(pb.ListAdaptersRequest())
        assert (await service.engine.heard(AskResidency)).keys == (ROT13.key, UPPER.key)
        assert service.engine.commands.empty()
        places = {adapter.name: adapter.residency.place for adapter in page.adapters}
        assert places == {"rot13": pb.PLACE_DISK, "upper": pb.PLACE_POOL}
        assert not page.adapters[0].residency.HasField("load_s")
        assert (await stub(service).List(pb.ListAdaptersRequest(prefix="z"))).total == 2
        assert service.engine.commands.empty()  # nothing to ask for

    run(body, engine=engine)


def test_a_card_is_told_although_no_engine_says_where_it_is():
    """Broken: whoever lists adapters is told UNAVAILABLE, or waits, while the engine restarts."""

    async def body(service: Service) -> None:
        asked = [
            asyncio.ensure_future(stub(service).Get(pb.GetAdapterRequest(name="upper"))),
            asyncio.ensure_future(stub(service).List(pb.ListAdaptersRequest())),
        ]
        for _ in asked:
            await service.engine.heard(AskResidency)
        service.engine.die()
        found, page = await asyncio.gather(*asked)
        again = await stub(service).Get(pb.GetAdapterRequest(name="upper"))
        for adapter in (found, again, *page.adapters):
            assert adapter.num_pages == 2 and not adapter.HasField("residency")

    engine = FakeEngine()
    engine.tells_places = False
    run(body, engine=engine)


@pytest.mark.parametrize(
    ("fields", "sent", "place"),
    [
        (UNSET, (True, None), pb.PLACE_LOADING),
        ({"tier": pb.TIER_POOL}, (True, None), pb.PLACE_LOADING),
        ({"tier": pb.TIER_HOST}, (False, None), pb.PLACE_HOST),
        ({"pin": True}, (True, True), pb.PLACE_LOADING),
        ({"pin": False}, (False, False), pb.PLACE_DISK),
    ],
    ids=["plain", "pool", "host", "pin", "unpin"],
)
def test_a_prefetch_asks_the_engine_and_tells_where_it_is_then(
    fields: dict[str, Any], sent: tuple[bool, bool | None], place: pb.Place
):
    """Broken: a tier or a pin is dropped or turned round on its way."""

    async def body(service: Service) -> None:
        adapter = await prefetch(service, **fields)
        asked = await service.engine.heard(Prefetch)
        assert (asked.card, asked.to_pool, asked.pinned) == (UPPER, *sent)
        assert (adapter.name, adapter.residency.place) == ("upper", place)
        assert adapter.residency.pinned is (sent[1] is True)

    run(body)


CODE = grpc.StatusCode
REFUSED: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "unknown": ({"name": "nope"}, CODE.NOT_FOUND, "no adapter 'nope'"),
    "nameless": ({"name": ""}, CODE.INVALID_ARGUMENT, "name is empty"),
    "no such tier": ({"tier": 7}, CODE.INVALID_ARGUMENT, "tier is 7"),
    "pinned to host": (
        {"tier": pb.TIER_HOST, "pin": True},
        CODE.INVALID_ARGUMENT,
        "pin is true and tier is TIER_HOST",
    ),
    "unpinned to host": (
        {"tier": pb.TIER_HOST, "pin": False},
        CODE.INVALID_ARGUMENT,
        "pin is false and tier is TIER_HOST",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_prefetch_is_refused_by_its_field(case: str):
    """Broken: nonsense reaches the engine, or the client hears INTERNAL."""
    fields, code, words = REFUSED[case]

    async def body(service: Service) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefetch(service, **fields)
        assert caught.value.code() is code
        assert words in (caught.value.details() or "")
        assert service.engine.commands.empty()

    run(body)


TOO_LARGE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    # Pages, flags, the request, and the words; `upper` has 2 pages of 4096 bytes.
    "the pool": (
        {"num_pages": 2},
        {},
        {},
        "of 2 pages; the pool has 2, and one is kept for requests",
    ),
    "a share": (
        {"num_pages": 7},
        {"tenant_share": 0.25},
        {},
        "hold 1 of the pool's 7 (--tenant-share 0.25)",
    ),
    "the room of adapters": (
        {"num_pages": 7},
        {"eviction": "split", "adapter_share": 0.2},
        {},
        "adapters may hold 1 of the pool's 7 (--adapter-share 0.2)",
    ),
    "host": ({}, {"host_bytes": 8191}, {"tier": pb.TIER_HOST}, "of 8192 bytes in pages; host"),
    # Nearer to a pool it could never be in: the engine would leave it on the disk.
    "the pool, on the way to host": (
        {"num_pages": 2},
        {},
        {"tier": pb.TIER_HOST},
        "of 2 pages; the pool has 2, and one is kept for requests",
    ),
    "the rank": ({}, {"max_rank": 3}, {"pin": True}, "of rank 4; this server was started with"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_could_never_come_nearer_is_refused_in_numbers(case: str):
    """Broken: the client waits for a load that has no room, however empty the server is."""
    info, memory, fields, words = TOO_LARGE[case]

    async def body(service: Service) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefetch(service, **fields)
        assert caught.value.code() is CODE.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
        assert service.engine.commands.empty()
        assert (await prefetch(service, pin=False)).name == "upper"  # which moves nothing

    run(body, engine=FakeEngine(info=make_info(**info)), config=small(**memory))


def test_what_just_fits_is_taken():
    """Broken: the limits are off by one."""

    async def body(service: Service) -> None:
        await prefetch(service, tier=pb.TIER_HOST)
        await prefetch(service)

    engine = FakeEngine(info=make_info(num_pages=3))
    run(body, engine=engine, config=small(host_bytes=8192))


def test_the_pins_of_a_tenant_hold_at_most_its_share():
    """Broken: one tenant pins the whole pool; or what is pinned twice counts twice, and what was
    given back still.
    """

    async def body(service: Service) -> None:
        await prefetch(service, "upper", pin=True)
        await prefetch(service, "upper", pin=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefetch(service, "rot13", pin=True)
        words = "what is pinned would take 4 pages; one tenant may hold 3 of the pool's 12"
        assert words in (caught.value.details() or "")
        await prefetch(service, "rot13")
        await prefetch(service, "upper", pin=False)
        assert (await prefetch(service, "rot13", pin=True)).residency.pinned

    engine = FakeEngine(info=make_info(num_pages=12))
    run(body, engine=engine, config=small(tenant_share=0.25))


def test_pins_of_other_tenants_do_not_count():
    """Broken: who pins first takes the pins of all others away."""
    pins = Pins(lambda _: True)
    pins.add(make_card_of("acme", "upper"))
    assert pins.pages_with(make_card_of("acme", "lower")) == 4
    assert pins.pages_with(make_card_of("rival", "lower")) == 2
    assert pins.pages_with(make_card_of("rival", "upper")) == 2


def test_a_prefetch_needs_an_engine():
    """Broken: it waits for nobody, or a pin is taken that nobody keeps."""

    async def body(service: Service) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefetch(service, pin=True)
        assert caught.value.code() is CODE.UNAVAILABLE
        service.attach_engine(FakeEngine())
        await prefetch(service, "rot13")
        assert (await service.engine.heard(Prefetch)).card == ROT13

    run(body, up=False)


def test_a_pin_outlives_the_engine_that_heard_of_it():
    """Broken: after a crash at night the pinned adapter is cold in the morning."""

    async def body(service: Service) -> None:
        await prefetch(service, "upper", pin=True)
        await prefetch(service, "rot13", pin=True)
        await prefetch(service, "rot13", pin=False)
        service.engine.die()
        while service.front.engine.info is not None:
            await asyncio.sleep(0)
        service.attach_engine(FakeEngine())
        told = await service.engine.heard(Prefetch)
        assert (told.card, told.to_pool, told.pinned) == (UPPER, True, True)
        await prefetch(service, "rot13")  # the next one, so rot13's pin was not renewed
        assert (await service.engine.heard(Prefetch)).pinned is None

    run(body)


def test_a_pin_follows_its_name_to_a_new_version():
    """Broken: an upload takes the pin away, or the new version is told of before the old goes."""

    async def body(service: Service) -> None:
        await prefetch(service, "upper", pin=True)
        await service.engine.heard(Prefetch)
        await replace_upper(service)
        assert await service.engine.heard(Forget) == Forget(UPPER.key)
        told = await service.engine.heard(Prefetch)
        assert (told.card.key, told.pinned) == (make_card(version=2).key, True)
        await replace_upper(service)  # a third: told of each once
        assert (await service.engine.heard(Prefetch)).card.key.version == 3

    run(body)


def test_a_deleted_name_loses_its_pin():
    """Broken: an adapter uploaded years later under that name is pinned, and nobody knows why."""

    async def body(service: Service) -> None:
        await prefetch(service, "upper", pin=True)
        await stub(service).Delete(pb.DeleteAdapterRequest(name="upper"))
        await replace_upper(service)
        await replace_upper(service)  # the fake store counts versions anew: this one is another
        request = pb.GenerateRequest(text="a", adapter="upper")
        calls: Any = pb_grpc.GenerationStub(service.channel)
        async for _ in calls.Generate(request, timeout=PATIENCE_S):
            pass
        heard = [service.engine.commands.get() for _ in range(service.engine.commands.qsize())]
        kinds = [type(command) for command in heard]
        assert kinds.index(Forget) < kinds.index(Submit)
        assert Prefetch not in kinds[kinds.index(Forget) :]

    run(body)


def test_pins_are_told_again_once_the_store_is_up():
    """Broken: engine and store died together, and the pins were given up as the store was late."""

    async def body(service: Service) -> None:
        await prefetch(service, "upper", pin=True)
        service.store.die()
        service.engine.die()
        while service.front.store.ready or service.front.engine.info is not None:
            await asyncio.sleep(0)
        service.attach_engine(FakeEngine())
        while service.front.engine.info is None:
            await asyncio.sleep(0)
        service.attach_store(FakeStore("upper", "rot13"))
        assert (await service.store.heard(GetCard)).name == "upper"
        told = await service.engine.heard(Prefetch)
        assert (told.card, told.pinned) == (UPPER, True)

    run(body)
