"""Real handshakes in this process, and what is said of files that would fail them in silence."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorry.proto.async_client import AsyncClient
from lorry.proto.client import Client
from lorry.proto.errors import PermissionDenied, Unauthenticated, Unavailable
from lorry.server.errors import ConfigError
from lorry.server.rpc.tls import ServerTls, TlsFiles
from lorry.server.tokens import Role
from lorry.tests.access_builders import (
    Certificate,
    hand_out,
    make_certificate,
    make_expired,
)
from lorry.tests.proto_builders import make_peft_directory
from lorry.tests.rpc_builders import PATIENCE_S, Service, make_config, running_service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Certificate:
    return make_certificate(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Certificate:
    return make_certificate(folder, "other")


@pytest.fixture
def live(tmp_path: Path, server: Certificate) -> Iterator[Certificate]:
    """A copy that a test may replace."""
    yield Certificate(
        shutil.copy(server.cert, tmp_path / "live.pem"),
        shutil.copy(server.key, tmp_path / "live.key"),
    )


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        config = make_config(**service)
        async with asyncio.timeout(60), running_service(config=config) as running:
            await body(running)

    asyncio.run(main())


def of(pair: Certificate, **more: Any) -> dict[str, Any]:
    return {"tls_cert": pair.cert, "tls_key": pair.key} | more


async def asks(address: str, **credentials: Any) -> str:
    """The model's name, or an error."""
    async with AsyncClient(address, timeout_s=PATIENCE_S, **credentials) as client:
        return (await client.info()).model


def test_both_clients_do_everything_over_tls_with_a_token(server: Certificate, tmp_path: Path):
    """Broken: a call of one kind (an upload, a stream) goes without its token, or unencrypted."""
    path = tmp_path / "tokens.json"
    tokens = hand_out(path, up=(Role.UPLOAD, "default"), gen=(Role.GENERATE, "default"))
    directory = make_peft_directory(tmp_path / "mine", size_bytes=3 << 20)

    def blocking(address: str) -> None:
        with Client(address, token=tokens["up"], ca=server.cert, timeout_s=PATIENCE_S) as client:
            client.wait_ready(PATIENCE_S)
            assert client.info().model == "tiny"
            assert client.stats().pages_total == 32
            assert client.complete("abc", max_new_tokens=2).usage.completion_tokens == 2
            assert client.adapters.upload(directory).name == "mine"
            assert "mine" in [adapter.name for adapter in client.adapters.list()]
            assert client.adapters.get("mine").version == 1
            assert client.adapters.delete("mine") == 1

    async def body(service: Service) -> None:
        address = f"localhost:{service.port}"
        await asyncio.to_thread(blocking, address)
        async with AsyncClient(
            address, token=tokens["up"], ca=server.cert, timeout_s=PATIENCE_S
        ) as client:
            await client.wait_ready(PATIENCE_S)
            assert (await client.complete("abc", max_new_tokens=2)).usage.completion_tokens == 2
            assert (await client.adapters.upload(directory)).name == "mine"
            assert "mine" in [adapter.name async for adapter in client.adapters.list()]
        async with AsyncClient(address, token=tokens["gen"], ca=server.cert) as client:
            with pytest.raises(PermissionDenied, match="needs the role upload"):
                await client.adapters.upload(directory)
        with pytest.raises(Unauthenticated):
            await asks(address, ca=server.cert)

    run(body, tokens=path, **of(server))


def test_who_trusts_another_or_speaks_plainly_gets_nothing(
    server: Certificate, other: Certificate, tmp_path: Path
):
    """Broken: a client talks to whoever answers, or the server answers without TLS."""

    async def body(service: Service) -> None:
        address = f"localhost:{service.port}"
        assert await asks(address, ca=server.cert) == "tiny"
        cases: list[tuple[dict[str, Any], str]] = [
            ({"ca": other.cert}, "certificate of .* is not trusted: self.signed certificate"),
            ({"tls": True}, "certificate of .* is not trusted: self.signed certificate"),
            ({}, "expects TLS"),
        ]
        for wrong, words in cases:
            with pytest.raises(Unavailable, match=words):
                await asks(address, **wrong)

    run(body, **of(server))

    async def plain(service: Service) -> None:
        with pytest.raises(Unavailable, match="does not speak TLS"):
            await asks(f"localhost:{service.port}", ca=server.cert)

    run(plain)


def test_a_certificate_of_another_host_is_refused(folder: Path):
    """Broken: whoever has any certificate of the same authority can pose as the server."""
    elsewhere = make_certificate(folder, "elsewhere", host="elsewhere.example")

    async def body(service: Service) -> None:
        with pytest.raises(Unavailable, match="is another host's"):
            await asks(f"localhost:{service.port}", ca=elsewhere.cert)

    run(body, **of(elsewhere))


def test_a_server_that_asks_for_certificates_lets_in_whom_it_trusts(
    server: Certificate, other: Certificate, folder: Path
):
    """Broken: a client without a certificate, or with anybody's, is let in."""
    stranger = make_certificate(folder, "stranger")

    async def body(service: Service) -> None:
        address = f"localhost:{service.port}"
        trusted = {"ca": server.cert, "cert": other.cert, "key": other.key}
        assert await asks(address, **trusted) == "tiny"
        with pytest.raises(Unavailable, match="a client's certificate"):
            await asks(address, ca=server.cert)
        with pytest.raises(Unavailable):
            await asks(address, ca=server.cert, cert=stranger.cert, key=stranger.key)

    run(body, **of(server, tls_client_ca=other.cert))


@pytest.mark.parametrize(
    ("more", "who"),
    [
        ({"tls_client_ca": "other"}, "whoever holds a certificate that --tls-client-ca signed may"),
        ({"allow_remote": True}, "whoever reaches 0.0.0.0 may"),
    ],
    ids=["certificate", "open"],
)
def test_a_server_without_tokens_says_who_may_do_everything(
    server: Certificate, other: Certificate, more: dict[str, Any], who: str
):
    """Broken: an operator reads that a server of certificates is open to all, or the reverse."""

    async def body(service: Service) -> None:
        (note,) = [note for note in service.server.notes if "may do everything" in note]
        assert note.startswith(who)

    if "tls_client_ca" in more:
        more = {"tls_client_ca": other.cert}
    run(body, **of(server, host="0.0.0.0", **more))


def swap(live: Certificate, cert: Path, key: Path) -> None:
    """As a renewing program does: each file whole, one after the other."""
    for new, old in ((cert, live.cert), (key, live.key)):
        fresh = old.with_suffix(".new")
        shutil.copy(new, fresh)
        fresh.replace(old)


def test_a_renewed_certificate_is_taken_up_without_a_restart(
    live: Certificate,
    server: Certificate,
    other: Certificate,
    caplog: pytest.LogCaptureFixture,
):
    """Broken: a certificate of ninety days ends the server's work on the ninetieth."""

    async def body(service: Service) -> None:
        address = f"localhost:{service.port}"
        async with AsyncClient(address, ca=server.cert, timeout_s=PATIENCE_S) as early:
            assert (await early.info()).model == "tiny"
            swap(live, other.cert, server.key)  # between two replacements nothing fits
            for _ in range(2):
                assert await asks(address, ca=server.cert) == "tiny"
            said = [line for line in caplog.messages if "certificate in use stays" in line]
            assert len(said) == 1
            assert "is not the key of" in said[0]
            swap(live, other.cert, other.key)
            assert await asks(address, ca=other.cert) == "tiny"
            with pytest.raises(Unavailable):
                await asks(address, ca=server.cert)
            assert (await early.info()).model == "tiny", "an open connection goes on"

    run(body, **of(live))


def check(pair: Certificate, client_ca: Path | None = None) -> list[str]:
    return ServerTls(TlsFiles(pair.cert, pair.key, client_ca)).notes


def test_what_is_wrong_with_the_files_is_said_before_the_start(
    tmp_path: Path, server: Certificate, other: Certificate
):
    """Broken: gRPC's own words for all of these are that an address cannot be bound."""
    none, text, cut = tmp_path / "none", tmp_path / "text", tmp_path / "cut"
    text.write_text("hello")
    cut.write_bytes(server.cert.read_bytes()[:200])
    cut_key = tmp_path / "cut.key"
    cut_key.write_bytes(server.key.read_bytes()[:80])
    locked = make_certificate(tmp_path, "locked", password=b"secret")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cases = [
        (none, server.key, "--tls-cert is .*none, which cannot be read: No such file"),
        (server.cert, none, "--tls-key is .*none, which cannot be read: No such file"),
        (tmp_path, server.key, "--tls-cert is .*cannot be read: Is a directory"),
        (pipe, server.key, "--tls-cert is .*pipe, which is not PEM"),
        (text, server.key, "--tls-cert is .*text, which is not PEM"),
        (server.cert, text, "--tls-key is .*text, which is not PEM"),
        (cut, server.key, "--tls-cert is .*cut, which holds no certificate"),
        (server.key, server.key, "--tls-cert is .*key, which holds no certificate"),
        (server.cert, cut_key, "--tls-key is .*cut.key, which is no private key"),
        (server.cert, server.cert, "--tls-key is .*pem, which is no private key"),
        (server.cert, other.key, "--tls-key is .*other.key, which is not the key of --tls-cert"),
        (locked.cert, locked.key, "--tls-key is .*locked.key, which is encrypted"),
    ]
    for cert, key, words in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            check(Certificate(cert, key))
        assert caught.value.field in ("--tls-cert", "--tls-key")
        assert "BEGIN" not in caught.value.message
    with pytest.raises(ConfigError, match=r"--tls-client-ca is .*holds no certificate"):
        check(server, server.key)
    with pytest.raises(ConfigError, match=r"--tls-client-ca is .*none, which cannot be read"):
        check(server, none)
    assert check(server, other.cert) == []


def test_an_expired_certificate_is_a_warning(tmp_path: Path):
    """Broken: an operator learns from their users that the certificate has ended."""
    (note,) = check(make_expired(tmp_path))
    assert "clients will refuse it: certificate has expired" in note


def test_a_start_that_cannot_be_is_refused_by_its_flag(tmp_path: Path, server: Certificate):
    """Broken: a server with a wrong file starts half, or says an address is taken."""

    async def body(service: Service) -> None:
        raise AssertionError("it started")

    with pytest.raises(ConfigError, match="--tls-key"):
        run(body, tls_cert=server.cert, tls_key=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"--tokens .*not there"):
        run(body, tokens=tmp_path / "none")
