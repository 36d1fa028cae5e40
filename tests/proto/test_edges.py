"""Where a call of a client ends otherwise than by its server's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.proto.async_client import AsyncClient
from lorry.proto.client import Client
from lorry.proto.errors import (
    AdapterDirectoryError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    LorryClientError,
)
from lorry.proto.parcel import MAX_CONFIG_BYTES
from lorry.tests.proto_builders import FakeGeneration, FakeServer, Recorder, make_peft_directory


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.heard.__init__()
    return shared


def test_reading_on_after_a_close_says_so(server: FakeServer) -> None:
    """The blocking client is what the other one must be like."""
    with Client(server.address) as client:
        stream = client.generate("prompt", adapter="hang")
        assert next(stream) == "Grüße"
        stream.close()
        with pytest.raises(Cancelled):
            next(stream)


def test_reading_on_after_an_async_close_says_so(server: FakeServer) -> None:
    """asyncio.CancelledError there ends whatever task reads, as if it had been cancelled."""

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("prompt", adapter="hang")
            assert await anext(stream) == "Grüße"
            stream.close()
            with pytest.raises(Cancelled, match="closed"):
                await anext(stream)

    asyncio.run(ask())


def test_a_task_that_is_cancelled_while_it_reads_is_cancelled(server: FakeServer) -> None:
    """A real cancellation taken for a closed stream would go on as an error to be handled."""

    async def ask() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("prompt", adapter="hang")
            assert await anext(stream) == "Grüße"
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    asyncio.run(ask())


@pytest.mark.parametrize("prompt", [b"hello>", bytearray(b"x"), [1.7, 2.2], ["1"]], ids=repr)
def test_a_prompt_that_is_neither_text_nor_ids_is_refused(prompt: Any) -> None:
    """Bytes read as token ids, or ids cut to integers, get an answer to another question."""
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest) as caught:
        client.complete(prompt)
    assert caught.value.field in ("prompt", "token_ids")


@pytest.mark.parametrize("field", ["max_new_tokens", "seed"])
def test_a_fraction_is_no_count(field: str) -> None:
    """max_new_tokens=2.9 would quietly be 2."""
    options: Any = {field: 2.9}
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest, match="integer") as caught:
        client.complete("prompt", **options)
    assert field in caught.value.field


def test_a_timeout_of_nothing_has_passed(server: FakeServer, tmp_path: Path) -> None:
    """Zero seconds taken for no limit waits for ever where the caller had no time at all."""
    folder = make_peft_directory(tmp_path / "upper")

    async def ask() -> None:
        async with AsyncClient(server.address, timeout_s=20) as client:
            with pytest.raises(DeadlineExceeded):
                await client.complete("prompt", timeout_s=0)
            with pytest.raises(DeadlineExceeded):
                await client.adapters.upload(folder, timeout_s=0)

    asyncio.run(ask())
    with Client(server.address, timeout_s=20) as client:
        with pytest.raises(DeadlineExceeded):
            client.complete("prompt", timeout_s=0)
        with pytest.raises(DeadlineExceeded):
            client.adapters.upload(folder, timeout_s=0)


CALLS: list[Callable[[Any], Any]] = [
    lambda client: client.complete("prompt"),
    lambda client: client.info(),
    lambda client: client.adapters.get("a1"),
]


@pytest.mark.parametrize("call", CALLS, ids=["complete", "info", "get"])
def test_a_closed_client_says_so(server: FakeServer, call: Callable[[Any], Any]) -> None:
    """gRPC's bare ValueError passes every handler that expects a client's errors."""
    client = Client(server.address)
    client.close()
    with pytest.raises(Cancelled, match="is closed"):
        call(client)

    async def ask() -> None:
        other = AsyncClient(server.address)
        await other.close()
        with pytest.raises(Cancelled, match="is closed"):
            await call(other)

    asyncio.run(ask())


def test_a_message_that_is_too_long_is_the_callers_to_shorten() -> None:
    """gRPC gives it the code of a full server, and a client would try it again for ever."""
    listener = grpc.server(
        futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 1000)]
    )
    pb_grpc.add_GenerationServicer_to_server(FakeGeneration(Recorder()), listener)
    port = listener.add_insecure_port("127.0.0.1:0")
    listener.start()
    try:
        client = Client(f"127.0.0.1:{port}", timeout_s=20)
        with client, pytest.raises(LorryClientError) as caught:
            client.complete("x" * 2000)
    finally:
        listener.stop(0).wait()
    assert type(caught.value) is InvalidRequest
    assert "at most 1000" in caught.value.message


def test_a_config_that_fits_in_no_message_is_refused_here(tmp_path: Path) -> None:
    """The server could only say that some message was too long."""
    folder = make_peft_directory(tmp_path / "upper")
    (folder / "adapter_config.json").write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with Client("127.0.0.1:1") as client, pytest.raises(AdapterDirectoryError) as caught:
        client.adapters.upload(folder)
    assert str(MAX_CONFIG_BYTES) in caught.value.message
    assert caught.value.field == "adapter_config.json"
