"""Adapters through a real gRPC channel: uploads, listing, and the way out of a deleted one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.errors import EngineUnavailable
from lorry.server.seam import Forget, Released, Submit
from lorry.server.store_messages import (
    AbortUpload,
    BeginUpload,
    CommitUpload,
    Configure,
    DeleteAdapter,
    PurgeAdapter,
    UploadChunk,
)
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    FakeStore,
    Service,
    make_card,
    make_config,
    make_finish,
    make_info,
    running_service,
)

HEADER = pb.UploadHeader(name="new", config_json=b"{}", size_bytes=6, sha256="ab")


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


def stub(service: Service) -> pb_grpc.AdaptersStub:
    return pb_grpc.AdaptersStub(service.channel)


def chunk(data: bytes) -> pb.UploadRequest:
    return pb.UploadRequest(chunk=data)


async def upload(service: Service, *parts: pb.UploadRequest) -> pb.Adapter:
    async def sent() -> AsyncIterator[pb.UploadRequest]:
        for part in parts:
            yield part

    return await stub(service).Upload(sent(), timeout=PATIENCE_S)


async def generate(service: Service, adapter: str) -> None:
    request = pb.GenerateRequest(text="a", adapter=adapter)
    async for _ in pb_grpc.GenerationStub(service.channel).Generate(request, timeout=PATIENCE_S):
        pass


def test_an_upload_arrives_in_order_and_answers_its_card():
    """Broken: bytes are reordered, the header's fields are dropped, or the card is another's."""

    async def body(service: Service) -> None:
        card = await upload(
            service, pb.UploadRequest(header=HEADER), chunk(b"abc"), chunk(b""), chunk(b"def")
        )
        begun = await service.store.heard(BeginUpload)
        assert (begun.name, begun.config_json, begun.size_bytes, begun.sha256) == (
            "new",
            b"{}",
            6,
            "ab",
        )
        assert (await service.store.heard(UploadChunk)).data == b"abc"
        assert (await service.store.heard(UploadChunk)).data == b"def"
        await service.store.heard(CommitUpload)
        assert (card.name, card.version, card.max_rank) == ("new", 1, 4)
        assert list(card.notes) == ["a note"]
        assert list(card.target_modules) == ["q_proj"]

    run(body)


WRONG_UPLOADS: list[tuple[str, list[pb.UploadRequest], str]] = [
    ("nothing", [], "header"),
    ("no header", [chunk(b"abc")], "header"),
    ("two headers", [pb.UploadRequest(header=HEADER)] * 2, "header"),
    ("no name", [pb.UploadRequest(header=pb.UploadHeader(size_bytes=1))], "name"),
    ("too short", [pb.UploadRequest(header=HEADER), chunk(b"abc")], "after 3 bytes"),
    ("too long", [pb.UploadRequest(header=HEADER), chunk(b"abcdefg")], "7 bytes have come"),
    ("huge", [pb.UploadRequest(header=pb.UploadHeader(name="x", size_bytes=1001))], "1000"),
]


@pytest.mark.parametrize(("parts", "words"), [case[1:] for case in WRONG_UPLOADS])
def test_a_wrong_upload_is_refused_and_leaves_nothing_open(
    parts: list[pb.UploadRequest], words: str
):
    """Broken: a cut or oversized upload is stored, or its temporary file stays for ever."""

    async def body(service: Service) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload(service, *parts)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")
        kinds = [type(service.store.asked.get()) for _ in range(service.store.asked.qsize())]
        assert CommitUpload not in kinds
        if BeginUpload in kinds and AbortUpload not in kinds:
            await service.store.heard(AbortUpload)

    run(body, config=make_config(max_upload_bytes=1000))


def test_a_client_that_leaves_during_an_upload_aborts_it():
    """Broken: places for uploads run out one lost client at a time."""

    async def body(service: Service) -> None:
        call = stub(service).Upload()
        await call.write(pb.UploadRequest(header=HEADER))
        await call.write(chunk(b"abc"))
        await service.store.heard(UploadChunk)
        call.cancel()
        assert (await service.store.heard(AbortUpload)).upload_id in service.store.uploads

    run(body)


def test_a_client_that_leaves_while_its_upload_begins_aborts_it():
    """Broken: the store opens an upload for a client that is gone, and nobody closes it."""

    async def body(service: Service) -> None:
        gate = service.store.before_answer[BeginUpload] = threading.Event()
        call = stub(service).Upload()
        await call.write(pb.UploadRequest(header=HEADER))
        await service.store.heard(BeginUpload)
        call.cancel()
        while not service.front._idle.is_set():
            await asyncio.sleep(0.001)
        gate.set()
        assert (await service.store.heard(AbortUpload)).upload_id in service.store.uploads

    run(body)


def test_listing_goes_page_by_page():
    """Broken: adapters are missing from, or twice in, a list of several pages."""

    async def body(service: Service) -> None:
        names: list[str] = []
        token = ""
        while True:
            request = pb.ListAdaptersRequest(page_size=2, page_token=token)
            page = await stub(service).List(request)
            names += [card.name for card in page.adapters]
            assert page.total == 5
            token = page.next_page_token
            if not token:
                break
        assert names == list("abcde")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(service).List(pb.ListAdaptersRequest(page_size=1001))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        one = await stub(service).Get(pb.GetAdapterRequest(name="c"))
        assert one.name == "c"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(service).Get(pb.GetAdapterRequest(name="z"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(body, store=FakeStore(*"edcba"))


def test_files_are_purged_only_after_the_engine_let_go():
    """Broken: files vanish under a running request, or stay for ever after the last one."""

    async def body(service: Service) -> None:
        service.engine.releases = False
        await generate(service, "upper")
        answer = await stub(service).Delete(pb.DeleteAdapterRequest(name="upper"))
        assert answer.version == 1
        key = make_card("upper").key
        assert await service.engine.heard(Forget) == Forget(key)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, "upper")  # the cached card is gone too
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        kinds = [type(service.store.asked.get()) for _ in range(service.store.asked.qsize())]
        assert PurgeAdapter not in kinds
        service.engine.say(Released(key))
        assert (await service.store.heard(PurgeAdapter)).key == key

    run(body)


def test_a_new_version_answers_at_once_and_the_old_is_forgotten():
    """Broken: requests keep meeting old weights under a name that has new ones."""

    async def body(service: Service) -> None:
        await generate(service, "upper")
        assert (await service.engine.heard(Submit)).adapter.key.version == 1
        header = pb.UploadHeader(name="upper", size_bytes=1)
        await upload(service, pb.UploadRequest(header=header), chunk(b"x"))
        assert (await service.engine.heard(Forget)).key.version == 1
        await generate(service, "upper")
        assert (await service.engine.heard(Submit)).adapter.key.version == 2

    run(body)


def test_a_dead_engine_frees_what_was_leaving():
    """Broken: files of deleted adapters stay when the engine dies before it says Released."""

    async def body(service: Service) -> None:
        service.engine.releases = False
        await stub(service).Delete(pb.DeleteAdapterRequest(name="upper"))
        await service.engine.heard(Forget)
        service.engine.die()
        assert (await service.store.heard(PurgeAdapter)).key.name == "upper"
        await stub(service).Delete(pb.DeleteAdapterRequest(name="rot13"))
        assert (await service.store.heard(PurgeAdapter)).key.name == "rot13"

    run(body)


def test_a_dead_store_fails_its_calls_and_the_next_one_is_configured():
    """Broken: calls hang on a store that is gone, or its successor packs for no layout."""

    async def body(service: Service) -> None:
        assert (await service.store.heard(Configure)).max_pages == 31
        gate = service.store.before_answer[DeleteAdapter] = threading.Event()
        call = asyncio.create_task(service.front.registry.delete("default", "upper"))
        await service.store.heard(DeleteAdapter)
        service.front.store.hang_up()
        with pytest.raises(EngineUnavailable, match="store stopped"):
            await call
        gate.set()
        await generate(service, "")  # the base model needs no store
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, "upper")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.attach_store(FakeStore("upper"))
        configured = await service.store.heard(Configure)
        assert configured.image_spec == make_info().image_spec
        await generate(service, "upper")

    run(body)


def test_an_upload_during_a_drain_is_answered_not_cut():
    """Broken: the client of a long upload sees a lost connection instead of a reason."""

    async def body(service: Service) -> None:
        call = stub(service).Upload()
        await call.write(pb.UploadRequest(header=HEADER))
        await service.store.heard(BeginUpload)
        assert not await service.front.drain(0.05)
        await service.front.close_rest(PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in (caught.value.details() or "")
        await service.store.heard(AbortUpload)

    run(body)


def test_a_drain_lets_open_answers_finish_and_takes_no_new_ones():
    """Broken: a rolling restart cuts answers that had time to finish."""

    async def body(service: Service) -> None:
        asking = asyncio.create_task(generate(service, ""))
        submit = await service.engine.heard(Submit)
        draining = asyncio.create_task(service.front.drain(PATIENCE_S))
        while not service.front.draining:
            await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, "")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.engine.say(make_finish(submit, 1))
        await asking
        assert await draining

    run(body, engine=FakeEngine(behaviour="silent"))
