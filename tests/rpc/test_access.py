"""Who may call what: every method of the wire with every role, every way to send a bad token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.server.rpc.access import NEEDS, RELOAD_S
from lorry.server.seam import Progress, Submit
from lorry.server.store_messages import AbortUpload, BeginUpload, CommitUpload
from lorry.server.tokens import Role, new_token
from lorry.tests.access_builders import TenantStore, bearing, hand_out, revoke
from lorry.tests.fakes import FakeClock
from lorry.tests.rpc_builders import (
    PATIENCE_S,
    FakeEngine,
    Service,
    make_config,
    make_finish,
    running_service,
)

GUARDED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
ROLES = {role.word: (role, "acme") for role in Role}


def run(path: Path, body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        config = make_config(tokens=path)
        async with asyncio.timeout(30), running_service(config=config, **service) as running:
            await body(running)

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


async def outcome(service: Service, method: str, metadata: Any = ()) -> tuple[Any, str]:
    """The status of a call with one empty message, whatever the method's shape; OK if it speaks."""
    call = service.channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=PATIENCE_S)
    try:
        async for _ in call:
            call.cancel()
            return grpc.StatusCode.OK, ""
        return await call.code(), await call.details()
    except grpc.aio.AioRpcError as failure:
        return failure.code(), failure.details() or ""


async def served_methods(service: Service, token: str) -> set[str]:
    """As the server itself says by reflection."""
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([question]), metadata=bearing(token)):
        services = [entry.name for entry in answer.list_services_response.service]
        pool: Any = descriptor_pool.Default()
        return {
            f"/{name}/{method.name}"
            for name in services
            for method in pool.FindServiceByName(name).methods
        }
    raise AssertionError("reflection said nothing")


def test_every_method_has_its_role_and_no_role_has_more(path: Path):
    """Broken: a method that was added later is open to everybody, or to nobody."""
    tokens = hand_out(path, **ROLES)

    async def body(service: Service) -> None:
        served = await served_methods(service, tokens["generate"])
        assert served <= set(NEEDS), "the table misses what is served"
        ours = {name for name in NEEDS if name.startswith("/lorry.")}
        assert ours == {name for name in served if name.startswith("/lorry.")}
        for method in sorted(served):
            needed = NEEDS[method]
            code, _ = await outcome(service, method)
            assert (code in GUARDED) == (needed is not None), (method, code)
            assert code is grpc.StatusCode.UNAUTHENTICATED or needed is None
            for word, (role, _) in ROLES.items():
                code, said = await outcome(service, method, bearing(tokens[word]))
                if needed is None or role >= needed:
                    assert code not in GUARDED, (method, word, said)
                else:
                    assert code is grpc.StatusCode.PERMISSION_DENIED, (method, word)
                    assert needed.word in said
                    assert word in said

    run(path, body)


def test_who_may_what(path: Path):
    """Broken: the table itself opens what it should not; these four rows are the promise."""
    assert NEEDS["/lorry.v1.Generation/Generate"] is Role.GENERATE
    assert NEEDS["/lorry.v1.Adapters/Upload"] is Role.UPLOAD
    assert NEEDS["/lorry.v1.Adapters/Delete"] is Role.UPLOAD
    assert [name for name, role in NEEDS.items() if role is None] == [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
    ]


def test_a_method_that_the_table_misses_is_closed_to_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Broken: forgetting a line in the table opens a method."""
    tokens = hand_out(path, **ROLES)
    monkeypatch.delitem(NEEDS, "/lorry.v1.Engine/GetInfo")

    async def body(service: Service) -> None:
        code, said = await outcome(service, "/lorry.v1.Engine/GetInfo", bearing(tokens["admin"]))
        assert (code, said) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "Engine.GetInfo is not open to callers",
        )
        code, _ = await outcome(service, "/lorry.v1.Engine/Nothing", bearing(tokens["generate"]))
        assert code is grpc.StatusCode.UNIMPLEMENTED, "a newer client can tell an older server"

    run(path, body)


def test_a_bad_token_is_refused_in_one_sentence_for_all(path: Path):
    """Broken: a header that is malformed passes, ends the server, or is told apart by a guesser."""
    good = hand_out(path, ada=(Role.ADMIN, "acme"))["ada"]
    bad: dict[str, Any] = {
        "none": (),
        "empty": (("authorization", ""),),
        "no token": (("authorization", "Bearer"),),
        "an empty token": (("authorization", "Bearer "),),
        "another scheme": (("authorization", f"Basic {good}"),),
        "no scheme": (("authorization", good),),
        "two spaces": (("authorization", f"Bearer  {good}"),),
        "a word more": (("authorization", f"Bearer {good} x"),),
        "unknown": bearing(new_token()),
        "a letter less": bearing(good[:-1]),
        "a letter more": bearing(good + "A"),
        "other case": bearing(good.swapcase()),
        "long": bearing("lorry_" + "A" * 6000),
        "twice the same": bearing(good) + bearing(good),
        "good, then bad": bearing(good) + bearing(new_token()),
        "bad, then good": bearing(new_token()) + bearing(good),
        "binary": (("authorization-bin", f"Bearer {good}".encode()),),
        "in another header": (("x-authorization", f"Bearer {good}"),),
        "its hash": bearing("lorry_" + "0" * 43),
    }

    async def body(service: Service) -> None:
        said: set[str] = set()
        for what, metadata in bad.items():
            code, sentence = await outcome(service, "/lorry.v1.Engine/GetInfo", metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, (what, sentence)
            said.add(sentence)
        assert len(said) == 1, said
        # gRPC itself takes no megabyte of headers; whoever comes next is served.
        code, _ = await outcome(
            service, "/lorry.v1.Engine/GetInfo", bearing("lorry_" + "A" * (1 << 20))
        )
        assert code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)
        for word in ("Bearer", "bearer", "BEARER"):
            metadata = (("authorization", f"{word} {good}"),)
            code, _ = await outcome(service, "/lorry.v1.Engine/GetInfo", metadata)
            assert code is grpc.StatusCode.OK

    run(path, body)


def test_a_refused_upload_is_answered_before_its_first_message(path: Path):
    """Broken: a caller nobody knows keeps an upload's handler waiting for bytes."""
    hand_out(path, **ROLES)

    async def body(service: Service) -> None:
        call = pb_grpc.AdaptersStub(service.channel).Upload(timeout=PATIENCE_S)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    run(path, body)


async def stats(service: Service, token: str, *, pages: bool = True) -> pb.Stats:
    stub = pb_grpc.EngineStub(service.channel)
    return await stub.GetStats(pb.GetStatsRequest(pages=pages), metadata=bearing(token))


async def get_info(service: Service, token: str) -> Any:
    return (await outcome(service, "/lorry.v1.Engine/GetInfo", bearing(token)))[0]


def test_a_revoked_token_stops_working_and_a_new_one_works_without_a_restart(path: Path):
    """Broken: whoever was let go goes on until somebody restarts the server."""
    tokens = hand_out(path, ada=(Role.GENERATE, "acme"), bob=(Role.GENERATE, "acme"))
    clock = FakeClock()

    async def body(service: Service) -> None:
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.OK
        revoke(path, "ada")
        eve = hand_out(path, eve=(Role.GENERATE, "acme"))["eve"]
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.OK, "within the bound"
        clock.advance(RELOAD_S)
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.UNAUTHENTICATED
        assert await get_info(service, tokens["bob"]) is grpc.StatusCode.OK
        assert await get_info(service, eve) is grpc.StatusCode.OK

    run(path, body, clock=clock)


@pytest.mark.parametrize("harm", ["gone", "cut short", "open to others"])
def test_a_file_that_breaks_lets_nobody_in_until_it_is_right(
    path: Path, harm: str, caplog: pytest.LogCaptureFixture
):
    """Broken: a revocation that went wrong leaves the old tokens working, or ends the server."""
    tokens = hand_out(path, ada=(Role.GENERATE, "acme"))
    clock = FakeClock()
    whole = path.read_bytes()

    async def body(service: Service) -> None:
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.OK
        match harm:
            case "gone":
                path.unlink()
            case "cut short":
                path.write_bytes(whole[: len(whole) // 2])
            case _:
                path.chmod(0o644)
        for _ in range(3):
            clock.advance(RELOAD_S)
            code, said = await outcome(service, "/lorry.v1.Engine/GetInfo", bearing(tokens["ada"]))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert str(path) not in said
        code, _ = await outcome(service, "/grpc.health.v1.Health/Check")
        assert code is grpc.StatusCode.OK
        assert sum("nobody is let in" in line for line in caplog.messages) == 1, "said once"
        path.write_bytes(whole)
        path.chmod(0o600)
        clock.advance(RELOAD_S)
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.OK

    run(path, body, clock=clock)


def test_a_running_stream_ends_by_itself_and_an_upload_is_judged_again(path: Path):
    """Broken: a revoked token cuts answers short, or still stores what it began to upload."""
    tokens = hand_out(path, ada=(Role.UPLOAD, "acme"))
    clock = FakeClock()

    async def body(service: Service) -> None:
        metadata = bearing(tokens["ada"])
        upload = pb_grpc.AdaptersStub(service.channel).Upload(metadata=metadata)
        header = pb.UploadHeader(name="mine", config_json=b"{}", size_bytes=3, sha256="0" * 64)
        await upload.write(pb.UploadRequest(header=header))
        await service.store.heard(BeginUpload)
        stream = pb_grpc.GenerationStub(service.channel).Generate(
            pb.GenerateRequest(text="abc", max_new_tokens=2), metadata=metadata
        )
        submit = await service.engine.heard(Submit)
        revoke(path, "ada")
        clock.advance(RELOAD_S)
        assert await get_info(service, tokens["ada"]) is grpc.StatusCode.UNAUTHENTICATED
        service.engine.say(Progress(submit.request_id, (70,)), make_finish(submit, 1))
        parts = [part async for part in stream]
        assert parts[-1].HasField("final")
        await upload.write(pb.UploadRequest(chunk=b"abc"))
        await upload.done_writing()
        assert await upload.code() is grpc.StatusCode.UNAUTHENTICATED
        assert isinstance(await service.store.heard((AbortUpload, CommitUpload)), AbortUpload)

    run(path, body, clock=clock, engine=FakeEngine(behaviour="silent"))


def test_without_tokens_everybody_is_let_in():
    """Broken: a server on one's own machine asks for what nobody was given."""

    async def main() -> None:
        async with asyncio.timeout(30), running_service(store=TenantStore(("default", "a"))) as s:
            for metadata in ((), bearing(new_token()), (("authorization", "nonsense"),)):
                code, _ = await outcome(s, "/lorry.v1.Engine/GetInfo", metadata)
                assert code is grpc.StatusCode.OK
            adapter = await pb_grpc.AdaptersStub(s.channel).Get(pb.GetAdapterRequest(name="a"))
            assert adapter.name == "a", "in the default tenant"

    asyncio.run(main())
