"""The two clients against a server that records what it was asked."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from lorry.proto import lorry_pb2 as pb
from lorry.proto.async_client import AsyncClient
from lorry.proto.client import Client
from lorry.proto.errors import (
    AdapterDirectoryError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerFault,
    Unavailable,
)
from lorry.tests.proto_builders import CHUNKS, TEXT, FakeServer, make_peft_directory

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.heard.__init__()
    return shared


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20) as client:
        yield client


def on_async(server: FakeServer, ask: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(server.address, timeout_s=20) as client:
            return await ask(client)

    return asyncio.run(run())


def test_a_stream_yields_one_item_per_message_and_then_the_whole_answer(client: Client) -> None:
    """A client that merged or dropped messages would hide when each token came."""
    stream = client.generate("prompt", adapter="upper")
    assert list(stream) == [text for text, _ in CHUNKS]
    final = stream.final
    assert (final.text, final.token_ids, final.reason) == (TEXT, (1, 2, 3, 4), "length")
    usage = final.usage
    assert (usage.prompt_tokens, usage.preemptions, usage.cached_tokens) == (7, 1, 5)
    assert (final.timing.ttft_s, final.timing.tpot_s) == (0.75, 0.0625)
    assert (final.seed, final.adapter_version) == (2**63 + 1, 3)


def test_both_clients_ask_and_answer_alike(server: FakeServer, client: Client) -> None:
    """Two transports over shared messages must not drift apart."""
    options: Any = {
        "adapter": "upper",
        "max_new_tokens": 5,
        "temperature": 0.5,
        "seed": 0,
        "stop_token_ids": [9],
        "ignore_eos": True,
        "ttft_s": 1.5,
        "tpot_s": 0.25,
    }

    async def ask(other: AsyncClient) -> Any:
        return await other.complete("schön", **options)

    assert client.complete("schön", **options) == on_async(server, ask)
    first, second = server.heard.generate
    assert first == second
    assert (first.text, first.max_new_tokens, list(first.stop_token_ids)) == ("schön", 5, [9])
    assert (first.slo.ttft_s, first.slo.tpot_s, first.ignore_eos) == (1.5, 0.25, True)
    assert first.sampling.HasField("seed"), "seed 0 is a seed, not the lack of one"


def test_token_prompts_and_an_unset_seed_stay_what_they_are(
    server: FakeServer, client: Client
) -> None:
    """An unset seed sent as 0 would make every sampled answer the same."""
    client.complete([5, 6])
    (request,) = server.heard.generate
    assert list(request.token_ids.ids) == [5, 6]
    assert request.WhichOneof("prompt") == "token_ids"
    assert not request.sampling.HasField("seed")


def test_async_streaming_gives_the_same_items(server: FakeServer) -> None:
    """The async stream has its own loop over the call."""

    async def ask(client: AsyncClient) -> Any:
        async with client.generate("prompt") as stream:
            return [text async for text in stream], stream.final

    items, final = on_async(server, ask)
    assert items == [text for text, _ in CHUNKS]
    assert final.text == TEXT


def test_closing_a_stream_cancels_it_on_the_server(server: FakeServer, client: Client) -> None:
    """Without the cancel the server would finish an answer that nobody reads."""
    with client.generate("prompt", adapter="hang") as stream:
        assert next(stream) == "Grüße"
    assert server.heard.cancelled.wait(10)


def test_closing_an_async_stream_cancels_it_on_the_server(server: FakeServer) -> None:
    """The async call is cancelled by other code than the blocking one."""

    async def ask(client: AsyncClient) -> None:
        async with client.generate("prompt", adapter="hang") as stream:
            assert await anext(stream) == "Grüße"
        assert await asyncio.to_thread(server.heard.cancelled.wait, 10)

    on_async(server, ask)


def test_a_torn_stream_is_an_error_not_a_short_answer(client: Client) -> None:
    """An answer without its final message would pass for a whole one."""
    with pytest.raises(ServerFault, match="no final message"):
        client.complete("prompt", adapter="torn")


def test_an_unknown_adapter_is_named(client: Client) -> None:
    """ResourceInfo says which adapter; without decoding it the caller parses prose."""
    with pytest.raises(NotFound) as caught:
        client.complete("prompt", adapter="missing")
    assert caught.value.code == "NOT_FOUND"
    assert caught.value.resource == "missing"


def test_a_full_queue_says_when_to_come_back(server: FakeServer, client: Client) -> None:
    """RetryInfo is the only place where the time stands as a number."""

    async def ask(other: AsyncClient) -> None:
        await other.complete("prompt", adapter="full")

    for call in (
        lambda: client.complete("prompt", adapter="full"),
        lambda: on_async(server, ask),
    ):
        with pytest.raises(Overloaded) as caught:
            call()
        assert caught.value.retry_after_s == 2.5
        assert caught.value.field == "max_waiting"


def test_a_deadline_ends_the_call(client: Client) -> None:
    """A timeout that is not sent leaves a hanging server hanging its clients."""
    with pytest.raises(DeadlineExceeded):
        client.complete("prompt", adapter="hang", timeout_s=0.3)


def test_an_unreachable_server_is_named() -> None:
    """gRPC's own sentence does not say which address the user should look at."""
    with Client("127.0.0.1:1", timeout_s=20) as client, pytest.raises(Unavailable) as caught:
        client.info()
    assert "127.0.0.1:1" in caught.value.message


@pytest.mark.parametrize("options", [{"max_new_tokens": -1}, {"seed": 2**64}])
def test_numbers_the_wire_cannot_carry_name_their_field(
    client: Client, options: dict[str, int]
) -> None:
    """protobuf alone raises a ValueError that names no field."""
    with pytest.raises(InvalidRequest) as caught:
        client.complete("prompt", **options)  # type: ignore[arg-type]
    assert next(iter(options)) in caught.value.field


def test_upload_sends_the_files_whole_in_chunks_with_their_hash(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    """A chunk lost, repeated or out of order would be another adapter."""
    size = 2 * MIB + 17
    folder = make_peft_directory(tmp_path / "upper", size_bytes=size)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    seen: list[tuple[int, int]] = []
    adapter = client.adapters.upload(folder, progress=lambda *step: seen.append(step))
    (header,) = server.heard.headers
    assert server.heard.uploads == [weights]
    assert server.heard.chunk_sizes == [[MIB, MIB, 17]]
    assert header.size_bytes == size
    assert header.sha256 == hashlib.sha256(weights).hexdigest()
    assert header.config_json == (folder / "adapter_config.json").read_bytes()
    assert header.name == adapter.name == "upper"
    assert seen == [(MIB, size), (2 * MIB, size), (size, size)]


def test_async_upload_sends_the_same_bytes(server: FakeServer, tmp_path: Path) -> None:
    """The async client reads in threads; the order must survive that."""
    folder = make_peft_directory(tmp_path / "x", size_bytes=2 * MIB + 17)

    async def ask(client: AsyncClient) -> Any:
        return await client.adapters.upload(folder, "named")

    assert on_async(server, ask).name == "named"
    assert server.heard.uploads == [(folder / "adapter_model.safetensors").read_bytes()]


def test_a_refused_upload_names_the_field(client: Client, tmp_path: Path) -> None:
    """The server's BadRequest must survive a stream that the server cuts short."""
    folder = make_peft_directory(tmp_path / "bad", size_bytes=5 * MIB)
    with pytest.raises(InvalidRequest) as caught:
        client.adapters.upload(folder)
    assert caught.value.field == "use_dora"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named_before_anything_is_sent(
    server: FakeServer, client: Client, tmp_path: Path, name: str
) -> None:
    """A user who points at the wrong folder should read which file it lacks."""
    folder = make_peft_directory(tmp_path / "upper")
    (folder / name).unlink()
    with pytest.raises(AdapterDirectoryError, match=name) as caught:
        client.adapters.upload(folder)
    assert caught.value.field == name
    assert server.heard.headers == []


def test_a_pickle_is_refused_with_the_way_out(client: Client, tmp_path: Path) -> None:
    """Old adapters come as .bin; that they lack a file is not what their owner must hear."""
    folder = make_peft_directory(tmp_path / "old", weights="adapter_model.bin")
    with pytest.raises(AdapterDirectoryError, match="safe_serialization"):
        client.adapters.upload(folder)


def test_a_file_that_shrinks_while_it_is_sent_is_told(client: Client, tmp_path: Path) -> None:
    """A short stream that the server happened to accept must still not pass as uploaded."""
    folder = make_peft_directory(tmp_path / "upper", size_bytes=3 * MIB)

    def shrink(sent_bytes: int, _total_bytes: int) -> None:
        with (folder / "adapter_model.safetensors").open("r+b") as weights:
            weights.truncate(sent_bytes)

    with pytest.raises(AdapterDirectoryError, match="when it was sent"):
        client.adapters.upload(folder, progress=shrink)


def test_list_walks_all_pages(server: FakeServer, client: Client) -> None:
    """A client that stops at the first page shows a thousand adapters of ten thousand."""
    assert [adapter.name for adapter in client.adapters.list()] == ["a1", "a2", "a3", "b1", "b2"]
    assert [request.page_token for request in server.heard.lists] == ["", "2", "4"]

    async def ask(other: AsyncClient) -> Any:
        return [adapter.name async for adapter in other.adapters.list("a")]

    assert on_async(server, ask) == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, pb.PrefetchRequest(name="a1")),
        ({"tier": "pool"}, pb.PrefetchRequest(name="a1", tier=pb.TIER_POOL)),
        ({"tier": "host"}, pb.PrefetchRequest(name="a1", tier=pb.TIER_HOST)),
        ({"pin": False}, pb.PrefetchRequest(name="a1", pin=False)),
        ({"pin": True}, pb.PrefetchRequest(name="a1", pin=True)),
    ],
    ids=str,
)
def test_a_prefetch_says_what_was_asked(
    server: FakeServer, client: Client, options: dict[str, Any], sent: pb.PrefetchRequest
) -> None:
    """No pin and a pin of False are two things: one leaves it, the other takes it away."""

    async def ask(other: AsyncClient) -> Any:
        return await other.adapters.prefetch("a1", **options)

    here = client.adapters.prefetch("a1", **options)
    assert here == on_async(server, ask)
    assert here.residency.pinned is (options.get("pin") is True)
    assert server.heard.prefetches == [sent, sent]


@pytest.mark.parametrize(
    ("options", "field"), [({"tier": "disk"}, "tier"), ({"tier": 1}, "tier"), ({"pin": 1}, "pin")]
)
def test_a_prefetch_that_says_nothing_is_refused_here(
    server: FakeServer, client: Client, options: dict[str, Any], field: str
) -> None:
    """A number would be some other tier, and 1 is not True."""
    with pytest.raises(InvalidRequest) as caught:
        client.adapters.prefetch("a1", **options)
    assert caught.value.field == field
    assert server.heard.prefetches == []


def test_get_delete_info_and_stats(server: FakeServer, client: Client) -> None:
    """The plain calls of both clients, and the flag that asks for pages."""

    async def ask(other: AsyncClient) -> Any:
        return (
            await other.adapters.get("a1"),
            await other.adapters.delete("a1"),
            await other.info(),
            await other.stats(pages=True),
        )

    here = (
        client.adapters.get("a1"),
        client.adapters.delete("a1"),
        client.info(),
        client.stats(pages=True),
    )
    assert here == on_async(server, ask)
    assert (here[0].name, here[1], here[2].model) == ("a1", 4, "tiny")
    assert [request.pages for request in server.heard.stats] == [True, True]


def test_wait_ready_believes_health_not_the_open_port(server: FakeServer) -> None:
    """A server whose engine is still loading listens already; callers would be refused."""
    assert server.health is not None
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    server.health.set("", not_serving)

    async def ask(client: AsyncClient, timeout_s: float) -> None:
        await client.wait_ready(timeout_s)

    with Client(server.address) as client:
        with pytest.raises(Unavailable, match=r"0\.2 s"):
            client.wait_ready(0.2)
        with pytest.raises(Unavailable, match=r"0\.2 s"):
            on_async(server, lambda other: ask(other, 0.2))
        server.health.set("", health_pb2.HealthCheckResponse.SERVING)
        client.wait_ready(10)
        on_async(server, lambda other: ask(other, 10))


def test_wait_ready_asks_the_engine_where_there_is_no_health_service() -> None:
    """Health is optional on the server; its lack must not read as not ready."""

    async def ask(client: AsyncClient) -> None:
        await client.wait_ready(10)

    with FakeServer(with_health=False) as server:
        with Client(server.address) as client:
            client.wait_ready(10)
        on_async(server, ask)


def test_the_clients_import_no_model_library() -> None:
    """A client process that loads torch takes seconds and a GiB for nothing."""
    code = (
        "import sys, lorry; lorry.Client; lorry.AsyncClient; "
        "print(*{'torch', 'numpy', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
