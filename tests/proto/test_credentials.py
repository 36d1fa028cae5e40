"""What a client sends of its token, and to whom it refuses to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from lorry.proto.async_client import AsyncClient
from lorry.proto.client import Client
from lorry.proto.credentials import read_credentials, stays_here
from lorry.proto.errors import CredentialsError, Unavailable
from lorry.proto.lorry_pb2 import Adapter, Final, GenerateResponse, Info, ListAdaptersResponse
from lorry.server.tokens import new_token
from lorry.tests.access_builders import make_certificate
from lorry.tests.proto_builders import make_peft_directory

TOKEN = new_token()
ANSWERS: dict[str, Any] = {
    "GetInfo": Info(),
    "List": ListAdaptersResponse(),
    "Upload": Adapter(name="mine"),
    "Generate": GenerateResponse(final=Final()),
}


class Recorder(grpc.GenericRpcHandler):
    """Answers anything, and keeps the authorization headers of each call."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[Any]]] = []

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        metadata = handler_call_details.invocation_metadata
        self.heard.append((name, [value for key, value in metadata if key == "authorization"]))

        def answer(requests: Iterator[Any], context: Any) -> Iterator[bytes]:
            for _ in requests:
                pass
            if name not in ANSWERS:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
            yield ANSWERS[name].SerializeToString()

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def recorder() -> Iterator[tuple[Recorder, str]]:
    recorder = Recorder()
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[recorder])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield recorder, address
    server.stop(0).wait()


def test_every_call_of_both_clients_carries_the_token_once(
    recorder: tuple[Recorder, str], tmp_path: Path
) -> None:
    """Broken: one kind of call (a stream, an upload, the wait for health) goes without it."""
    heard, address = recorder[0].heard, recorder[1]
    directory = make_peft_directory(tmp_path / "mine")
    wanted = {"Watch", "GetInfo", "Generate", "List", "Upload"}
    heard.clear()
    with Client(address, token=TOKEN, timeout_s=20) as client:
        client.wait_ready(20)
        client.complete("x")
        list(client.adapters.list())
        client.adapters.upload(directory)
    assert {name for name, _ in heard} == wanted
    assert all(values == [f"Bearer {TOKEN}"] for _, values in heard)
    heard.clear()

    async def ask() -> None:
        async with AsyncClient(address, token=TOKEN, timeout_s=20) as client:
            await client.wait_ready(20)
            await client.complete("x")
            async for _ in client.adapters.list():
                pass
            await client.adapters.upload(directory)

    asyncio.run(ask())
    assert {name for name, _ in heard} == wanted
    assert all(values == [f"Bearer {TOKEN}"] for _, values in heard)
    heard.clear()
    with Client(address, timeout_s=20) as client:
        client.info()
    assert heard == [("GetInfo", [])]


def test_a_proxy_of_the_environment_never_sees_a_token(
    recorder: tuple[Recorder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken: http_proxy sends a call to this machine, token and all, to another one."""
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with Client(recorder[1], token=TOKEN, timeout_s=20) as client:
        client.info()
    with Client(recorder[1], timeout_s=20) as client, pytest.raises(Unavailable):
        client.info()  # the proxy is asked, else this test shows nothing


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "localhost:50051",
        "localhost",
        "127.9.9.9",
        "[::1]:50051",
        "::1",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
        "unix:/run/lorry",
        "unix-abstract:lorry",
    ],
)
def test_this_machine_is_told_from_others(address: str) -> None:
    """Broken: a token is refused to a server on the same machine."""
    assert stays_here(address)
    assert read_credentials(address, token=TOKEN).token == TOKEN


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:50051",
        "example.org:50051",
        "localhost.example.org:50051",
        "127.0.0.1.example.org:1",
        "0.0.0.0:50051",
        "[2001:db8::1]:50051",
        "vsock:2:50051",
        "dns:///example.org:1",
        "dns://127.0.0.1/example.org:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "xds:///localhost",
        "",
    ],
)
def test_a_token_is_not_sent_where_it_can_be_read(address: str) -> None:
    """Broken: a mistyped address gives the token to whoever listens on the way."""
    with pytest.raises(CredentialsError, match="unencrypted") as caught:
        read_credentials(address, token=TOKEN)
    assert caught.value.field == "token"
    assert TOKEN not in str(caught.value)
    read_credentials(address, token=TOKEN, plaintext_token=True)
    read_credentials(address, token=TOKEN, tls=True)
    read_credentials(address)


@pytest.mark.parametrize(
    "token", ["a b", "ä", "x\n", "\x00", "x" * 5000], ids=["space", "umlaut", "line", "nul", "long"]
)
def test_what_no_header_can_hold_is_refused_without_being_shown(token: str) -> None:
    """Broken: gRPC's own error has the token in its message, and that ends up in a log."""
    for kind in (Client, AsyncClient):
        with pytest.raises(CredentialsError, match="visible ASCII") as caught:
            kind("127.0.0.1:1", token=token)
        assert token not in str(caught.value)


def test_options_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    """Broken: a missing key or a wrong file is found out by gRPC, which does not say so."""
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    locked = make_certificate(tmp_path, "locked", password=b"secret")
    text = tmp_path / "text"
    text.write_text("hello")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"cert": first.cert}, "key", "key is missing"),
        ({"key": first.key}, "cert", "cert is missing"),
        ({"ca": first.cert, "tls": False}, "tls", "tls is off"),
        ({"ca": tmp_path / "none"}, "ca", "cannot be read: No such file"),
        ({"ca": text}, "ca", "not PEM"),
        ({"cert": first.cert, "key": second.key}, "key", "key values mismatch"),
        ({"cert": locked.cert, "key": locked.key}, "key", "the key is encrypted"),
        ({"cert": first.cert, "key": tmp_path / "none"}, "key", "No such file"),
    ]
    for options, field, words in cases:
        with pytest.raises(CredentialsError, match=words) as caught:
            read_credentials("localhost:1", **options)
        assert caught.value.field == field
    both = read_credentials("localhost:1", token=TOKEN, cert=first.cert, key=first.key)
    assert both.tls
    assert TOKEN not in repr(both)
    assert "PRIVATE" not in repr(both)
